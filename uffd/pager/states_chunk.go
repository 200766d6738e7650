package pager

import "sync/atomic"

type chunk [wordsPerChunk]atomic.Uint32

var (
	// Chunks whose pages are all in the same state. Nobody writes them: a page
	// that is to change gets a copy first.
	zeroChunk        = uniform(removed)
	armedChunk       = uniform(absent | armed)
	armedZeroesChunk = uniform(removed | armed)
	// absentWord is what is read of chunks that are not there. Nobody writes it.
	absentWord atomic.Uint32
)

// everyPage is a word whose pages all have state 1.
const everyPage = 0x11111111

func uniform(s state) *chunk {
	c := new(chunk)
	for i := range c {
		c[i].Store(uint32(s) * everyPage)
	}
	return c
}

// isShared says that a chunk is nobody's own.
func (c *chunk) isShared() bool {
	return c == nil || c == zeroChunk || c == armedChunk || c == armedZeroesChunk
}

// all returns the state of the pages of a uniform chunk.
func (c *chunk) all() state {
	if c == nil {
		return absent
	}
	return state(c[0].Load()) & pageMask
}

// with returns the chunk that has the state f makes of this one's, if that is
// one of the uniform ones.
func (c *chunk) with(f func(state) state) (*chunk, bool) {
	if !c.isShared() {
		return nil, false
	}
	switch f(c.all()) {
	case absent:
		return nil, true
	case removed:
		return zeroChunk, true
	case absent | armed:
		return armedChunk, true
	case removed | armed:
		return armedZeroesChunk, true
	}
	return nil, false
}

// nWords returns how many words the states take.
func (p *pages) nWords() int { return (p.n + pagesPerWord - 1) / pagesPerWord }

// look returns word w for reading.
func (p *pages) look(w int) *atomic.Uint32 {
	if p.flat != nil {
		return &p.flat[w]
	}
	if c := p.chunks[w/wordsPerChunk].Load(); c != nil {
		return &c[w%wordsPerChunk]
	}
	return &absentWord
}

// word returns word w for writing.
func (p *pages) word(w int) *atomic.Uint32 {
	if p.flat != nil {
		return &p.flat[w]
	}
	at := &p.chunks[w/wordsPerChunk]
	c := at.Load()
	for c.isShared() {
		at.CompareAndSwap(c, uniform(c.all()))
		c = at.Load()
	}
	return &c[w%wordsPerChunk]
}

// editRun is edit of pages [first, end). Chunks of which no page has taken a step
// of its own yet are exchanged as a whole. was is told of n pages from before.
func (p *pages) editRun(first, end int, f func(state) state, was func(s state, n int)) {
	for i := first; i < end; i++ {
		if stop := min(i+pagesPerChunk, p.n); i%pagesPerChunk == 0 && stop <= end && p.flat == nil {
			at := &p.chunks[i/pagesPerChunk]
			c := at.Load()
			if to, ok := c.with(f); ok && at.CompareAndSwap(c, to) {
				was(c.all(), stop-i)
				i = stop - 1
				continue
			}
		}
		was(p.edit(i, f), 1)
	}
}

// eachWordOf is editRun with word doing what f does, for eight pages at once.
func (p *pages) eachWordOf(first, end int, f func(state) state, word func(*atomic.Uint32)) {
	none := func(state, int) {}
	for i := first; i < end; {
		stop := min(end, (i/pagesPerChunk+1)*pagesPerChunk)
		if p.flat != nil || !p.chunks[i/pagesPerChunk].Load().isShared() {
			for ; i < stop && i%pagesPerWord != 0; i++ {
				p.edit(i, f)
			}
			for ; i+pagesPerWord <= stop; i += pagesPerWord {
				word(p.word(i / pagesPerWord))
			}
		}
		p.editRun(i, stop, f, none)
		i = stop
	}
}

// eachOwnWord calls f for the words of chunks that were made.
func (p *pages) eachOwnWord(f func(w int)) {
	for w := 0; w < p.nWords(); w++ {
		if p.flat == nil && w%wordsPerChunk == 0 {
			if c := p.chunks[w/wordsPerChunk].Load(); c.isShared() {
				w += wordsPerChunk - 1
				continue
			}
		}
		f(w)
	}
}

// moveTo has the states be in words from now on, which are part of in. Nobody
// uses them yet.
func (p *pages) moveTo(words []atomic.Uint32, in *shared) {
	for w := range words {
		words[w].Store(p.look(w).Load())
	}
	p.adopt(words, in)
}

// adopt has the states be what words have, which are part of in.
func (p *pages) adopt(words []atomic.Uint32, in *shared) { p.chunks, p.flat, p.in = nil, words, in }
