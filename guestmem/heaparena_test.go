package guestmem

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"
	"time"

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
	m.arena = arena.New(make([]byte, size), m.region.base.PFN())
	m.pool = cow.NewPool(m.arena, heapStore{m.arena}, 1, cow.Options{GrowFrames: 64, KeepFree: size / page})
	m.pool.OnFreeTable(m.freeTable)
	return m
}

// heapTorture is the torture without copies of bytes, on so few pages that
// several goroutines are on the same all the time.
type heapTorture struct{ *torture }

const heapSlots = 3

func (x heapTorture) worker(seed uint64, owned bool) {
	rng := rand.New(rand.NewPCG(seed, 11))
	var h *Handle
	if owned {
		h = x.m.NewHandle()
		defer h.Close()
	}
	for !x.done.Load() {
		k := x.pick(rng)
		if k == nil {
			continue
		}
		var a Accessor
		if owned {
			a = k.as.With(h)
		} else {
			a = k.as.borrow()
		}
		what := x.step(k, a, rng)
		if !owned {
			a.giveBack()
		}
		k.life.RUnlock()
		x.counts[what].Add(1)
		if what == opClose {
			x.mu.Lock()
			last := len(x.family) == 1
			x.mu.Unlock()
			if !last {
				x.leave(k)
			}
		}
	}
}

func (x heapTorture) step(k *kin, a Accessor, rng *rand.Rand) (what int) {
	as := k.as
	slot := rng.IntN(heapSlots)
	n := 1 + rng.IntN(heapSlots-slot)
	gva, length := tortureBase+addr.GVA(slot)*page, uint64(n)*page
	word := gva + addr.GVA(rng.IntN(int(page/8))*8)
	var err error
	switch d := rng.IntN(100); {
	case d < 20:
		var w uint64
		if w, err = a.Load64(ctx, word); err == nil {
			x.look(k, word, w)
		}
		what = opRead
	case d < 55:
		err = a.Store64(ctx, word, k.next())
		what = opWrite
	case d < 60:
		err = a.Fault(ctx, gva, []Access{Read, Write}[rng.IntN(2)])
		what = opRead
	case d < 64:
		prot := []Prot{rw, rw, rw, rw | ProtExec, r_}[rng.IntN(5)]
		_, err = as.Map(ctx, MapOptions{Addr: gva, Length: length, Prot: prot, Flags: anon | MapFixed})
		what = opMap
	case d < 67:
		err = as.Unmap(gva, length)
		what = opUnmap
	case d < 73:
		err = as.Protect(gva, length, []Prot{rw, rw, rw, r_}[rng.IntN(4)])
		what = opProtect
	case d < 77:
		err = as.Discard(gva, length)
		what = opDiscard
	case d < 83:
		err = x.fork(k)
		what = opFork
	case d < 87:
		what = opClose
	case d < 90:
		err = x.pin(k, gva, n, rng)
		what = opPin
	case d < 94:
		err = x.sum(a)
		what = opSum
	case d < 99:
		err = x.file(k, a, rng)
		what = opFile
	default:
		x.m.Stats()
		_ = as.String()
		what = opStats
	}
	if !tolerable(err) {
		x.fail("operation %d: %v", what, err)
	}
	return what
}

func (x heapTorture) run() {
	var wg sync.WaitGroup
	for i := range 2*runtime.GOMAXPROCS(0) + 1 {
		wg.Go(func() { x.worker(rand.Uint64(), i%2 == 0) })
	}
	for end := time.Now().Add(soakFor()); time.Now().Before(end) && !x.done.Load(); {
		time.Sleep(soakFor() / 50)
	}
	x.done.Store(true)
	wg.Wait()
	mustCheck(x.t, x.m)
	for len(x.family) > 0 {
		x.leave(x.family[0])
		mustCheck(x.t, x.m)
	}
	x.object.Close()
	x.t.Logf("%d words looked at, %+v", x.checked.Load(), x.m.Stats())
}

// Whoever uses a frame has it to itself, or only reads: no plain access of the
// library's races with any other, and each is ordered by the library's own
// means.
func TestR4RacesInAHeapArena(t *testing.T) {
	t.Run("software", func(t *testing.T) {
		heapTorture{newTorture(t, newHeapMemory(t, 4<<20))}.run()
	})
	t.Run("with a view", func(t *testing.T) {
		m := newHeapMemory(t, 4<<20)
		r := attachRecorder(t, m)
		heapTorture{newTorture(t, m)}.run()
		m.domain.Synchronize()
		r.Flush()
		r.settle(t)
	})
}
