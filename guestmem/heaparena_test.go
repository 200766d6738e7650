package guestmem

import (
	"sync"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// The race detector looks at the Go heap alone, not at the mapping of a memfd
// that guest memory is. These tests put frames, tables among them, into the
// heap: then whoever copies, zeroes or frees a frame under somebody that is
// still in it is told of by name.
//
// Guest memory itself is accessed by words only here, which is atomic. Two that
// copy bytes to and from the same page do race, as two threads of a guest do,
// and that is no concern of the library.

// heapStore is host memory that is always there, as zeroes.
type heapStore struct{ a arena.Arena }

func (s heapStore) Populate(f addr.PFN, n uint64) error {
	for i := range addr.PFN(n) {
		s.a.Zero(f + i)
	}
	return nil
}

func (heapStore) GiveBack(addr.PFN, uint64) error { return nil }

// newHeapMemory is newMemory over frames in the heap.
func newHeapMemory(t testing.TB, size uint64) *Memory {
	t.Helper()
	m := newMemory(t, size)
	m.arena = arena.New(make([]byte, size), m.frames.base.PFN())
	m.pool = cow.NewPool(m.arena, heapStore{m.arena}, 1, cow.Options{GrowFrames: 64, KeepFree: size / page})
	m.pool.OnFreeTable(m.freeTable)
	return m
}

// Whoever uses a frame has it to itself, or only reads: no plain access of the
// library's races with any other, and each is ordered by the library's own
// means.
func TestR4RacesInAHeapArena(t *testing.T) {
	t.Run("software", func(t *testing.T) {
		x := newFewPages(t, newHeapMemory(t, 4<<20))
		x.devices = new(sync.RWMutex)
		x.run()
	})
	t.Run("with a view", func(t *testing.T) {
		m := newHeapMemory(t, 4<<20)
		r := attachRecorder(t, m)
		x := newFewPages(t, m)
		x.devices = new(sync.RWMutex)
		x.run()
		m.domain.Synchronize()
		r.Flush()
		r.settle(t)
	})
}
