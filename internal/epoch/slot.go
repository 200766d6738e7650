package epoch

import (
	"runtime"
	"sync/atomic"

	"github.com/guestmm/guestmm/internal/invariants"
)

// Space names an address space in slot words. Zero is none.
type Space uint32

// Item is something to reclaim, in the caller's encoding.
type Item uint64

// States of a slot's word; anything else is an open section.
const (
	wordFree  = 0
	wordHeld  = 1
	spaceBits = 32
)

// batchSize is how many items a slot gathers before they are handed over:
// large enough to spread the slot scan (50 ns for 64 idle slots) thin.
const batchSize = 64

// batchCap is batchSize, or so small under invariants that batches close all
// the time.
var batchCap = func() int {
	if invariants.Enabled {
		return 4
	}
	return batchSize
}()

// slot is where one reader announces its sections. Whoever has moved the word
// away from free owns the other fields until it stores free again.
type slot struct {
	word atomic.Uint64

	n       int // items in retired
	local   any // the caller's state for this slot; immutable
	retired [batchSize]Item

	_ [128]byte // keeps the next slot's word off this one's cache lines
}

func isSection(word uint64) bool { return word>>spaceBits != 0 }

// Handle is the right to use slots: an owned handle keeps one for itself, a
// pooled one is lent for one call and may find itself on another slot each
// time. One goroutine at a time.
type Handle struct {
	slot   *slot
	domain *Domain
	count  uint32 // sections begun; makes the word of each its own
	owned  bool

	// Handles made one after the other lie side by side, and each section of one
	// writes its count: without this, two readers of two cores share a line.
	_ [128 - 24]byte
}

// nextWord returns the next section's word. Two pooled handles may make the same
// word for one slot; a barrier then waits for one section too many, once.
func (h *Handle) nextWord(s Space) uint64 {
	h.count++
	return uint64(s)<<spaceBits | uint64(h.count)
}

// Enter begins a read section of s.
func (h *Handle) Enter(s Space) {
	if invariants.Enabled {
		enterSection()
	}
	if !h.slot.word.CompareAndSwap(wordFree, h.nextWord(s)) {
		h.enterSlow(s)
	}
}

// enterSlow waits out whoever borrows an owned handle's slot (Drain), or takes
// another slot for a pooled handle.
func (h *Handle) enterSlow(s Space) {
	for {
		if h.owned {
			runtime.Gosched()
		} else {
			h.slot = h.domain.nextPooled()
		}
		if h.slot.word.CompareAndSwap(wordFree, h.nextWord(s)) {
			return
		}
		if !h.owned {
			h.domain.yieldWhenCrowded()
		}
	}
}

// Exit ends the section and frees the slot.
func (h *Handle) Exit() {
	if invariants.Enabled {
		exitSection()
	}
	storeRelease(&h.slot.word, wordFree)
}

// Leave ends the section and keeps the slot, so that its local state can be
// refilled or its batch flushed.
func (h *Handle) Leave() {
	if invariants.Enabled {
		exitSection()
	}
	storeRelease(&h.slot.word, wordHeld)
}

// Return begins a section again after Leave or Hold.
func (h *Handle) Return(s Space) {
	if invariants.Enabled {
		enterSection()
	}
	h.slot.word.Store(h.nextWord(s))
}

// Hold takes the slot without beginning a section.
func (h *Handle) Hold() {
	for !h.slot.word.CompareAndSwap(wordFree, wordHeld) {
		if h.owned {
			runtime.Gosched()
			continue
		}
		h.slot = h.domain.nextPooled()
		h.domain.yieldWhenCrowded()
	}
}

// Free gives the slot back after Leave or Hold.
func (h *Handle) Free() { storeRelease(&h.slot.word, wordFree) }

// Local returns what newLocal made for the slot.
//
// Preconditions: the slot is held or in a section.
func (h *Handle) Local() any { return h.slot.local }

// HasRoom reports whether n more items can be retired before a Flush.
//
// Preconditions: the slot is held or in a section.
func (h *Handle) HasRoom(n int) bool { return h.slot.n+n <= batchCap }

// Retire hands over an item that the caller has made unreachable.
//
// Preconditions: the slot is held or in a section, and HasRoom(1).
func (h *Handle) Retire(it Item) {
	s := h.slot
	s.retired[s.n] = it
	s.n++
}
