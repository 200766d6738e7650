package guestmem

import (
	"runtime"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// TestForkLoopIsFlat forks, writes on both sides, reads and closes again and
// again, within one memory: what is in use, and the heap, does not grow with the
// rounds.
func TestForkLoopIsFlat(t *testing.T) {
	rounds := 2000
	if *soak {
		rounds = 1_000_000
	}
	m := newMemory(t, 8<<20)
	as := newSpace(t, m)
	const nPages = 4
	base := mapAt(t, as, 0x40000000, nPages*page, rw)
	var has [nPages]uint64
	for i := range has {
		mustDo(t, as.Store64(ctx, base+addr.GVA(i)*page, 0))
	}
	exchange := func(as *AddressSpace, gva addr.GVA, x, want uint64) {
		was, err := as.Load64(ctx, gva)
		mustDo(t, err)
		mustDo(t, as.Store64(ctx, gva, x))
		now, err := as.Load64(ctx, gva)
		mustDo(t, err)
		if was != want || now != x {
			t.Fatalf("at %v: %d, want %d; %d after %d was stored", gva, was, want, now, x)
		}
	}
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return s.HeapAlloc
	}
	var early MemoryStats
	var earlyHeap uint64
	start := time.Now()
	for n := range rounds {
		if n == rounds/10 {
			early, earlyHeap = m.Stats(), heap()
		}
		child := mustFork(t, as)
		i := n % nPages
		gva := base + addr.GVA(i)*page
		exchange(child, gva, uint64(n)<<1|1, has[i])
		if n%8 == 0 {
			exchange(as, gva, uint64(n)<<1, has[i])
			has[i] = uint64(n) << 1
		}
		mustDo(t, child.Close())
		if got, err := as.Load64(ctx, gva); got != has[i] || err != nil {
			t.Fatalf("round %d: the parent has %d (%v), want %d", n, got, err, has[i])
		}
		if n%1024 == 0 {
			if s := m.Stats(); s.FramesInUse > 64 || s.Spaces != 1 {
				t.Fatalf("round %d: %+v", n, s)
			}
		}
	}
	took := time.Since(start)
	now, nowHeap := m.Stats(), heap()
	if now.FramesInUse > early.FramesInUse || now.Backed > early.Backed || nowHeap > earlyHeap+1<<20 {
		t.Errorf("%+v with %d bytes of heap; were %+v with %d", now, nowHeap, early, earlyHeap)
	}
	t.Logf("%d rounds, %v each, %v; %d frames in use, were %d; heap %d KiB, was %d",
		rounds, took/time.Duration(rounds), took, now.FramesInUse, early.FramesInUse, nowHeap>>10, earlyHeap>>10)
}
