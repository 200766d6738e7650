package epoch

import (
	"reflect"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/invariants"
)

func newDomain(reclaim func([]Item)) *Domain {
	if reclaim == nil {
		reclaim = func([]Item) {}
	}
	return New(func() any { return nil }, reclaim)
}

// blocked reports whether done is still open after others had time to run.
func blocked(done <-chan struct{}) bool {
	select {
	case <-done:
		return false
	case <-time.After(20 * time.Millisecond):
		return true
	}
}

func mustEnd(t *testing.T, what string, done <-chan struct{}) {
	t.Helper()
	select {
	case <-done:
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s did not end", what)
	}
}

func inBackground(fn func()) <-chan struct{} {
	done := make(chan struct{})
	go func() { defer close(done); fn() }()
	return done
}

func TestR1BarrierWaitsForSectionsOfItsSpaceThatHadBegun(t *testing.T) {
	d := newDomain(nil)
	leave, entered := make(chan struct{}), make(chan struct{})
	reader := inBackground(func() {
		h := d.Acquire(7)
		close(entered)
		<-leave
		d.Release(h)
	})
	<-entered
	mustEnd(t, "barrier of another space", inBackground(func() { d.Barrier(8) }))
	bar := inBackground(func() { d.Barrier(7) })
	all := inBackground(func() { d.BarrierAll() })
	if !blocked(bar) || !blocked(all) {
		t.Fatal("a barrier passed an open section of its space")
	}
	close(leave)
	mustEnd(t, "barrier", bar)
	mustEnd(t, "barrier of all", all)
	<-reader
}

// A section begun after the barrier, in the same slot, is not waited for.
func TestBarrierDoesNotWaitForLaterSections(t *testing.T) {
	d := newDomain(nil)
	h := d.NewHandle()
	defer h.Close()
	enter, leave, entered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	reader := inBackground(func() {
		h.Enter(1)
		entered <- struct{}{}
		<-enter
		h.Exit()
		h.Enter(1)
		entered <- struct{}{}
		<-leave
		h.Exit()
	})
	<-entered
	bar := inBackground(func() { d.Barrier(1) })
	if !blocked(bar) {
		t.Fatal("the barrier passed an open section")
	}
	close(enter)
	<-entered
	mustEnd(t, "barrier", bar)
	close(leave)
	<-reader
}

func TestR4RetiredWaitsForEveryOpenSection(t *testing.T) {
	var got atomic.Int64
	d := newDomain(func(items []Item) { got.Add(int64(len(items))) })
	leave, entered := make(chan struct{}), make(chan struct{})
	reader := inBackground(func() {
		h := d.Acquire(1)
		close(entered)
		<-leave
		d.Release(h)
	})
	<-entered
	h := d.NewHandle()
	defer h.Close()
	h.Hold()
	for h.HasRoom(1) {
		h.Retire(Item(1))
	}
	n := int64(h.slot.n)
	h.Flush()
	h.Free()
	if got.Load() != 0 {
		t.Fatal("items were reclaimed beside an open section")
	}
	close(leave)
	<-reader
	d.Poll()
	if got.Load() != n {
		t.Fatalf("reclaimed %d items, want %d", got.Load(), n)
	}
}

func TestSynchronizeReclaimsAll(t *testing.T) {
	var got atomic.Int64
	d := newDomain(func(items []Item) { got.Add(int64(len(items))) })
	for range 3 {
		h := d.Borrow()
		h.Hold()
		h.Retire(1)
		h.Free()
		d.GiveBack(h)
	}
	d.Synchronize()
	if got.Load() != 3 {
		t.Fatalf("reclaimed %d, want 3", got.Load())
	}
}

// Nobody uses a cell after it was reclaimed, while readers and a remover race.
func TestR4NobodyReachesWhatWasReclaimed(t *testing.T) {
	type cell struct{ dead atomic.Bool }
	cells := make([]cell, 1<<14)
	d := newDomain(func(items []Item) {
		for _, it := range items {
			cells[it].dead.Store(true)
		}
	})
	var current atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			own := d.NewHandle()
			defer own.Close()
			for i := 0; !stop.Load(); i++ {
				h := own
				if i%2 == 0 {
					h = d.Acquire(3)
				} else {
					h.Enter(3)
				}
				c := &cells[current.Load()]
				if i%64 == 0 {
					runtime.Gosched()
				}
				if c.dead.Load() {
					t.Error("a reader reached a reclaimed cell")
					stop.Store(true)
				}
				if i%2 == 0 {
					d.Release(h)
				} else {
					h.Exit()
				}
			}
		})
	}
	w := d.NewHandle()
	for i := 1; i < len(cells) && !stop.Load(); i++ {
		old := current.Swap(uint64(i))
		w.Hold()
		if !w.HasRoom(1) {
			w.Flush()
		}
		w.Retire(Item(old))
		w.Free()
	}
	stop.Store(true)
	wg.Wait()
	w.Close()
}

func TestR4SectionsDoNotNestOrBlock(t *testing.T) {
	if !invariants.Enabled {
		t.Log("checked under the invariants tag only")
		return
	}
	mustPanic := func(what string, fn func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s inside a section did not panic", what)
			}
		}()
		fn()
	}
	d := newDomain(nil)
	h := d.Acquire(1)
	other := d.Borrow()
	mustPanic("Enter", func() { other.Enter(1) })
	mustPanic("Barrier", func() { d.Barrier(2) })
	mustPanic("Poll", func() { d.Poll() })
	mustPanic("FlushAll", func() { d.FlushAll() })
	d.Release(h)
}

func TestManyMoreCallersThanPooledSlots(t *testing.T) {
	d := newDomain(nil)
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for range 200 {
				h := d.Acquire(5)
				runtime.Gosched()
				d.Release(h)
			}
		})
	}
	wg.Wait()
	if n := len(*d.slots.Load()); n != len(d.pooled) {
		t.Fatalf("%d slots, want the %d pooled ones", n, len(d.pooled))
	}
}

func TestClosedHandleSlotIsReused(t *testing.T) {
	d := newDomain(nil)
	for range 100 {
		h := d.NewHandle()
		h.Enter(1)
		h.Exit()
		h.Close()
		h.Close()
	}
	if n := len(*d.slots.Load()); n != len(d.pooled)+1 {
		t.Fatalf("%d slots, want %d", n, len(d.pooled)+1)
	}
}

func TestNoAllocationOnHotPaths(t *testing.T) {
	if invariants.Enabled {
		t.Log("assertions allocate under the invariants tag")
		return
	}
	d := newDomain(nil)
	own := d.NewHandle()
	defer own.Close()
	if n := testing.AllocsPerRun(1000, func() { own.Enter(1); own.Exit() }); n != 0 {
		t.Errorf("owned: %v allocations", n)
	}
	if n := testing.AllocsPerRun(1000, func() { d.Release(d.Acquire(1)) }); n != 0 {
		t.Errorf("pooled: %v allocations", n)
	}
}

// Each section writes its handle: handles that were made one after the other are
// on cache lines of their own (and on pairs of them, which are fetched together).
func TestHandlesShareNoCacheLine(t *testing.T) {
	d := newDomain(nil)
	seen := make(map[uintptr]bool)
	for range 64 {
		h := d.NewHandle()
		defer h.Close()
		line := reflect.ValueOf(h).Pointer() / 128
		last := (reflect.ValueOf(h).Pointer() + reflect.TypeOf(*h).Size() - 1) / 128
		if seen[line] || seen[last] {
			t.Fatal("two handles share a line")
		}
		seen[line], seen[last] = true, true
	}
}
