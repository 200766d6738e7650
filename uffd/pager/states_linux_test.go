package pager

import (
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// TestR11StatesAgainstModel takes steps at random, of pages, of runs and of whole
// chunks, and holds every page against an array.
func TestR11StatesAgainstModel(t *testing.T) {
	const n = 2*pagesPerChunk + 100
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		p := newPages(n)
		p.lasting = []state{0, armed}[seed%2]
		model := make([]state, n)
		each := func(first, end int, f func(state) state) {
			for i := first; i < end; i++ {
				model[i] = f(model[i])
			}
		}
		if seed%4 == 3 {
			p.adopt(make([]atomic.Uint32, p.nWords()), nil)
		}
		for range 16 {
			first, end := rnd.IntN(n), rnd.IntN(n+1)
			if rnd.IntN(2) == 0 { // at the borders of chunks
				first, end = first/pagesPerChunk*pagesPerChunk, (end+pagesPerChunk-1)/pagesPerChunk*pagesPerChunk
			}
			first, end = min(first, end), min(max(first, end), n)
			switch rnd.IntN(6) {
			case 0:
				p.remove(first, end)
				each(first, end, func(s state) state { return s&^(stateMask|armed) | s&p.lasting | removed })
			case 1:
				p.areZero(first, end)
				each(first, end, func(s state) state {
					if s&stateMask == absent {
						s |= removed
					}
					return s
				})
			case 2:
				p.arm(first, end)
				each(first, end, func(s state) state { return s | armed })
			case 3:
				p.disarmRun(first, end)
				each(first, end, func(s state) state { return s &^ armed })
			default:
				for i := first; i < min(end, first+40); i++ {
					if got := p.claim(i); got != model[i]&stateMask {
						t.Fatalf("claim of %d finds %d, want %d", i, got, model[i]&stateMask)
					}
					if model[i]&stateMask != absent {
						continue
					}
					if i%3 == 0 {
						p.giveBack(i)
						continue
					}
					p.settle(i, 0)
					model[i] = model[i]&^stateMask | present
				}
			}
			unsettled := int64(0)
			for i, want := range model {
				if got := p.at(i); got != want {
					t.Fatalf("seed %d: page %d is %d, want %d", seed, i, got, want)
				}
				if want&stateMask == absent {
					unsettled++
				}
			}
			if got := p.unsettled.Load(); got != unsettled {
				t.Fatalf("seed %d: %d unsettled, want %d", seed, got, unsettled)
			}
			at := rnd.IntN(n)
			if got, want := p.nextAbsent(at), at+slices.IndexFunc(model[at:], func(s state) bool { return s&stateMask == absent }); want >= at && got != want || want < at && got < n {
				t.Fatalf("seed %d: the next absent page from %d on is %d, want %d", seed, at, got, want)
			}
			wantThere(t, p, model, at)
			c := p.clone()
			if c.unsettled.Load() != unsettled || c.at(at) != model[at] {
				t.Fatalf("seed %d: the clone has %d unsettled, and page %d is %d", seed, c.unsettled.Load(), at, c.at(at))
			}
		}
	}
}

// wantThere holds the runs of pages that are there from at on against the model: all
// of them, and few others.
func wantThere(t *testing.T, p *pages, model []state, at int) {
	t.Helper()
	isThere := func(i int) bool { s := model[i] & stateMask; return s == present || s == removed }
	for i := at; i < p.n; {
		first, n := p.nextThere(i, p.n)
		for ; i < first; i++ {
			if isThere(i) {
				t.Fatalf("page %d is there, and passed over", i)
			}
		}
		gap := 0
		for ; i < first+n; i++ {
			if gap++; isThere(i) {
				gap = 0
			}
			if gap > bridged {
				t.Fatalf("more than %d pages before %d are not there, in [%d, +%d)", bridged, i, first, n)
			}
		}
	}
}

// TestR11ChunksConcurrently has runs exchanged as a whole while their pages are
// claimed, settled and armed one by one: nothing is lost.
func TestR11ChunksConcurrently(t *testing.T) {
	const n = 2 * pagesPerChunk
	for range 6 {
		p := newPages(n)
		p.lasting = armed
		var wg sync.WaitGroup
		mine := make([]bool, n) // each written by one goroutine
		for th := range 2 {
			wg.Go(func() {
				for i := th; i < n; i += 2 * 61 {
					if p.claim(i) == absent {
						mine[i] = true
						p.settle(i, 0)
					}
				}
			})
		}
		wg.Go(func() { p.arm(0, n) })
		wg.Go(func() { p.areZero(pagesPerChunk, n) })
		wg.Wait()
		for i := range n {
			want := absent
			switch {
			case mine[i]:
				want = present
			case i >= pagesPerChunk:
				want = removed
			}
			if got := p.at(i); got != want|armed {
				t.Fatalf("page %d is %d, want %d", i, got, want|armed)
			}
		}
		kept := p.unsettled.Load()
		if p.recount(); kept != p.unsettled.Load() {
			t.Fatalf("%d unsettled, counted %d", kept, p.unsettled.Load())
		}
	}
}
