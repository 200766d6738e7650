package cow

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// BlockFrames is how many frames a block has: 512 that follow each other, the
// first of which is aligned, so that one 2 MiB leaf can lead to all of them.
const BlockFrames = 512

// A block that 2 MiB leaves lead to is counted as the table of 4 KiB leaves would
// be whose place it takes: the block has one count, of the 2 MiB leaves that lead
// to it, and holds one reference to each of its frames, like such a table. So to
// share it is one addition and not 512, as with a table, and to split it is to
// write that table down:
//
//	count of the block    1: the block's references become the table's (a move)
//	                    > 1: each frame gains one for the table, and the block
//	                         loses one (a copy)
//
// Either way each frame's count is the number of 4 KiB leaves, slots of objects
// and pins that lead to it, and one more while any 2 MiB leaf does: a page that
// one address space has split off and another still has in its block has two,
// and is copied by the first write. No frame of a block that is counted is free.
//
//	block  [ 2 ]──────────────┐ 1 each       A and B: a 2 MiB leaf each
//	        A, B       frames [2][1][1] ...  C: a table, and of its 512 pages one
//	                           └ C           is left
type blocks struct {
	firstBlock uint64          // number of the first; immutable
	counts     []atomic.Uint32 // of 2 MiB leaves that lead to each
}

func blockOf(f addr.PFN) uint64 { return uint64(f) / BlockFrames }

func newBlocks(first addr.PFN, n uint64) blocks {
	b := blocks{firstBlock: blockOf(first)}
	if n > 0 {
		b.counts = make([]atomic.Uint32, blockOf(first+addr.PFN(n-1))-b.firstBlock+1)
	}
	return b
}

func (b *blocks) of(f addr.PFN) *atomic.Uint32 { return &b.counts[blockOf(f)-b.firstBlock] }

// BlockOf returns the number of 2 MiB leaves that lead to the block of f.
func (c *Counts) BlockOf(f addr.PFN) uint32 { return c.blocks.of(f).Load() }

// EachBlock calls fn with every block and the number of its 2 MiB leaves.
func (c *Counts) EachBlock(fn func(first addr.PFN, leaves uint32)) {
	for i := range c.blocks.counts {
		fn(addr.PFN(c.blocks.firstBlock+uint64(i))*BlockFrames, c.blocks.counts[i].Load())
	}
}

// ShareBlock adds one 2 MiB leaf.
//
// Preconditions: the caller has one.
func (c *Counts) ShareBlock(f addr.PFN) { c.blocks.of(f).Add(1) }

// ExclusiveBlock reports whether one 2 MiB leaf leads to the block and nothing
// else to any of its frames.
//
// The block's count is loaded before those of the frames: who splits raises these
// first and lets the block go then, so that its references are seen in one of the
// two places.
func (c *Counts) ExclusiveBlock(f addr.PFN) bool {
	if c.blocks.of(f).Load() != 1 {
		return false
	}
	for i, end := c.index(f), c.index(f)+BlockFrames; i < end; {
		if i%lanes == 0 && i+lanes <= end {
			if c.words[i/lanes].Load() != allOnes {
				return false
			}
			i += lanes
			continue
		}
		if laneOf(c.words[i/lanes].Load(), i) != 1 {
			return false
		}
		i++
	}
	return true
}

// allOnes is a word of counts that are 1 each.
const allOnes = 0x0001_0001_0001_0001

// SplitBlock makes of one 2 MiB leaf a reference to each of the frames, for the
// table that takes the leaf's place. No frame is freed by it.
//
// Preconditions: the caller has the leaf, in a table that is its own.
func (c *Counts) SplitBlock(f addr.PFN) {
	n := c.blocks.of(f)
	// Who has the only leaf, in a table of its own, is the only one who can make
	// another.
	if n.CompareAndSwap(1, 0) {
		return
	}
	c.ShareRun(f, BlockFrames)
	if n.Add(^uint32(0)) == 0 {
		// The others let go meanwhile: what the block held goes, and never the
		// last, since the table has one.
		for i := range addr.PFN(BlockFrames) {
			c.Drop(f + i)
		}
	}
}

// ShareRun adds one reference to each of n frames that follow each other, as Share does,
// without a list of them.
func (c *Counts) ShareRun(f addr.PFN, n uint64) {
	for i, end := c.index(f), c.index(f)+n; i < end; {
		w, one := i/lanes, uint64(allOnes)
		if i%lanes == 0 && i+lanes <= end {
			i += lanes
		} else {
			for one = 0; i < end && i/lanes == w; i++ {
				one += oneIn(i)
			}
		}
		if word := c.words[w].Add(one); word&spillBits() != 0 {
			c.spill(w)
		}
	}
}

// beginBlock gives a block that was taken from the free ones, and its frames,
// their first references.
func (c *Counts) beginBlock(f addr.PFN) {
	if invariants.Enabled {
		for i := range addr.PFN(BlockFrames) {
			if c.Of(f+i) != 0 {
				panic("cow: free frame " + (f + i).String() + " of a block has references")
			}
		}
		if c.BlockOf(f) != 0 {
			panic("cow: free block " + f.String() + " has leaves")
		}
	}
	c.ShareRun(f, BlockFrames)
	c.blocks.of(f).Store(1)
}

// dropBlock takes one 2 MiB leaf away and reports whether it was the last, so that
// the block's references to its frames are to be dropped.
func (c *Counts) dropBlock(f addr.PFN) bool {
	n := c.blocks.of(f).Add(^uint32(0))
	if n == ^uint32(0) {
		panic("cow: leaf to block " + f.String() + " dropped once too often")
	}
	return n == 0
}
