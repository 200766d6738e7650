package guestmem

import (
	"math/bits"
	"sync/atomic"
)

// pageSet is a set of the 4 KiB pages of a region, in chunks that are made when
// first used: a clone that is never touched has none. Members are looked for
// with two loads; adding one that is there already writes nothing, so that a
// page that everybody stores to makes no cache line travel.
//
// Above the words there is one bit for each of them, so that who empties the set looks
// at what it has, and at one bit for each 256 KiB: it may be set for an empty word, and
// is set for every other one before whoever added a member goes on.
//
//	mark                              take
//	word: there, or added             summary: swapped for 0
//	summary: there, or added          words of its bits: swapped for 0
//
// Who finds its bit in the summary looked before the swap, and its member, which came
// before that, is in a word that is swapped after; who does not find it adds it for
// the next time. A member that somebody else has added, who did not get to the
// summary yet, is no exception: each looks for himself.
type pageSet struct {
	chunks []atomic.Pointer[pageChunk]
	nPages uint64
}

// A chunk has the pages of 128 MiB in 4 KiB, and its part of the summary in one cache
// line.
const (
	chunkWords = 512
	chunkPages = chunkWords * 64
)

type pageChunk struct {
	words   [chunkWords]atomic.Uint64
	summary [chunkWords / 64]atomic.Uint64 // a bit for each word
}

// note sets the bit of the summary for the word of a page that was just added.
func (c *pageChunk) note(page uint64) {
	w, bit := &c.summary[page/64%chunkWords/64], uint64(1)<<(page/64%64)
	if w.Load()&bit == 0 {
		w.Or(bit)
	}
}

func newPageSet(nPages uint64) pageSet {
	return pageSet{make([]atomic.Pointer[pageChunk], (nPages+chunkPages-1)/chunkPages), nPages}
}

// has reports whether a page is in the set.
//
// Preconditions: page < nPages.
func (s *pageSet) has(page uint64) bool {
	c := s.chunks[page/chunkPages].Load()
	return c != nil && c.words[page/64%chunkWords].Load()&(1<<(page%64)) != 0
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
	c := s.chunks[page/chunkPages].Load()
	w, bit := &c.words[page/64%chunkWords], uint64(1)<<(page%64)
	if w.Load()&bit == 0 {
		w.Or(bit)
	}
	c.note(page)
}

// add adds [first, first+n).
func (s *pageSet) add(first, n uint64) {
	s.eachWord(first, n, func(page, mask uint64) {
		c := s.chunk(page)
		w := &c.words[page/64%chunkWords]
		if w.Load()&mask != mask {
			w.Or(mask)
		}
		c.note(page)
	})
}

// remove takes [first, first+n) out.
func (s *pageSet) remove(first, n uint64) {
	s.eachWord(first, n, func(page, mask uint64) {
		if c := s.chunks[page/chunkPages].Load(); c != nil {
			w := &c.words[page/64%chunkWords]
			if w.Load()&mask != 0 {
				w.And(^mask)
			}
		}
	})
}

// any reports whether one of [first, first+n) is in the set. Chunks that were never
// made cost a look each: most of a large region that nobody has touched yet.
func (s *pageSet) any(first, n uint64) (found bool) {
	for n > 0 && !found {
		k := min(n, chunkPages-first%chunkPages)
		if c := s.chunks[first/chunkPages].Load(); c != nil {
			s.eachWord(first, k, func(page, mask uint64) {
				found = found || c.words[page/64%chunkWords].Load()&mask != 0
			})
		}
		first, n = first+k, n-k
	}
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
	s.eachNoted((*atomic.Uint64).Load, fn)
}

// take empties the set and calls fn with what was in it, as each does. It costs
// what is in the set, and a look at each chunk.
func (s *pageSet) take(fn func(page, members uint64)) {
	s.eachNoted(func(w *atomic.Uint64) uint64 {
		if w.Load() == 0 {
			return 0
		}
		return w.Swap(0)
	}, fn)
}

// eachNoted calls fn for what get returns of each word, those of the summary first.
func (s *pageSet) eachNoted(get func(*atomic.Uint64) uint64, fn func(page, members uint64)) {
	for i := range s.chunks {
		c := s.chunks[i].Load()
		if c == nil {
			continue
		}
		for k := range c.summary {
			for noted := get(&c.summary[k]); noted != 0; noted &= noted - 1 {
				word := k*64 + bits.TrailingZeros64(noted)
				if members := get(&c.words[word]); members != 0 {
					fn(uint64(i)*chunkPages+uint64(word)*64, members)
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
