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

// armPlan is what a window arms of a region: what is neither armed nor pinned.
type armPlan struct {
	r       *Region
	a       *armMap
	pinned  []uint32 // by word; nil: none
	written []uint32 // by word: what was not armed
	runs    []armRun
	armed   uint64 // units that are unarmed now
}

type armRun struct{ first, n uint64 } // pages

// An ioctl costs 0.75 µs and then 0.027 µs for each page, so that going over this
// many pages that are armed already costs what another call would. Where a region
// was written all over, the runs become one.
const maxArmedGap = 24

// plan makes the plan of a region.
//
// Preconditions: the gate is held exclusively.
func (a *armMap) plan(r *Region) *armPlan {
	p := &armPlan{r: r, a: a, written: make([]uint32, len(a.words))}
	r.HeldForWriting(func(first, n uint64) {
		if p.pinned == nil {
			p.pinned = make([]uint32, len(a.words))
		}
		for word, mask := range a.within(first, n) {
			// What is armed still is of a slice that is about to be given out:
			// it disarms the page before, and that copies it for all.
			p.pinned[word] |= mask &^ a.armed(word)
		}
	})
	for i := range a.words {
		word := uint64(i)
		p.written[i] = a.all(word) &^ a.armed(word)
		todo := p.written[i]
		if p.pinned != nil {
			todo &^= p.pinned[i]
		}
		if todo == 0 {
			continue
		}
		p.armed += uint64(bits.OnesCount32(todo))
		a.eachUnitRun(word, todo, p.add)
	}
	return p
}

// add appends a run, or lengthens the last one where that is cheaper.
func (p *armPlan) add(first, n uint64) {
	if k := len(p.runs) - 1; k >= 0 {
		last := &p.runs[k]
		if end := last.first + last.n; first-end <= maxArmedGap*p.a.unit && !p.anyPinned(end, first-end) {
			last.n = first + n - last.first
			return
		}
	}
	p.runs = append(p.runs, armRun{first, n})
}

func (p *armPlan) anyPinned(first, n uint64) bool {
	if p.pinned == nil {
		return false
	}
	for word, mask := range p.a.within(first, n) {
		if p.pinned[word]&mask != 0 {
			return true
		}
	}
	return false
}

// commit says that the runs are armed.
func (p *armPlan) commit() {
	for i := range p.a.words {
		v := p.a.all(uint64(i))
		if p.pinned != nil {
			v &^= p.pinned[i]
		}
		p.a.words[i].Store(uint64(v))
	}
}
