package guestmem

import (
	"math/bits"
	"sync/atomic"
)

// armMap says what is armed of a region and what of that is claimed, in the Go
// heap: the kernel's own bits are not asked. It has the marks of R11 in a form that
// one store changes for 32 pages, since arming a gigabyte must not cost more than the
// kernel's part of it.
//
// A unit is what is armed and copied at a time: a host page. Units
//
//	          arm, in a window            claim, by whoever copies
//	unarmed ────────────────► armed ◄──────────────────────────► armed, claimed
//	   ▲                                unclaim: the sweep                │
//	   └──────────────────────────────────────────────────────────────────┘
//	                    disarmed: a store is about to happen
//
// An armed unit is copied to every open snapshot, or is read where it is; nobody
// stores to it: vCPUs and system calls are held up by the kernel, and Go code finds it
// neither in the region's set of writable pages, nor can enter it there.
type armMap struct {
	unit  uint64 // 4 KiB pages in one unit
	n     uint64 // units
	words []atomic.Uint64
}

// A word has 32 units: armed in the low half, claimed in the high half.
const unitsPerWord = 32

func newArmMap(nPages, unit uint64) *armMap {
	n := nPages / unit
	return &armMap{unit: unit, n: n, words: make([]atomic.Uint64, (n+unitsPerWord-1)/unitsPerWord)}
}

// place returns the word and the bit of the unit of a page.
func (a *armMap) place(page uint64) (word uint64, bit uint32) {
	u := page / a.unit
	return u / unitsPerWord, 1 << (u % unitsPerWord)
}

// all is the bits of a word that stand for units.
func (a *armMap) all(word uint64) uint32 {
	if left := a.n - word*unitsPerWord; left < unitsPerWord {
		return 1<<left - 1
	}
	return ^uint32(0)
}

func (a *armMap) armed(word uint64) uint32 { return uint32(a.words[word].Load()) }

// claim takes those of the armed units wanted that nobody else has, for the
// caller to copy and then to unclaim or to call disarmed.
func (a *armMap) claim(word uint64, wanted uint32) uint32 {
	w := &a.words[word]
	for {
		v := w.Load()
		got := wanted & uint32(v) &^ uint32(v>>32)
		if got == 0 || w.CompareAndSwap(v, v|uint64(got)<<32) {
			return got
		}
	}
}

func (a *armMap) unclaim(word uint64, claimed uint32) { a.words[word].And(^(uint64(claimed) << 32)) }

func (a *armMap) disarmed(word uint64, claimed uint32) {
	a.words[word].And(^(uint64(claimed)<<32 | uint64(claimed)))
}

// clear says that nothing is armed.
//
// Preconditions: the gate is held exclusively.
func (a *armMap) clear() {
	for i := range a.words {
		a.words[i].Store(0)
	}
}

// any reports whether a unit of the pages [first, first+n) is armed.
func (a *armMap) any(first, n uint64) bool {
	for word, mask := range a.within(first, n) {
		if a.armed(word)&mask != 0 {
			return true
		}
	}
	return false
}

// within yields the words that have units of the pages [first, first+n), and
// which of their units those are.
func (a *armMap) within(first, n uint64) func(yield func(word uint64, mask uint32) bool) {
	return func(yield func(uint64, uint32) bool) {
		if n == 0 {
			return
		}
		from, to := first/a.unit, (first+n-1)/a.unit+1
		for from < to {
			word := from / unitsPerWord
			end := min(to, (word+1)*unitsPerWord)
			mask := uint32((1<<(end-from) - 1) << (from % unitsPerWord))
			if !yield(word, mask) {
				return
			}
			from = end
		}
	}
}

// eachUnitRun calls fn for the runs of units in a mask, as pages of the region.
func (a *armMap) eachUnitRun(word uint64, mask uint32, fn func(first, n uint64)) {
	for mask != 0 {
		skip := bits.TrailingZeros32(mask)
		n := bits.TrailingZeros32(^(mask >> skip))
		fn((word*unitsPerWord+uint64(skip))*a.unit, uint64(n)*a.unit)
		if skip+n >= unitsPerWord {
			return
		}
		mask &= ^uint32(0) << (skip + n)
	}
}

// anyArmed reports whether a snapshot has armed one of the pages [first, first+n).
func (r *Region) anyArmed(first, n uint64) bool {
	a := r.arms.Load()
	return a != nil && a.any(first, n)
}
