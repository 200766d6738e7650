package cow

import (
	"cmp"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// trim gives the oldest free frames above KeepFree back to the host, in runs.
// One caller at a time; frees beside it go on.
func (p *Pool) trim() {
	p.mu.Lock()
	n := uint64(len(p.free)) - min(uint64(len(p.free)), p.opts.KeepFree)
	old := slices.Clone(p.free[:n])
	p.free = slices.Delete(p.free, 0, int(n))
	p.mu.Unlock()

	var given, kept []run
	for _, r := range runsOf(old) {
		if p.store.GiveBack(r.first, r.n) == nil {
			given = append(given, r)
		} else {
			kept = append(kept, r)
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	for _, r := range given {
		p.runs = append(p.runs, r)
		p.inRuns += r.n
	}
	p.runs = joinRuns(p.runs)
	for _, r := range kept {
		for i := range r.n {
			p.free = append(p.free, makeFree(r.first+addr.PFN(i), false))
		}
	}
	p.trimming = false
}

// runsOf returns frames as runs.
func runsOf(frames []freeFrame) []run {
	rs := make([]run, len(frames))
	for i, x := range frames {
		rs[i] = run{x.frame(), 1}
	}
	return joinRuns(rs)
}

// joinRuns sorts runs, highest first (they are used from the end), and joins
// neighbours.
func joinRuns(rs []run) []run {
	slices.SortFunc(rs, func(a, b run) int { return cmp.Compare(b.first, a.first) })
	out := rs[:0]
	for _, r := range rs {
		if n := len(out); n > 0 && r.first+addr.PFN(r.n) == out[n-1].first {
			out[n-1].first, out[n-1].n = r.first, out[n-1].n+r.n
			continue
		}
		out = append(out, r)
	}
	return out
}
