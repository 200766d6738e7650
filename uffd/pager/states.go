package pager

import "sync/atomic"

// A state is what is known of one page. It moves forward only (R11):
//
//	          claim              settle
//	absent ───────────► filling ────────► present
//	   │  ◄───────────     │                 │
//	   │    giveBack       │                 │  the guest gave the page back
//	   └──────────────► removed ◄────────────┘
//
// A claim that is given back was never seen by anybody: the page is as absent
// as before. removed is final: from then on the page is zeroes whenever it is
// not there, whatever was on its way.
type state uint32

const (
	absent state = iota
	filling
	present
	removed

	stateMask state = 3
	// armed: installed write-protected, and not written since.
	armed state = 4
	// touched: somebody has faulted on it while that was being recorded.
	touched state = 8
)

const (
	bitsPerPage  = 4
	pagesPerWord = 32 / bitsPerPage
	pageMask     = 1<<bitsPerPage - 1
)

// pages are the states of a region's pages: four bits each, so that 1 GiB
// takes 128 KiB. Every field is atomic; who may make which step is said with
// the methods.
type pages struct {
	n     int
	words []atomic.Uint32
	// in keeps words mapped, if they are not on the heap. Whoever uses pages
	// has a guest in hand, which has the ledger and so this.
	in *shared
	// unsettled counts the pages that are neither present nor removed.
	unsettled atomic.Int64
}

func newPages(n int) *pages {
	p := &pages{n: n, words: make([]atomic.Uint32, (n+pagesPerWord-1)/pagesPerWord)}
	p.unsettled.Store(int64(n))
	return p
}

func (p *pages) at(i int) state {
	return state(p.words[i/pagesPerWord].Load()>>shiftOf(i)) & pageMask
}

func shiftOf(i int) uint { return uint(i%pagesPerWord) * bitsPerPage }

// edit replaces page i's bits by what f makes of them, and returns the bits
// from before. f returning its argument is no edit.
func (p *pages) edit(i int, f func(state) state) state {
	w, shift := &p.words[i/pagesPerWord], shiftOf(i)
	for {
		old := w.Load()
		was := state(old>>shift) & pageMask
		now := f(was)
		if now == was || w.CompareAndSwap(old, old&^(pageMask<<shift)|uint32(now)<<shift) {
			return was
		}
	}
}

// claim makes an absent page filling and returns absent; else it returns the
// state that the page has. Who has claimed settles the page or gives it back.
func (p *pages) claim(i int) state {
	return p.edit(i, func(s state) state {
		if s&stateMask == absent {
			return s | filling
		}
		return s
	}) & stateMask
}

// settle makes a claimed page present. It does nothing to one that has been
// removed meanwhile: a late install loses.
func (p *pages) settle(i int, mark state) {
	was := p.edit(i, func(s state) state {
		if s&stateMask == filling {
			return s&^stateMask | present | mark
		}
		return s
	})
	if was&stateMask == filling {
		p.unsettled.Add(-1)
	}
}

// giveBack ends a claim without an install. Whoever gives a claim back wakes
// who waits for the page, since their faults were taken for served.
func (p *pages) giveBack(i int) {
	p.edit(i, func(s state) state {
		if s&stateMask == filling {
			return s &^ stateMask
		}
		return s
	})
}

// remove makes pages [first, end) removed, whatever they were.
func (p *pages) remove(first, end int) {
	for i := first; i < end; i++ {
		was := p.edit(i, func(s state) state { return s&^(stateMask|armed) | removed })
		if s := was & stateMask; s == absent || s == filling {
			p.unsettled.Add(-1)
		}
	}
}

// touch marks page i as faulted on, and reports whether it was not before.
func (p *pages) touch(i int) bool {
	return p.edit(i, func(s state) state { return s | touched })&touched == 0
}

// disarm takes the mark of a write-protected page away.
func (p *pages) disarm(i int) { p.edit(i, func(s state) state { return s &^ armed }) }

// recover gives every claim back. Nobody may hold one any more.
func (p *pages) recover() {
	for w := range p.words {
		if p.words[w].Load() == 0 {
			continue // all absent: most of a fresh region
		}
		for i := w * pagesPerWord; i < min((w+1)*pagesPerWord, p.n); i++ {
			p.giveBack(i)
		}
	}
}

// clone returns a copy in which every claim has been given back.
func (p *pages) clone() *pages {
	c := newPages(p.n)
	for i := range p.words {
		c.words[i].Store(p.words[i].Load())
	}
	c.recover()
	c.recount()
	return c
}

// recount makes unsettled right after the words have been written directly.
func (p *pages) recount() {
	n := 0
	for i := range p.n {
		if s := p.at(i) & stateMask; s == absent || s == filling {
			n++
		}
	}
	p.unsettled.Store(int64(n))
}
