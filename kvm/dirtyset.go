package kvm

import "math/bits"

// dirtySet is a set of pages, by number, in chunks of 16 MiB of memory: sparse
// where what is dirty is.
type dirtySet map[uint64]*dirtyChunk

const chunkPages = 4096

type dirtyChunk [chunkPages / 64]uint64

func (s dirtySet) chunk(page uint64) *dirtyChunk {
	c := s[page/chunkPages]
	if c == nil {
		c = new(dirtyChunk)
		s[page/chunkPages] = c
	}
	return c
}

func (s dirtySet) add(page uint64) {
	s.chunk(page)[page%chunkPages/64] |= 1 << (page % 64)
}

// addWords adds the pages whose bits are set, bit 0 being first.
func (s dirtySet) addWords(first uint64, words []uint64) {
	for i, w := range words {
		for ; w != 0; w &= w - 1 {
			s.add(first + uint64(i)*64 + uint64(bits.TrailingZeros64(w)))
		}
	}
}

// addFrom adds those pages of another set that lie from first to first+n.
func (s dirtySet) addFrom(from dirtySet, first, n uint64) {
	for index, c := range from {
		for i, w := range c {
			base := index*chunkPages + uint64(i)*64
			if w &= maskOf(base, first, first+n); w != 0 {
				s.chunk(base)[i] |= w
			}
		}
	}
}

func (s dirtySet) remove(page uint64) {
	if c := s[page/chunkPages]; c != nil {
		c[page%chunkPages/64] &^= 1 << (page % 64)
	}
}

// extract takes the pages from first to first+n out, one by one. It costs the
// chunks that the set has, or the range has, whichever is less.
func (s dirtySet) extract(first, n uint64, each func(page uint64)) {
	if n == 0 || len(s) == 0 {
		return
	}
	from, to := first/chunkPages, (first+n-1)/chunkPages
	if uint64(len(s)) < to-from {
		for index := range s {
			if index >= from && index <= to {
				s.extractChunk(index, first, n, each)
			}
		}
		return
	}
	for index := from; index <= to; index++ {
		if s[index] != nil {
			s.extractChunk(index, first, n, each)
		}
	}
}

func (s dirtySet) extractChunk(index, first, n uint64, each func(page uint64)) {
	c, left := s[index], uint64(0)
	for i, w := range c {
		base := index*chunkPages + uint64(i)*64
		take := w & maskOf(base, first, first+n)
		c[i] = w &^ take
		left |= c[i]
		for ; take != 0; take &= take - 1 {
			each(base + uint64(bits.TrailingZeros64(take)))
		}
	}
	if left == 0 {
		delete(s, index)
	}
}

// maskOf returns the bits of the word that begins at page base which lie in
// [from, to).
func maskOf(base, from, to uint64) uint64 {
	mask := ^uint64(0)
	if from > base {
		if from-base >= 64 {
			return 0
		}
		mask &= ^uint64(0) << (from - base)
	}
	if to < base+64 {
		if to <= base {
			return 0
		}
		mask &= ^uint64(0) >> (base + 64 - to)
	}
	return mask
}
