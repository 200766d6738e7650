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

	wordsPerChunk = 1024
	pagesPerChunk = wordsPerChunk * pagesPerWord // 32 MiB of small pages
)

// pages are the states of a region's pages: four bits each, so that 1 GiB
// takes 128 KiB. Every field is atomic; who may make which step is said with
// the methods.
//
// They are kept in chunks that are made when one of their pages takes a step of
// its own: a guest of terabytes begins with a few pointers. nil is a chunk of
// absent pages; others that are all the same, as most of a sparse image is, are
// one of the uniform ones. Those of a ledger in a file are all in flat, which is
// part of that file.
type pages struct {
	n      int
	chunks []atomic.Pointer[chunk]
	flat   []atomic.Uint32 // immutable once served
	// in keeps flat mapped. Whoever uses pages has a guest in hand, which has the
	// ledger and so this.
	in *shared
	// lasting is armed where that is a wish that outlives the page: whatever is
	// there next is armed too. Immutable once served.
	lasting state
	// unsettled counts the pages that are neither present nor removed.
	unsettled atomic.Int64
}

func newPages(n int) *pages {
	p := &pages{n: n, chunks: make([]atomic.Pointer[chunk], (n+pagesPerChunk-1)/pagesPerChunk)}
	p.unsettled.Store(int64(n))
	return p
}

func (p *pages) at(i int) state {
	return state(p.look(i/pagesPerWord).Load()>>shiftOf(i)) & pageMask
}

func shiftOf(i int) uint { return uint(i%pagesPerWord) * bitsPerPage }

// edit replaces page i's bits by what f makes of them, and returns the bits
// from before. f returning its argument is no edit.
func (p *pages) edit(i int, f func(state) state) state {
	if was := p.at(i); f(was) == was {
		return was
	}
	w, shift := p.word(i/pagesPerWord), shiftOf(i)
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
	keep := p.lasting
	p.editRun(first, end,
		func(s state) state { return s&^(stateMask|armed) | s&keep | removed },
		func(s state, n int) {
			if s &= stateMask; s == absent || s == filling {
				p.unsettled.Add(int64(-n))
			}
		})
}

// areZero makes those of pages [first, end) removed that are absent.
func (p *pages) areZero(first, end int) {
	f := func(s state) state {
		if s&stateMask == absent {
			return s | removed
		}
		return s
	}
	count := func(s state, n int) {
		if s&stateMask == absent {
			p.unsettled.Add(int64(-n))
		}
	}
	for i := first; i < end; {
		stop := min(end, (i/pagesPerChunk+1)*pagesPerChunk)
		if p.flat == nil && p.chunks[i/pagesPerChunk].Load().isShared() && i%pagesPerChunk == 0 && (stop == p.n || stop-i == pagesPerChunk) {
			p.editRun(i, stop, f, count) // as a whole
			i = stop
			continue
		}
		for ; i < stop && i%pagesPerWord != 0; i++ {
			count(p.edit(i, f), 1)
		}
		for ; i+pagesPerWord <= stop; i += pagesPerWord {
			if p.word(i/pagesPerWord).CompareAndSwap(0, uint32(removed)*everyPage) {
				p.unsettled.Add(-pagesPerWord)
			} else {
				p.editRun(i, i+pagesPerWord, f, count)
			}
		}
		for ; i < stop; i++ {
			count(p.edit(i, f), 1)
		}
	}
}

// arm has pages [first, end) be armed, those too that are not there yet.
func (p *pages) arm(first, end int) {
	p.eachWordOf(first, end, func(s state) state { return s | armed }, func(w *atomic.Uint32) { w.Or(uint32(armed) * everyPage) })
}

// disarmRun ends that.
func (p *pages) disarmRun(first, end int) {
	p.eachWordOf(first, end, func(s state) state { return s &^ armed }, func(w *atomic.Uint32) { w.And(^(uint32(armed) * everyPage)) })
}

// touch marks page i as faulted on, and reports whether it was not before.
func (p *pages) touch(i int) bool {
	return p.edit(i, func(s state) state { return s | touched })&touched == 0
}

// disarm takes the mark of a write-protected page away.
func (p *pages) disarm(i int) { p.edit(i, func(s state) state { return s &^ armed }) }

// recover gives every claim back. Nobody may hold one any more.
func (p *pages) recover() {
	p.eachOwnWord(func(w int) {
		if p.look(w).Load() == 0 {
			return // all absent
		}
		for i := w * pagesPerWord; i < min((w+1)*pagesPerWord, p.n); i++ {
			p.giveBack(i)
		}
	})
}

// clone returns a copy in which every claim has been given back.
func (p *pages) clone() *pages {
	c := newPages(p.n)
	c.lasting = p.lasting
	for k := range p.chunks {
		if from := p.chunks[k].Load(); from.isShared() {
			c.chunks[k].Store(from)
		}
	}
	p.eachOwnWord(func(w int) { c.word(w).Store(p.look(w).Load()) })
	c.recover()
	c.recount()
	return c
}

// recount makes unsettled right after the words have been written directly.
func (p *pages) recount() {
	n := 0
	for i := 0; i < p.n; i++ {
		if i%pagesPerChunk == 0 && p.flat == nil {
			stop := min(i+pagesPerChunk, p.n)
			if c := p.chunks[i/pagesPerChunk].Load(); c.isShared() {
				if c.all()&stateMask == absent {
					n += stop - i
				}
				i = stop - 1
				continue
			}
		}
		if s := p.at(i) & stateMask; s == absent || s == filling {
			n++
		}
	}
	p.unsettled.Store(int64(n))
}
