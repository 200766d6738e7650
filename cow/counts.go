package cow

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Counts has one exact reference count a frame, and a mark for pinned ones. It
// lives in the Go heap, where no guest can write. Safe for concurrent use.
type Counts struct {
	first  addr.PFN        // immutable
	refs   []atomic.Uint32 // by frame
	pinned []atomic.Uint64 // one bit a frame; written by pins only
}

func newCounts(first addr.PFN, n uint64) *Counts {
	return &Counts{
		first:  first,
		refs:   make([]atomic.Uint32, n),
		pinned: make([]atomic.Uint64, (n+63)/64),
	}
}

func (c *Counts) index(f addr.PFN) uint64 { return uint64(f - c.first) }

// Of returns the number of references to f.
func (c *Counts) Of(f addr.PFN) uint32 { return c.refs[c.index(f)].Load() }

// Live reports whether f has references; no frame outside the region has.
func (c *Counts) Live(f addr.PFN) bool {
	i := c.index(f)
	return i < uint64(len(c.refs)) && c.refs[i].Load() > 0
}

// Share adds one reference to each frame.
func (c *Counts) Share(frames []addr.PFN) {
	for _, f := range frames {
		c.refs[c.index(f)].Add(1)
	}
}

// Drop takes one reference away and reports whether it was the last.
func (c *Counts) Drop(f addr.PFN) bool {
	n := c.refs[c.index(f)].Add(^uint32(0))
	if n == ^uint32(0) {
		panic("cow: reference to frame " + f.String() + " dropped once too often")
	}
	return n == 0
}

// Exclusive reports whether one reference to f is left, pins aside. A pinned
// frame belongs to one address space, so its pin does not make it shared.
//
// Loading the count and the mark is not one step. A pin raises the count first
// and sets the mark after, and clears the mark first: a racing pin can only
// make the answer false, and a needless copy is then undone by the pin's own
// re-reading of the entry.
func (c *Counts) Exclusive(f addr.PFN) bool {
	switch c.Of(f) {
	case 1:
		return true
	case 2:
		return c.IsPinned(f)
	}
	return false
}

// IsPinned reports whether f is pinned.
func (c *Counts) IsPinned(f addr.PFN) bool {
	i := c.index(f)
	return c.pinned[i/64].Load()&(1<<(i%64)) != 0
}

// Pin adds the reference that a frame's pins hold together, and marks it.
func (c *Counts) Pin(f addr.PFN) {
	i := c.index(f)
	c.refs[i].Add(1)
	c.pinned[i/64].Or(1 << (i % 64))
}

// Unpin takes the mark and the reference away, and reports whether it was the
// last one.
func (c *Counts) Unpin(f addr.PFN) bool {
	i := c.index(f)
	c.pinned[i/64].And(^uint64(1 << (i % 64)))
	return c.Drop(f)
}

// begin gives a frame that was taken from the free ones its first reference.
func (c *Counts) begin(f addr.PFN) { c.refs[c.index(f)].Store(1) }
