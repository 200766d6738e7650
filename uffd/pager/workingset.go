package pager

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/btree"
)

// A WorkingSet is which pages of an image a guest has faulted on, as runs in
// the order of their first touches. It is used as a set: the next fault of
// another guest is seldom the next page of the list, but nearly always one of
// them.
type WorkingSet struct {
	// Image is what the set belongs to; it is not replayed on another.
	Image Identity
	// Pages is the length of the image in pages of 4 KiB.
	Pages uint64
	// Runs do not overlap and lie within the image.
	Runs []PageRun
}

var errOverlapping = errors.New("runs overlap")

// A PageRun is N pages of 4 KiB of an image, from First on.
type PageRun struct{ First, N uint64 }

// Len returns how many pages are in the set.
func (ws *WorkingSet) Len() (n uint64) {
	for _, r := range ws.Runs {
		n += r.N
	}
	return n
}

// check holds the set against an image.
func (ws *WorkingSet) check(image Identity, nPages uint64) error {
	if ws.Image != image || ws.Pages != nPages {
		return fmt.Errorf("%w: of image %v, %d pages; this is %v, %d pages", ErrWrongImage, ws.Image, ws.Pages, image, nPages)
	}
	for _, r := range ws.Runs {
		if r.N == 0 || r.First+r.N < r.First || r.First+r.N > nPages {
			return fmt.Errorf("%w: run [%d, +%d) of %d pages", ErrWorkingSet, r.First, r.N, nPages)
		}
	}
	if !areDisjoint(ws.Runs) {
		return fmt.Errorf("%w: %w", ErrWorkingSet, errOverlapping)
	}
	return nil
}

// Merge returns the set of both: ws first, then what only other has. Replayed
// pages do not fault, and so are in no new recording: merge what was replayed
// with what was recorded meanwhile.
//
// Errors: ErrWrongImage, ErrWorkingSet.
func (ws *WorkingSet) Merge(other *WorkingSet) (*WorkingSet, error) {
	if err := other.check(ws.Image, ws.Pages); err != nil && !errors.Is(err, errOverlapping) {
		return nil, &Error{Op: "merge working sets", Err: err}
	}
	out := &WorkingSet{Image: ws.Image, Pages: ws.Pages}
	// Runs of out by their first pages. A run can be longer than any list of
	// its pages.
	have := btree.NewG(16, func(a, b PageRun) bool { return a.First < b.First })
	for _, runs := range [][]PageRun{ws.Runs, other.Runs} {
		for _, r := range runs {
			for _, free := range without(have, r) {
				have.ReplaceOrInsert(free)
				out.Runs = appendRun(out.Runs, free)
			}
		}
	}
	return out, nil
}

// without returns what of r is in none of have, which do not overlap.
func without(have *btree.BTreeG[PageRun], r PageRun) (free []PageRun) {
	at, end := r.First, r.First+r.N
	have.DescendLessOrEqual(PageRun{First: at}, func(before PageRun) bool {
		at = max(at, before.First+before.N)
		return false
	})
	have.AscendGreaterOrEqual(PageRun{First: at}, func(next PageRun) bool {
		if next.First >= end {
			return false
		}
		if next.First > at {
			free = append(free, PageRun{at, next.First - at})
		}
		at = next.First + next.N
		return true
	})
	if at < end {
		free = append(free, PageRun{at, end - at})
	}
	return free
}

// appendRun adds a run, or makes the last one longer.
func appendRun(runs []PageRun, r PageRun) []PageRun {
	if n := len(runs); n > 0 && runs[n-1].First+runs[n-1].N == r.First {
		runs[n-1].N += r.N
		return runs
	}
	return append(runs, r)
}

// A recorder writes down what a guest touches first.
type recorder struct {
	on bool // immutable

	mu   sync.Mutex
	runs []PageRun // guarded by mu
}

func (rec *recorder) add(off, size uint64) {
	rec.mu.Lock()
	rec.runs = appendRun(rec.runs, PageRun{off / smallPage, size / smallPage})
	rec.mu.Unlock()
}

// noteTouched records that page i is wanted.
func (g *Guest) noteTouched(r *region, i int) {
	if g.rec.on && r.pages.touch(i) {
		g.rec.add(r.offset(i), r.PageSize)
	}
}

// WorkingSet returns what has been recorded so far; nil if nothing is.
func (g *Guest) WorkingSet() *WorkingSet {
	if !g.rec.on {
		return nil
	}
	g.rec.mu.Lock()
	runs := slices.Clone(g.rec.runs)
	g.rec.mu.Unlock()
	empty := WorkingSet{Image: g.o.Image, Pages: g.o.Source.Size() / smallPage}
	ws := empty
	if ws.Runs = runs; areDisjoint(runs) {
		return &ws
	}
	// Two regions show the same part of the image.
	merged, _ := empty.Merge(&ws) // of the same image
	return merged
}

func areDisjoint(runs []PageRun) bool {
	sorted := slices.Clone(runs)
	slices.SortFunc(sorted, func(a, b PageRun) int {
		if a.First < b.First {
			return -1
		}
		return 1
	})
	for i := range sorted[min(1, len(sorted)):] {
		if sorted[i].First+sorted[i].N > sorted[i+1].First {
			return false
		}
	}
	return true
}

const (
	windowPages = runBytes / smallPage
	// maxGap is how many pages that nobody asked for are read along with those
	// round them: a read costs more than a few pages of it.
	maxGap = 4
)

// runsIn returns the set as runs of pages of the regions that show them: by
// windows of 64 KiB in the order in which they were first touched, and in each
// window one run, or more where there are large gaps.
func (ws *WorkingSet) runsIn(regions []*region) []run {
	var order []uint64
	touched := make(map[uint64]uint16)
	for _, run := range ws.Runs {
		for _, r := range regions { // a run may be longer than all of them
			first := max(run.First, r.Offset/smallPage)
			end := min(run.First+run.N, (r.Offset+r.Size)/smallPage)
			for p := first; p < end; p++ {
				w := p / windowPages
				if _, ok := touched[w]; !ok {
					order = append(order, w)
				}
				touched[w] |= 1 << (p % windowPages)
			}
		}
	}
	var out []run
	for _, w := range order {
		eachRun(touched[w], func(first, n uint64) {
			off, length := (w*windowPages+first)*smallPage, n*smallPage
			for _, r := range regions {
				if first, end, ok := r.pagesTouching(off, length); ok {
					out = append(out, run{r, first, end - first})
				}
			}
		})
	}
	return out
}

// eachRun calls f for the runs of set bits, with small gaps counted in.
func eachRun(bits uint16, f func(first, n uint64)) {
	first, last := -1, -1
	for i := range windowPages {
		if bits&(1<<i) == 0 {
			continue
		}
		if first >= 0 && i-last-1 > maxGap {
			f(uint64(first), uint64(last-first+1))
			first = -1
		}
		if first < 0 {
			first = i
		}
		last = i
	}
	if first >= 0 {
		f(uint64(first), uint64(last-first+1))
	}
}

// pagesTouching returns the pages of r that have something of a range of the
// image.
func (r *region) pagesTouching(off, length uint64) (first, end int, ok bool) {
	from, to := max(off, r.Offset), min(off+length, r.Offset+r.Size)
	if from >= to {
		return 0, 0, false
	}
	return int((from - r.Offset) >> r.shift), int((to - r.Offset + r.PageSize - 1) >> r.shift), true
}
