package cow

import (
	"errors"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// total is what is free, whoever is about to populate it.
func total(p *Pool) uint64 {
	populated, rest := p.FreeFrames()
	return populated + rest
}

// Who takes frames and leaves few finds the next ones there afterwards; none
// is ever missing from the count.
func TestAheadPopulatesTheNextBatch(t *testing.T) {
	h := newHost(t, 64)
	p := NewPool(h.a, h, 0, Options{GrowFrames: 8, KeepFree: 64, Ahead: true})
	var frames [64]addr.PFN
	for i := range frames {
		if err := p.Alloc(frames[i : i+1]); err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if n := total(p); n != uint64(63-i) {
			t.Fatalf("%d frames are free after %d of 64", n, i+1)
		}
		p.WaitAhead()
		if populated, rest := p.FreeFrames(); populated < 8 && rest > 0 {
			t.Fatalf("%d frames populated, %d not, after %d", populated, rest, i+1)
		}
	}
	if err := p.Alloc(make([]addr.PFN, 1)); !errors.Is(err, ErrNoMemory) {
		t.Errorf("the 65th frame: %v", err)
	}
	for _, f := range frames {
		p.Drop(f)
		p.FreeData(f)
	}
	if n := total(p); n != 64 {
		t.Errorf("%d of 64 frames came back", n)
	}
}

// What the host refuses ahead is asked for again when it is needed, and is lost
// in neither case.
func TestAheadIsRefused(t *testing.T) {
	h := newHost(t, 64)
	refusal := errors.New("no")
	h.fails = func(call int, populate bool, n uint64) error {
		if populate && call%3 != 1 {
			return refusal
		}
		return nil
	}
	p := NewPool(h.a, h, 0, Options{GrowFrames: 8, KeepFree: 64, Ahead: true})
	got := make(map[addr.PFN]bool)
	for tries := 0; len(got) < 64; tries++ {
		if tries > 1000 {
			t.Fatalf("%d of 64 frames after %d tries", len(got), tries)
		}
		var f [1]addr.PFN
		if err := p.Alloc(f[:]); err != nil {
			if !errors.Is(err, refusal) || !errors.Is(err, ErrNoMemory) {
				t.Fatal(err)
			}
			continue
		}
		if got[f[0]] {
			t.Fatalf("frame %v was handed out twice", f[0])
		}
		got[f[0]] = true
		p.WaitAhead()
		if n := total(p); n != uint64(64-len(got)) {
			t.Fatalf("%d free, %d taken, of 64", n, len(got))
		}
	}
}

// The last frames are found by all who look for them at once, though some are
// being populated ahead of another's need.
func TestAheadHidesNothing(t *testing.T) {
	for range 50 {
		h := newHost(t, 24)
		p := NewPool(h.a, h, 0, Options{GrowFrames: 8, KeepFree: 64, Ahead: true})
		var wg sync.WaitGroup
		for range 24 {
			wg.Go(func() {
				if err := p.Alloc(make([]addr.PFN, 1)); err != nil {
					t.Errorf("%v, with as many frames as takers", err)
				}
			})
		}
		wg.Wait()
		p.WaitAhead()
		if n := total(p); n != 0 {
			t.Fatalf("%d frames left of 24", n)
		}
	}
}
