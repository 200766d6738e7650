package cow

import (
	"cmp"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// trim gives the oldest free frames, and blocks, above KeepFree back to the host, in runs.
// One caller at a time; frees beside it go on.
func (p *Pool) trim() {
	p.mu.Lock()
	n := p.populatedLocked()
	n -= min(n, p.opts.KeepFree)
	nBlocks := min(uint64(len(p.whole)), n/BlockFrames)
	blocks := slices.Clone(p.whole[:nBlocks])
	p.whole = slices.Delete(p.whole, 0, int(nBlocks))
	n -= nBlocks * BlockFrames
	for uint64(len(p.free)) < n && p.breakBlockLocked() {
	}
	old := slices.Clone(p.free[:n])
	p.free = slices.Delete(p.free, 0, int(n))
	p.away++
	p.mu.Unlock()

	var given, kept []run
	for _, r := range mergeRuns(runsOfBlocks(blocks), runsOf(old)) {
		if p.store.GiveBack(r.first, r.n) == nil {
			given = append(given, r)
		} else {
			kept = append(kept, r)
		}
	}

	p.mu.Lock()
	defer p.mu.Unlock()
	p.addRunsLocked(given)
	for _, r := range kept {
		for i := range r.n {
			p.free = append(p.free, makeFree(r.first+addr.PFN(i), false))
		}
	}
	p.trimFrom = p.opts.KeepFree + p.opts.GrowFrames
	if len(kept) > 0 {
		// A host that does not take memory back is not asked at every free.
		p.trimFrom = max(p.trimFrom, 2*p.populatedLocked())
	}
	p.trimming = false
	p.returnedLocked()
}

// addRunsLocked adds runs, highest first, to those that are not populated.
func (p *Pool) addRunsLocked(rs []run) {
	for _, r := range rs {
		p.inRuns += r.n
	}
	p.runs = mergeRuns(p.runs, rs)
}

// mergeRuns merges two lists of runs, highest first, and joins neighbours.
// Sorting both together would take the longer, the more memory is in pieces.
func mergeRuns(a, b []run) []run {
	if len(b) == 0 {
		return a
	}
	out := make([]run, 0, len(a)+len(b))
	for len(a) > 0 || len(b) > 0 {
		if len(b) == 0 || len(a) > 0 && a[0].first > b[0].first {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return joinSorted(out)
}

// runsOf returns frames as runs, highest first: they are used from the end.
func runsOf(frames []freeFrame) []run {
	rs := make([]run, len(frames))
	for i, x := range frames {
		rs[i] = run{x.frame(), 1}
	}
	return sortRuns(rs)
}

// runsOfBlocks is runsOf for blocks.
func runsOfBlocks(blocks []addr.PFN) []run {
	rs := make([]run, len(blocks))
	for i, f := range blocks {
		rs[i] = run{f, BlockFrames}
	}
	return sortRuns(rs)
}

func sortRuns(rs []run) []run {
	slices.SortFunc(rs, func(a, b run) int { return cmp.Compare(b.first, a.first) })
	return joinSorted(rs)
}

// joinSorted joins neighbours of a list that is highest first, in place.
func joinSorted(rs []run) []run {
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
