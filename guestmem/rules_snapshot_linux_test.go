package guestmem

import (
	"bytes"
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// A halt is a place where workers wait until the test lets them go, or ends, so that
// a test that fails ends too.
type halt struct {
	reached chan struct{} // closed by the first worker
	goOn    func()

	arrived atomic.Bool
	gone    chan struct{}
}

func newHalt(t *testing.T) *halt {
	h := &halt{reached: make(chan struct{}), gone: make(chan struct{})}
	h.goOn = sync.OnceFunc(func() { close(h.gone) })
	t.Cleanup(h.goOn)
	return h
}

// all has everybody wait.
func (h *halt) all() {
	if h.arrived.CompareAndSwap(false, true) {
		close(h.reached)
	}
	<-h.gone
}

// one has the first wait.
func (h *halt) one() {
	if h.arrived.CompareAndSwap(false, true) {
		close(h.reached)
		<-h.gone
	}
}

// onSave has wait run between the copy of a claimed page and its release, until
// the test ends.
func onSave(t *testing.T, wait func()) {
	hook := func(*Region, uint64) { wait() }
	saveHook.Store(&hook)
	t.Cleanup(func() { saveHook.Store(nil) })
}

// R15, interleaving 7: a store of Go code during an open snapshot is trapped by
// nothing, and copies the page itself.
//
//	snapshot                    Go code
//	page is armed
//	                            stores through the alias: no fault
//	sweep copies the new byte
func TestR15StoreDuringSnapshotCopiesFirst(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 16)
	mustWritePhys(t, m, r.base, want) // all writable for Go code
	stores := map[string]func(gpa addr.GPA) error{
		"WriteAt": func(gpa addr.GPA) error { _, err := m.WriteAt([]byte("x"), gpa); return err },
		"Store8":  func(gpa addr.GPA) error { return m.Store8(gpa, 1) },
		"Store64": func(gpa addr.GPA) error { return m.Store64(gpa, ^uint64(0)) },
		"CompareAndSwap64": func(gpa addr.GPA) error {
			_, err := m.CompareAndSwap64(gpa, 0, ^uint64(0))
			return err
		},
		"Discard": func(gpa addr.GPA) error { return m.Discard(gpa, page) },
		"Slice": func(gpa addr.GPA) error {
			s, err := m.Slice(gpa, 1, Write)
			if err == nil {
				s.Bytes()[0] = 3
				s.Release()
			}
			return err
		},
	}
	for round := range 2 {
		before := mustReadPhys(t, m, r.base, len(want))
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		i := 0
		for name, store := range stores {
			if err := store(r.base + addr.GPA(i*page)); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			i++
		}
		if r.anyArmed(0, uint64(i)) {
			t.Error("a page that was stored to is armed")
		}
		mustSweep(t, s)
		mustShow(t, s, r.base, before, fmt.Sprint("round ", round))
	}
}

// R15, interleaving 12: the kernel's own writers go through the slot's addresses, and are
// trapped; they go on once the page is copied.
func TestR15KernelWritersAreTrapped(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 16)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	copied := newHalt(t)
	onSave(t, copied.all)
	store := testutil.Go(func() {
		if err := slotStore(r, 3*page-2, []byte("kernel")); err != nil {
			t.Error(err)
		}
	})
	testutil.Parked(t, store, "a store to an armed page")
	mustShow(t, s, r.base, want, "while it waits")
	copied.goOn()
	testutil.Proceeds(t, store, "the store")
	mustShow(t, s, r.base, want, "afterwards")
	copy(want[3*page-2:], "kernel")
	mustEqualPages(t, mustReadPhys(t, m, r.base, len(want)), want, "the guest")
}

// mustHaveChanged checks which pages Changed says were written.
func mustHaveChanged(tb testing.TB, s, since *Snapshot, base addr.GPA, want string) {
	tb.Helper()
	var got []uint64
	err := s.Changed(since, base, func(start addr.GPA, n uint64) bool {
		for i := range n {
			got = append(got, uint64(start-base)/page+i)
		}
		return true
	})
	if text := fmt.Sprint(got); err != nil || text != "["+want+"]" {
		tb.Errorf("changed are pages %s, %v; want [%s]", text, err, want)
	}
}

// Two snapshots of one parent differ exactly by the writes between them.
func TestSnapshotsDifferByWhatWasWritten(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, _ := patterned(t, 256)
	a := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustDo(t, m.Store8(r.base+7*page, 1))
	mustDo(t, slotStore(r, 200*page-1, []byte("xx")))
	b := mustSnapshotOf(t, m, SnapshotOptions{})
	mustSweep(t, b)
	mustDo(t, b.Forget())
	mustDo(t, m.Discard(r.base+9*page, 2*page))
	mustReadPhys(t, m, r.base, 256*page)
	c := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustHaveChanged(t, b, a, r.base, "7 199 200")
	mustHaveChanged(t, c, b, r.base, "9 10")
	mustHaveChanged(t, c, a, r.base, "7 9 10 199 200")
	if n := c.Stats(); n.DirtyRuns != 1 || n.PagesArmed != 2 {
		t.Errorf("the third took %d calls for %d pages, want 1 for 2", n.DirtyRuns, n.PagesArmed)
	}
	if err := a.Changed(c, r.base, nil); err == nil {
		t.Error("changes since a later snapshot")
	}
}

// R10: Go code does not touch an armed page where the only mapping there is is the
// one that traps: a store would park its thread, and the garbage collector wait for it.
func TestR10StoreToArmedPageParksNoThread(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 8 * page, Backing: BackingAnonymous, HugePages: HugeNever})
	mustWritePhys(t, m, 0, bytes.Repeat([]byte{1}, 8*page)) // all writable
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	copied := newHalt(t)
	onSave(t, copied.all)
	stores := []<-chan struct{}{
		testutil.Go(func() { mustDo(t, m.Store64(page, 2)) }),
		testutil.Go(func() { mustWritePhys(t, m, 3*page, make([]byte, page)) }),
		testutil.Go(func() { mustDo(t, slotStore(r, 5*page, []byte{7})) }),
	}
	for _, store := range stores {
		testutil.Parked(t, store, "a store to a page that is being copied")
	}
	testutil.Proceeds(t, testutil.Go(runtime.GC), "the garbage collector")
	copied.goOn()
	for _, store := range stores {
		testutil.Proceeds(t, store, "a store")
	}
	mustShow(t, s, 0, bytes.Repeat([]byte{1}, 8*page), "the snapshot")
}

// R11: each page is copied once for each snapshot, whoever comes first: handlers,
// stores of Go code, sweeps, reads; and a fault that is read late does no harm.
func TestR11PagesAreCopiedOnce(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 64)
	for range 20 {
		before := mustReadPhys(t, m, r.base, len(want))
		a := mustSnapshotOf(t, m, SnapshotOptions{})
		b := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := range uint64(64) {
				mustDo(t, slotStore(r, i*page, []byte{1}))
			}
		})
		wg.Go(func() {
			for i := 63; i >= 0; i-- {
				mustDo(t, m.Store8(r.base+addr.GPA(i*page+1), 2))
			}
		})
		wg.Go(func() {
			for i := range uint64(64) {
				mustDo(t, r.WriteFault(context.Background(), i)) // an event that is late
			}
		})
		wg.Go(func() { mustSweep(t, b) })
		wg.Go(func() { mustShow(t, b, r.base, before, "while everybody is at it") })
		wg.Wait()
		mustSweep(t, a)
		for name, s := range map[string]*Snapshot{"a": a, "b": b} {
			mustShow(t, s, r.base, before, name)
			if st := s.Stats(); st.PagesCopied+st.PagesZero != 64 || st.PagesLeft != 0 {
				t.Errorf("%s: %+v", name, st)
			}
		}
		mustDo(t, a.Close())
		mustDo(t, b.Close())
	}
}

// R11: who wants to store to a page that somebody else has claimed waits for him.
func TestR11ClaimedPageIsWaitedFor(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	claimed := newHalt(t)
	onSave(t, claimed.one)
	sweep := testutil.Go(func() { mustSweep(t, s) })
	<-claimed.reached
	stores := []<-chan struct{}{
		testutil.Go(func() { mustDo(t, m.Store8(r.base, 1)) }),
		testutil.Go(func() { mustDo(t, slotStore(r, 1, []byte{1})) }),
	}
	for _, store := range stores {
		testutil.Parked(t, store, "a store to a page that the sweep has claimed")
	}
	claimed.goOn()
	testutil.Proceeds(t, sweep, "the sweep")
	for _, store := range stores {
		testutil.Proceeds(t, store, "a store")
	}
	mustShow(t, s, r.base, want, "the snapshot")
}
