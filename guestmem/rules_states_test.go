package guestmem

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"
)

// R11: states move forward only, and who comes late loses.
func TestR11StatesMoveForward(t *testing.T) {
	var s PageStates
	s.init(3*statesPerChunk, PageAbsent)
	const p = statesPerChunk + 17
	is := func(st PageState, marks PageMarks) {
		t.Helper()
		if a, b := s.State(p); a != st || b != marks {
			t.Fatalf("the page is %v with marks %d, want %v with %d", a, b, st, marks)
		}
		for _, other := range []uint64{p - 1, p + 1} {
			if a, b := s.State(other); a != PageAbsent || b != 0 {
				t.Fatalf("page %d beside it is %v, %d", other, a, b)
			}
		}
	}
	refused := func(what string, ok bool) {
		t.Helper()
		if ok {
			t.Fatalf("%s was allowed", what)
		}
	}
	allowed := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Fatalf("%s was refused", what)
		}
	}
	refused("arming an absent page", s.Arm(p))
	refused("claiming it", s.Claim(p))
	allowed("filling it", s.BeginFill(p))
	is(PageFilling, 0)
	refused("filling it twice", s.BeginFill(p))
	refused("arming a page that is being filled", s.Arm(p))
	if err := s.NextEpoch(PageAbsent); !errors.Is(err, ErrBusy) {
		t.Fatalf("another epoch meanwhile: %v", err)
	}
	allowed("ending that", s.EndFill(p, 0))
	is(PagePresent, 0)
	refused("filling a present page", s.BeginFill(p))
	allowed("arming it", s.Arm(p))
	refused("arming it twice", s.Arm(p))
	refused("disarming what nobody claimed", s.Disarm(p))
	allowed("claiming it", s.Claim(p))
	is(PagePresent, PageArmed|PageClaimed)
	refused("claiming it twice", s.Claim(p))
	allowed("giving it back armed", s.Unclaim(p))
	is(PagePresent, PageArmed)
	allowed("claiming it again", s.Claim(p))
	allowed("disarming it", s.Disarm(p))
	is(PagePresent, 0)
	s.Remove(p)
	s.Remove(p)
	is(PageRemoved, 0)
	refused("filling a removed page", s.BeginFill(p))
	refused("arming it", s.Arm(p))

	// Removed while it is being filled: the install loses.
	allowed("filling the next", s.BeginFill(p+5))
	s.Remove(p + 5)
	refused("ending that", s.EndFill(p+5, PageArmed))

	mustDo(t, s.NextEpoch(PagePresent))
	if st, _ := s.State(p); st != PagePresent || s.Epoch() != 1 {
		t.Errorf("in the next epoch it is %v", st)
	}
}

// R11 under concurrency: of all who begin to fill a page one wins, in each word.
func TestR11OneWinner(t *testing.T) {
	var s PageStates
	s.init(64, PageAbsent)
	var won [64]atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for page := range uint64(64) {
				if s.BeginFill(page) {
					won[page].Add(1)
					if !s.EndFill(page, PageArmed) {
						t.Errorf("page %d was lost", page)
					}
				}
			}
		})
	}
	wg.Wait()
	for page := range won {
		if st, marks := s.State(uint64(page)); won[page].Load() != 1 || st != PagePresent || marks != PageArmed {
			t.Errorf("page %d was won %d times and is %v", page, won[page].Load(), st)
		}
	}
}
