package cow

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
)

// Counts has one exact reference count a frame, and a mark for pinned ones. It
// lives in the Go heap, where no guest can write. Safe for concurrent use.
//
// Four counts share a word, so that counting a full leaf table whose frames are
// neighbours takes 128 locked additions and not 512, which were most of what
// the first write after a fork cost:
//
//	word w   63       48 47       32 31       16 15        0
//	        | frame 4w+3 | frame 4w+2 | frame 4w+1 | frame 4w |
//
// A count that outgrows its lane has a part of it kept aside (large.go).
type Counts struct {
	first  addr.PFN        // immutable
	n      uint64          // frames; immutable
	words  []atomic.Uint64 // four counts each
	pinned []atomic.Uint64 // one bit a frame; written by pins only
	large  largeCounts
	blocks blocks
	// reclaimed counts how often each frame went back to the pool; atomic, and
	// empty unless invariants.Enabled.
	reclaimed []atomic.Uint32
}

const (
	lanes    = 4
	laneBits = 16
	laneMask = 1<<laneBits - 1
)

func newCounts(first addr.PFN, n uint64) *Counts {
	c := &Counts{
		first:  first,
		n:      n,
		words:  make([]atomic.Uint64, (n+lanes-1)/lanes),
		pinned: make([]atomic.Uint64, (n+63)/64),
		blocks: newBlocks(first, n),
	}
	if invariants.Enabled {
		c.reclaimed = make([]atomic.Uint32, n)
	}
	return c
}

// index returns f's place among the frames. One outside of the region is a
// mistake of the caller's, who has bounded what came from a guest, and panics
// where it is used.
func (c *Counts) index(f addr.PFN) uint64 { return uint64(f - c.first) }

func oneIn(i uint64) uint64        { return 1 << (i % lanes * laneBits) }
func laneOf(word, i uint64) uint64 { return word >> (i % lanes * laneBits) & laneMask }

// Of returns the number of references to f.
func (c *Counts) Of(f addr.PFN) uint32 {
	i := c.index(f)
	return uint32(laneOf(c.words[i/lanes].Load(), i)) + c.large.of(i)
}

// Live reports whether f has references; no frame outside the region has.
func (c *Counts) Live(f addr.PFN) bool { return uint64(f-c.first) < c.n && c.Of(f) > 0 }

// Share adds one reference to each frame. Those that share a word are counted by
// one addition where they follow each other.
func (c *Counts) Share(frames []addr.PFN) {
	for k := 0; k < len(frames); {
		i := c.index(frames[k])
		w, one := i/lanes, oneIn(i)
		for k++; k < len(frames); k++ {
			if i = c.index(frames[k]); i/lanes != w {
				break
			}
			one += oneIn(i)
		}
		if word := c.words[w].Add(one); word&spillBits() != 0 {
			c.spill(w)
		}
	}
}

// Drop takes one reference away and reports whether it was the last.
func (c *Counts) Drop(f addr.PFN) bool {
	i := c.index(f)
	return c.dropped(i, c.words[i/lanes].Add(-oneIn(i)))
}

// dropEach takes one reference away from each frame, as Share adds them, and
// appends those whose last it was to last.
func (c *Counts) dropEach(frames, last []addr.PFN) []addr.PFN {
	for k := 0; k < len(frames); {
		w, one, from := c.index(frames[k])/lanes, uint64(0), k
		for ; k < len(frames); k++ {
			i := c.index(frames[k])
			// A frame that is there once more has a turn of its own.
			if i/lanes != w || laneOf(one, i) != 0 {
				break
			}
			one += oneIn(i)
		}
		word := c.words[w].Add(-one)
		for _, f := range frames[from:k] {
			if c.dropped(c.index(f), word) {
				last = append(last, f)
			}
		}
	}
	return last
}

// dropped is told that a word came to be what it is by taking, among others, a
// reference to frame i away, and reports whether it was the last.
func (c *Counts) dropped(i, word uint64) bool {
	left := laneOf(word, i)
	if left == laneMask {
		panic("cow: reference to frame " + (c.first + addr.PFN(i)).String() + " dropped once too often")
	}
	if left < refillBelow() && c.large.any() {
		return c.refill(i) == 0 && left == 0
	}
	return left == 0
}

// Exclusive reports whether one reference to f is left, pins aside. A pinned
// frame of a private area belongs to one address space, so its pin does not make
// it shared; of frames of shared areas nobody asks.
//
// Loading the count and the mark is not one step. A pin sets the mark before it
// raises the count, so that its reference is never seen without the mark; when
// it ends it clears the mark first, and who looks in between copies needlessly,
// which hurts nobody any more.
func (c *Counts) Exclusive(f addr.PFN) bool {
	i := c.index(f)
	n := laneOf(c.words[i/lanes].Load(), i)
	return n == 1 || n == 2 && (variant.WriteSharedInPlace || c.IsPinned(f))
}

// IsPinned reports whether f is pinned.
func (c *Counts) IsPinned(f addr.PFN) bool {
	i := c.index(f)
	return c.pinned[i/64].Load()&(1<<(i%64)) != 0
}

// Pin marks a frame and adds the reference that its pins hold together: in this
// order, so that nobody sees the reference without the mark and takes the frame
// for shared.
//
// Preconditions: in the same read section, the caller found f to be exclusive,
// on a path of its own.
func (c *Counts) Pin(f addr.PFN) {
	i := c.index(f)
	c.pinned[i/64].Or(1 << (i % 64))
	c.Share([]addr.PFN{f})
}

// Unpin takes the mark and the reference away, and reports whether it was the
// last one.
func (c *Counts) Unpin(f addr.PFN) bool {
	i := c.index(f)
	c.pinned[i/64].And(^uint64(1 << (i % 64)))
	return c.Drop(f)
}

// begin gives a frame that was taken from the free ones its first reference.
func (c *Counts) begin(f addr.PFN) {
	i := c.index(f)
	word := c.words[i/lanes].Add(oneIn(i))
	if invariants.Enabled && laneOf(word, i) != 1 {
		panic("cow: free frame " + f.String() + " has references")
	}
}
