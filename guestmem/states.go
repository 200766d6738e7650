package guestmem

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/internal/invariants"
)

// PageState is how far a page of a region has come (R11).
type PageState uint8

// States of a page. They only move forward within an epoch of the region.
const (
	PageAbsent  PageState = iota // not there yet: whoever needs it fetches it
	PageFilling                  // somebody installs it
	PagePresent
	PageRemoved // given back: reads as zero
)

var pageStateNames = [...]string{"absent", "filling", "present", "removed"}

func (s PageState) String() string { return pageStateNames[s&3] }

// PageMarks are marks on a present page.
type PageMarks uint8

// Marks of a page.
const (
	// PageArmed: write-protected by us, in order to be told of the next write.
	PageArmed PageMarks = 1 << iota
	// PageClaimed: somebody copies the armed page before it is written.
	PageClaimed
)

// PageStates are the states of a region's pages, four bits each, in the Go heap.
// Whoever installs, removes or arms pages says so here; every step is a
// compare-and-swap, and who comes late loses.
//
//	absent ──BeginFill──► filling ──EndFill──► present ──Remove──► removed
//	   └──────────────────────Remove─────────────┴──► removed
//	present: Arm ► armed: Claim ► armed+claimed: Disarm ► present
//
// Safe for concurrent use.
type PageStates struct {
	words   []atomic.Pointer[stateChunk] // made when one of its pages leaves its first state
	nPages  uint64
	initial atomic.Uint32 // PageState of pages whose chunk was not made
	epoch   atomic.Uint64
	filling atomic.Int64 // pages between BeginFill and EndFill
}

const (
	statesPerWord  = 16
	statesPerChunk = 512 * statesPerWord
)

// stateChunk has each page's state and marks, exclusive-or'd with the first state.
type stateChunk [512]atomic.Uint64

func (s *PageStates) init(nPages uint64, initial PageState) {
	s.nPages = nPages
	s.words = make([]atomic.Pointer[stateChunk], (nPages+statesPerChunk-1)/statesPerChunk)
	s.initial.Store(uint32(initial))
}

// State returns the state and marks of a page of the region, counted from its
// base in 4 KiB.
func (s *PageStates) State(page uint64) (PageState, PageMarks) {
	v := s.load(page)
	return PageState(v & 3), PageMarks(v >> 2)
}

func (s *PageStates) load(page uint64) uint64 {
	v := uint64(s.initial.Load())
	if c := s.words[page/statesPerChunk].Load(); c != nil {
		v ^= c[page/statesPerWord%512].Load() >> (page % statesPerWord * 4) & 15
	}
	return v
}

// swap replaces a page's value, and returns false if it was not old.
func (s *PageStates) swap(page, old, next uint64) bool {
	at := &s.words[page/statesPerChunk]
	c := at.Load()
	if c == nil {
		at.CompareAndSwap(nil, new(stateChunk))
		c = at.Load()
	}
	w, shift := &c[page/statesPerWord%512], page%statesPerWord*4
	for {
		v := w.Load()
		if uint64(s.initial.Load())^v>>shift&15 != old {
			return false
		}
		if w.CompareAndSwap(v, v^(old^next)<<shift) {
			return true
		}
	}
}

// BeginFill claims an absent page for the caller to install. False: somebody
// else has, or it is there, or removed.
func (s *PageStates) BeginFill(page uint64) bool {
	if !s.swap(page, uint64(PageAbsent), uint64(PageFilling)) {
		return false
	}
	s.filling.Add(1)
	return true
}

// EndFill makes a page present that the caller has begun to fill, with marks if
// it was installed armed. False: it was removed meanwhile; what was installed
// is to be taken away again.
func (s *PageStates) EndFill(page uint64, marks PageMarks) bool {
	if invariants.Enabled {
		if st, _ := s.State(page); st != PageFilling && st != PageRemoved {
			panic(fmt.Sprintf("guestmem: the filling of page %d ends, which is %v", page, st))
		}
	}
	s.filling.Add(-1)
	return s.swap(page, uint64(PageFilling), uint64(PagePresent)|uint64(marks)<<2)
}

// Remove says that a page was given back, whatever it was before.
func (s *PageStates) Remove(page uint64) {
	for {
		v := s.load(page)
		if v == uint64(PageRemoved) || s.swap(page, v, uint64(PageRemoved)) {
			return
		}
	}
}

// Arm marks a present page. False: it is not present, or armed already.
func (s *PageStates) Arm(page uint64) bool {
	return s.swap(page, uint64(PagePresent), uint64(PagePresent)|uint64(PageArmed)<<2)
}

// Claim marks an armed page for the caller to copy. False: it is not armed, or
// somebody else has it.
func (s *PageStates) Claim(page uint64) bool {
	return s.swap(page, uint64(PagePresent)|uint64(PageArmed)<<2, uint64(PagePresent)|uint64(PageArmed|PageClaimed)<<2)
}

// Disarm takes both marks off a page that the caller has claimed.
func (s *PageStates) Disarm(page uint64) bool {
	return s.swap(page, uint64(PagePresent)|uint64(PageArmed|PageClaimed)<<2, uint64(PagePresent))
}

// Unclaim gives a claimed page back armed, as a sweeper leaves it.
func (s *PageStates) Unclaim(page uint64) bool {
	return s.swap(page, uint64(PagePresent)|uint64(PageArmed|PageClaimed)<<2, uint64(PagePresent)|uint64(PageArmed)<<2)
}

// settled is ErrBusy unless every page is present or removed, and none armed.
func (s *PageStates) settled() error {
	for page := range s.nPages {
		if st, marks := s.State(page); st < PagePresent || marks != 0 {
			return fmt.Errorf("page %#x is %v, with marks %d: %w", page, st, marks, ErrBusy)
		}
	}
	return nil
}

// Epoch returns the number of the region's epoch.
func (s *PageStates) Epoch() uint64 { return s.epoch.Load() }

// NextEpoch begins an epoch in which every page is in one state.
//
// Preconditions: nobody else uses the states, as while the region is not in use
// by guests. A page that is being filled makes it fail.
func (s *PageStates) NextEpoch(initial PageState) error {
	if n := s.filling.Load(); n != 0 {
		return fmt.Errorf("%d pages are being filled: %w", n, ErrBusy)
	}
	for i := range s.words {
		s.words[i].Store(nil)
	}
	s.initial.Store(uint32(initial))
	s.epoch.Add(1)
	return nil
}
