package cow

import (
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/internal/invariants"
)

// A count's lane has 16 bits, and a guest can make more references than that: it
// need only map one page of a file often enough. So whoever sees a lane's top
// bit set moves half of it aside, here, before going on, and whoever sees a lane
// run low while something is aside moves it back:
//
//	lane   0 ... 0x2000 ........ 0x8000 ... 0xffff
//	            ^ below: + 0x4000       ^ from here: - 0x4000
//
// A lane overflows only if 0x8000 goroutines are between those two steps of
// Share at one moment, and reaches 0 with a part aside only if 0x2000 are
// between those of Drop. So a lane of 0, 1 or 2 is the whole count, and the
// paths that are taken often look at nothing else.

// spillAt is a power of two. Under invariants it is so small that tests get
// there; 16 goroutines may then drop one frame at a time.
func spillAt() uint64 {
	if invariants.Enabled {
		return 1 << 6
	}
	return 1 << (laneBits - 1)
}

// spillBits has the bits, of every lane, that only a count of spillAt or more
// sets.
func spillBits() uint64 { return (laneMask &^ (spillAt() - 1)) * 0x0001_0001_0001_0001 }

func refillBelow() uint64 { return spillAt() / 4 }

// largeCounts is the parts of counts that are kept aside.
type largeCounts struct {
	n  atomic.Int64 // entries in by; raised before a lane gives its part up
	mu sync.Mutex
	by map[uint64]uint32 // by a frame's index; mu
}

func (l *largeCounts) any() bool { return l.n.Load() != 0 }

// of returns what is aside of the count of frame i.
func (l *largeCounts) of(i uint64) uint32 {
	if !l.any() {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.by[i]
}

// spill moves parts of a word's lanes aside until each has room again.
func (c *Counts) spill(w uint64) {
	l := &c.large
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = make(map[uint64]uint32)
	}
	part := spillAt() / 2
	for i := w * lanes; i < (w+1)*lanes; i++ {
		for laneOf(c.words[w].Load(), i) >= spillAt() {
			l.by[i] += uint32(part)
			l.n.Store(int64(len(l.by)))
			c.words[w].Add(-part * oneIn(i))
		}
	}
}

// refill moves parts back to the lane of frame i while it is low, and returns
// the lane.
func (c *Counts) refill(i uint64) uint64 {
	l := &c.large
	l.mu.Lock()
	defer l.mu.Unlock()
	part := spillAt() / 2
	word := &c.words[i/lanes]
	for l.by[i] > 0 && laneOf(word.Load(), i) < refillBelow() {
		if l.by[i] -= uint32(part); l.by[i] == 0 {
			delete(l.by, i)
		}
		word.Add(part * oneIn(i))
		l.n.Store(int64(len(l.by)))
	}
	return laneOf(word.Load(), i)
}
