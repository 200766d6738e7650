package guestmem

import (
	"errors"
	"fmt"
	"math/bits"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// members returns what each, or take, calls back with.
func members(visit func(func(page, members uint64))) map[uint64]bool {
	out := make(map[uint64]bool)
	visit(func(page, w uint64) {
		for ; w != 0; w &= w - 1 {
			out[page+uint64(bits.TrailingZeros64(w))] = true
		}
	})
	return out
}

// TestPageSetIsASet compares with a map of pages, over several chunks.
func TestPageSetIsASet(t *testing.T) {
	const nPages = 2*chunkPages + 5000
	rapid.Check(t, func(t *rapid.T) {
		s, model := newPageSet(nPages), map[uint64]bool{}
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			first := rapid.Uint64Range(0, nPages-1).Draw(t, "first")
			n := rapid.Uint64Range(1, min(nPages-first, 10000)).Draw(t, "n")
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				s.add(first, n)
				for p := first; p < first+n; p++ {
					model[p] = true
				}
			case 1:
				s.prepare(first, 1)
				s.mark(first)
				model[first] = true
			case 2:
				s.remove(first, n)
				for p := first; p < first+n; p++ {
					delete(model, p)
				}
			case 3:
				if got := members(s.take); fmt.Sprint(got) != fmt.Sprint(model) {
					t.Fatalf("taken %d pages, want %d", len(got), len(model))
				}
				clear(model)
			case 4:
				found := false
				for p := first; p < first+n; p++ {
					found = found || model[p]
				}
				if s.any(first, n) != found || s.has(first) != model[first] {
					t.Fatalf("any(%d, %d) = %v", first, n, !found)
				}
			}
		}
		if got := members(s.each); fmt.Sprint(got) != fmt.Sprint(model) {
			t.Fatalf("%d pages, want %d", len(got), len(model))
		}
	})
}

// TestR15MarkOfAnotherStore: a store that finds the mark made by another one, which
// has not got further yet, does not leave it at that: its own page would not be in
// the harvest that begins when it has ended.
//
//	store A            store B                       harvest
//	word
//	                   finds it in the word; ends
//	                                                 looks at the summary
//	summary
func TestR15MarkOfAnotherStore(t *testing.T) {
	const page = chunkPages + 77
	s := newPageSet(2 * chunkPages)
	s.prepare(page, 1)
	s.chunks[page/chunkPages].Load().words[page/64%chunkWords].Or(1 << (page % 64)) // A
	s.mark(page)                                                                    // B
	if got := members(s.take); len(got) != 1 || !got[page] {
		t.Errorf("the harvest has %v", got)
	}
	s.chunks[page/chunkPages].Load().note(page) // A goes on
	if got := members(s.take); len(got) != 0 {
		t.Errorf("and then %v", got)
	}
}

// sparseSource names runs, and fails when it is told to.
type sparseSource struct {
	runs [][2]uint64
	fail error
}

func (s *sparseSource) CollectDirty(*Region, []uint64) error { return errRefused }

func (s *sparseSource) CollectDirtyPages(_ *Region, add func(first, n uint64)) error {
	for _, r := range s.runs {
		add(r[0], r[1])
	}
	s.runs = nil
	return s.fail
}

// A source that names runs is asked for those, and what it named before it failed
// is in the next harvest.
func TestSparseDirtySource(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 1 << 30})
	s := &sparseSource{}
	mustDo(t, m.AttachDirtySource(s))
	defer m.DetachDirtySource(s)
	want := map[uint64]bool{}
	for _, run := range [][2]uint64{{262143, 1}, {60, 200}, {4096, 1}, {0, 1}, {100, 64}} {
		s.runs = append(s.runs, run)
		for p := run[0]; p < run[0]+run[1]; p++ {
			want[p] = true
		}
	}
	s.fail = errRefused
	if err := m.CollectDirty(r, func(addr.GPA, uint64) { t.Error("something is yielded") }); !errors.Is(err, errRefused) {
		t.Errorf("CollectDirty = %v", err)
	}
	s.fail, s.runs = nil, [][2]uint64{{5000, 3}}
	want[5000], want[5001], want[5002] = true, true, true
	if got := harvestOf(t, m, r); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("harvested %d pages, want %d", len(got), len(want))
	}
	if got := harvestOf(t, m, r); len(got) != 0 {
		t.Errorf("and again %v", got)
	}
}

// BenchmarkCollectDirty harvests a region in which n pages were stored to.
func BenchmarkCollectDirty(b *testing.B) {
	for _, gib := range []uint64{1, 64} {
		for _, n := range []uint64{0, 1, 100} {
			b.Run(fmt.Sprintf("GiB=%d/dirty=%d", gib, n), func(b *testing.B) {
				m := newPhys(b)
				r := mustAdd(b, m, RegionOptions{Size: gib << 30})
				found := uint64(0)
				for b.Loop() {
					b.StopTimer()
					for i := range n {
						mustDo(b, m.Store8(addr.GPA(i*(r.Size()/100)), 1))
					}
					b.StartTimer()
					mustDo(b, m.CollectDirty(r, func(_ addr.GPA, k uint64) { found += k }))
				}
				if found != n*uint64(b.N) {
					b.Errorf("%d pages of %d", found, n*uint64(b.N))
				}
			})
		}
	}
}
