package cow

import (
	"go.uber.org/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// cacheSize is how many frames a cache holds at most: refilled by half, so one
// lock of the pool serves 64 faults, or one that installs as many pages, and 256
// KiB stay close to one reader.
const cacheSize = 128

func refillSize() int {
	if invariants.Enabled {
		return 2
	}
	return cacheSize / 2
}

// freeFrame is a free frame and whether it is known to be zero.
type freeFrame uint64

func makeFree(f addr.PFN, zero bool) freeFrame {
	if zero {
		return freeFrame(f)<<1 | 1
	}
	return freeFrame(f) << 1
}

func (x freeFrame) frame() addr.PFN { return addr.PFN(x >> 1) }
func (x freeFrame) isZero() bool    { return x&1 != 0 }

// Cache is the free frames of one epoch slot, last in first out, and what was
// counted there. Whoever holds the slot owns it; anyone may load the counters.
type Cache struct {
	free  [cacheSize]freeFrame
	n     int
	Count Counters
}

// Counters say what became of pages. Each cache has its own, so that counting
// writes no line that another core reads; Stats adds them up.
type Counters struct {
	// Zeroed is pages that appeared empty, Filled those that came from an
	// object, Copied those copied on write, Reused those that became writable
	// in place, Raced those that somebody else had installed meanwhile.
	Zeroed, Filled, Copied, Reused, Raced atomic.Uint64
}

// Take returns a free frame with one reference, and whether it is known to be
// zero. It returns false if the cache is empty: leave the section, refill, and
// start over.
//
// Preconditions: the caller holds the cache's slot.
func (p *Pool) Take(c *Cache) (f addr.PFN, zero, ok bool) {
	if c.n == 0 {
		return 0, false, false
	}
	c.n--
	x := c.free[c.n]
	p.begin(x.frame())
	return x.frame(), x.isZero(), true
}

// Return puts a frame that was just taken, and that nobody has seen, back.
//
// Preconditions: the caller holds the cache's slot; f has one reference.
func (p *Pool) Return(c *Cache, f addr.PFN, zero bool) {
	p.Drop(f)
	c.free[c.n] = makeFree(f, zero)
	c.n++
}

// Refill makes sure that the cache has frames.
//
// Preconditions: the caller holds the cache's slot and is in no section.
//
// Errors: ErrNoMemory if there is no frame, or the host has no memory for one.
func (p *Pool) Refill(c *Cache) error {
	if c.n > 0 {
		return nil
	}
	n, err := p.refillSome(c.free[c.n:min(c.n+refillSize(), cacheSize)])
	c.n += n
	if n > 0 {
		return nil
	}
	return err
}

// Empty gives all frames of the cache back to the pool.
//
// Preconditions: the caller holds the cache's slot and is in no section.
func (p *Pool) Empty(c *Cache) {
	p.mu.Lock()
	p.free = append(p.free, c.free[:c.n]...)
	p.mu.Unlock()
	c.n = 0
}
