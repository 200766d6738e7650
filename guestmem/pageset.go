package guestmem

import (
	"math/bits"
	"sync/atomic"
)

// pageSet is a set of the 4 KiB pages of a region, in chunks that are made when
// first used: a clone that is never touched has none. Members are looked for
// with two loads; adding one that is there already writes nothing, so that a
// page that everybody stores to makes no cache line travel.
type pageSet struct {
	chunks []atomic.Pointer[pageChunk]
	nPages uint64
}

// A chunk is 4 KiB and has the pages of 128 MiB.
const (
	chunkWords = 512
	chunkPages = chunkWords * 64
)

type pageChunk [chunkWords]atomic.Uint64

func newPageSet(nPages uint64) pageSet {
	return pageSet{make([]atomic.Pointer[pageChunk], (nPages+chunkPages-1)/chunkPages), nPages}
}

// has reports whether a page is in the set.
//
// Preconditions: page < nPages.
func (s *pageSet) has(page uint64) bool {
	c := s.chunks[page/chunkPages].Load()
	return c != nil && c[page/64%chunkWords].Load()&(1<<(page%64)) != 0
}

// chunk returns the chunk of a page, making it if need be. It allocates, and so
// is called outside of sections.
func (s *pageSet) chunk(page uint64) *pageChunk {
	at := &s.chunks[page/chunkPages]
	if c := at.Load(); c != nil {
		return c
	}
	at.CompareAndSwap(nil, new(pageChunk))
	return at.Load()
}

// prepare makes the chunks of [first, first+n), so that mark need not.
func (s *pageSet) prepare(first, n uint64) {
	for at := first; at < first+n; at = (at/chunkPages + 1) * chunkPages {
		s.chunk(at)
	}
}

// mark adds a page whose chunk is there.
func (s *pageSet) mark(page uint64) {
	w, bit := &s.chunks[page/chunkPages].Load()[page/64%chunkWords], uint64(1)<<(page%64)
	if w.Load()&bit == 0 {
		w.Or(bit)
	}
}

// add adds [first, first+n).
func (s *pageSet) add(first, n uint64) {
	s.eachWord(first, n, func(page, mask uint64) {
		w := &s.chunk(page)[page/64%chunkWords]
		if w.Load()&mask != mask {
			w.Or(mask)
		}
	})
}

// remove takes [first, first+n) out.
func (s *pageSet) remove(first, n uint64) {
	s.eachWord(first, n, func(page, mask uint64) {
		if c := s.chunks[page/chunkPages].Load(); c != nil {
			w := &c[page/64%chunkWords]
			if w.Load()&mask != 0 {
				w.And(^mask)
			}
		}
	})
}

// any reports whether one of [first, first+n) is in the set.
func (s *pageSet) any(first, n uint64) (found bool) {
	s.eachWord(first, n, func(page, mask uint64) {
		c := s.chunks[page/chunkPages].Load()
		found = found || c != nil && c[page/64%chunkWords].Load()&mask != 0
	})
	return found
}

// eachWord calls fn for each word that has pages of [first, first+n): with the
// first page of the range in it, and the mask of those in it.
func (s *pageSet) eachWord(first, n uint64, fn func(page, mask uint64)) {
	for n > 0 {
		k := min(n, 64-first%64)
		fn(first, ^uint64(0)>>(64-k)<<(first%64))
		first, n = first+k, n-k
	}
}

// each calls fn for the words that have members: with the number of the first
// page of the word. Chunks that were never made are passed over.
func (s *pageSet) each(fn func(page, members uint64)) {
	for i := range s.chunks {
		if c := s.chunks[i].Load(); c != nil {
			for k := range c {
				if w := c[k].Load(); w != 0 {
					fn(uint64(i)*chunkPages+uint64(k)*64, w)
				}
			}
		}
	}
}

// take empties the set and calls fn with what was in it, as each does.
func (s *pageSet) take(fn func(page, members uint64)) {
	for i := range s.chunks {
		if c := s.chunks[i].Load(); c != nil {
			for k := range c {
				if c[k].Load() != 0 {
					fn(uint64(i)*chunkPages+uint64(k)*64, c[k].Swap(0))
				}
			}
		}
	}
}

// pageRuns joins pages that arrive in order to runs.
type pageRuns struct {
	first, n uint64
	yield    func(first, n uint64)
}

func (r *pageRuns) word(page, members uint64) {
	for members != 0 {
		skip := uint64(bits.TrailingZeros64(members))
		n := uint64(bits.TrailingZeros64(^(members >> skip)))
		r.add(page+skip, n)
		if skip+n >= 64 {
			return
		}
		members &= ^uint64(0) << (skip + n)
	}
}

func (r *pageRuns) add(first, n uint64) {
	if r.n > 0 && r.first+r.n == first {
		r.n += n
		return
	}
	r.flush()
	r.first, r.n = first, n
}

func (r *pageRuns) flush() {
	if r.n > 0 {
		r.yield(r.first, r.n)
	}
	r.n = 0
}
