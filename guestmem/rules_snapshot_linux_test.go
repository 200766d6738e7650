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

// onSave has hook run between the copy of a claimed page and its release, until
// the test ends.
func onSave(t *testing.T, hook func(r *Region, page uint64)) {
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
	mayGo := make(chan struct{})
	onSave(t, func(*Region, uint64) { <-mayGo })
	store := testutil.Go(func() {
		if err := slotStore(r, 3*page-2, []byte("kernel")); err != nil {
			t.Error(err)
		}
	})
	testutil.Parked(t, store, "a store to an armed page")
	mustShow(t, s, r.base, want, "while it waits")
	close(mayGo)
	testutil.Proceeds(t, store, "the store")
	mustShow(t, s, r.base, want, "afterwards")
	copy(want[3*page-2:], "kernel")
	mustEqualPages(t, mustReadPhys(t, m, r.base, len(want)), want, "the guest")
}

// R7, interleaving 12: nobody is told of the stores of a device. What it may write is
// copied at the instant, and counts as written between any two.
func TestR7HeldForWritingIsCopiedAtTheInstant(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		m := newPhys(t)
		r := mustAdd(t, m, RegionOptions{Size: 16 * page, Backing: backing, HugePages: HugeNever})
		want := bytes.Repeat([]byte{9}, 16*page)
		mustWritePhys(t, m, 0, want)
		first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		held, err := m.Slice(5*page, 2*page, Write) // while a snapshot is open
		mustDo(t, err)
		held.Bytes()[0] = 1
		mustShow(t, first, 0, want, "the first")
		want[5*page] = 1
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		if n := s.Stats().PagesPinned; n != 2 {
			t.Errorf("%d pages were copied at the instant, want 2", n)
		}
		held.Bytes()[page] = 2
		mustDo(t, slotStore(r, 6*page+1, []byte{2}))
		mustShow(t, s, 0, want, "the second")
		want[6*page], want[6*page+1] = 2, 2
		s2 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		held.Bytes()[page] = 3
		mustShow(t, s2, 0, want, "the third")
		mustHaveChanged(t, s2, s, 0, "5 6")
		held.Release()
		s3 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		s4 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		mustHaveChanged(t, s3, s2, 0, "5 6")
		mustHaveChanged(t, s4, s3, 0, "")
		mustHaveChanged(t, s4, s, 0, "5 6")
	}
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

// R15, interleaving 13: a window does not open while somebody who has claimed a page
// is about to disarm it.
//
//	handler                     second snapshot
//	claims, copies to the first
//	                            finds the page armed, and skips it
//	disarms
//	             a store is not trapped, and the second has its byte
func TestR15WindowWaitsForClaims(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for _, writer := range []string{"kernel", "Go"} {
		m, r, want := patterned(t, 8)
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		claimed, mayGo := make(chan struct{}), make(chan struct{})
		var once sync.Once
		onSave(t, func(*Region, uint64) {
			once.Do(func() {
				close(claimed)
				<-mayGo
			})
		})
		stored, opened := make(chan struct{}), make(chan struct{})
		var s2 *Snapshot
		second := testutil.Go(func() {
			var err error
			s2, err = m.Snapshot(context.Background(), SnapshotOptions{
				Sweep: SweepOnDemand,
				Prepare: func() error { // the last moment before the window
					go func() {
						defer close(stored)
						if writer == "Go" {
							mustDo(t, m.Store8(r.base+page, 1))
						} else {
							mustDo(t, slotStore(r, page, []byte{1}))
						}
					}()
					<-claimed
					return nil
				},
				AtInstant: func() error {
					close(opened)
					return nil
				},
			})
			if err != nil {
				t.Error(err)
			}
		})
		<-claimed
		testutil.Parked(t, opened, "a window beside a claimed page")
		close(mayGo)
		testutil.Proceeds(t, stored, "the store")
		testutil.Proceeds(t, second, "the window")
		if t.Failed() {
			return
		}
		mustDo(t, slotStore(r, page, []byte{2}))
		mustShow(t, s, r.base, want, "the first, "+writer)
		mustSweep(t, s2)
		if got := s2.Stats(); got.PagesLeft != 0 {
			t.Errorf("the second lacks %d pages", got.PagesLeft)
		}
		b := make([]byte, 1)
		if _, err := s2.ReadAt(b, r.base+page); err != nil || b[0] > 1 {
			t.Errorf("the second has %d, %v: a store of after its instant", b[0], err)
		}
		want[page] = b[0] // the first store may be on either side
		mustShow(t, s2, r.base, want, "the second, "+writer)
		mustDo(t, s2.Close())
	}
}

// R15, interleaving 14: who has passed the door before the window opens has stored
// before the instant, and who comes later stores after it.
//
//	W1                          snapshot                    W2
//	passes the door
//	                            opens
//	                                                        copies p, stores
//	stores p and q
//	             the layer has neither store to p, and W1's to q
func TestR15WindowIsACut(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	mustWritePhys(t, m, r.base, want)
	passed, mayGo := make(chan struct{}), make(chan struct{})
	var once sync.Once
	storeHookGPA = func() {
		once.Do(func() {
			close(passed)
			<-mayGo
		})
	}
	t.Cleanup(func() { storeHookGPA = nil })
	w1 := testutil.Go(func() { mustWritePhys(t, m, r.base+page-1, []byte("11")) })
	<-passed
	opened, leave := make(chan struct{}), make(chan struct{})
	var s *Snapshot
	snapshot := testutil.Go(func() {
		var err error
		s, err = m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand, AtInstant: func() error {
			close(opened)
			<-leave
			return nil
		}})
		if err != nil {
			t.Error(err)
		}
	})
	testutil.Parked(t, opened, "a window beside a store that has passed the door")
	w2 := testutil.Go(func() { mustWritePhys(t, m, r.base+page-1, []byte("22")) })
	testutil.Parked(t, w2, "a store while the window is opening")
	close(mayGo)
	testutil.Proceeds(t, w1, "W1")
	testutil.Proceeds(t, opened, "the window")
	testutil.Parked(t, w2, "a store at the instant")
	copy(want[page-1:], "11")
	mustEqualPages(t, mustReadPhys(t, m, r.base, len(want)), want, "at the instant")
	close(leave)
	testutil.Proceeds(t, snapshot, "the snapshot")
	testutil.Proceeds(t, w2, "W2")
	mustShow(t, s, r.base, want, "the snapshot")
	mustDo(t, s.Close())
}

// R10: Go code does not touch an armed page where the only mapping there is is the
// one that traps: a store would park its thread, and the garbage collector wait for it.
func TestR10StoreToArmedPageParksNoThread(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 8 * page, Backing: BackingAnonymous, HugePages: HugeNever})
	mustWritePhys(t, m, 0, bytes.Repeat([]byte{1}, 8*page)) // all writable
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mayGo := make(chan struct{})
	onSave(t, func(*Region, uint64) { <-mayGo })
	stores := []<-chan struct{}{
		testutil.Go(func() { mustDo(t, m.Store64(page, 2)) }),
		testutil.Go(func() { mustWritePhys(t, m, 3*page, make([]byte, page)) }),
		testutil.Go(func() { mustDo(t, slotStore(r, 5*page, []byte{7})) }),
	}
	for _, store := range stores {
		testutil.Parked(t, store, "a store to a page that is being copied")
	}
	testutil.Proceeds(t, testutil.Go(runtime.GC), "the garbage collector")
	close(mayGo)
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
	claimed, mayGo := make(chan struct{}), make(chan struct{})
	var first atomic.Bool
	onSave(t, func(*Region, uint64) {
		if first.CompareAndSwap(false, true) {
			close(claimed)
			<-mayGo
		}
	})
	sweep := testutil.Go(func() { mustSweep(t, s) })
	<-claimed
	stores := []<-chan struct{}{
		testutil.Go(func() { mustDo(t, m.Store8(r.base, 1)) }),
		testutil.Go(func() { mustDo(t, slotStore(r, 1, []byte{1})) }),
	}
	for _, store := range stores {
		testutil.Parked(t, store, "a store to a page that the sweep has claimed")
	}
	close(mayGo)
	testutil.Proceeds(t, sweep, "the sweep")
	for _, store := range stores {
		testutil.Proceeds(t, store, "a store")
	}
	mustShow(t, s, r.base, want, "the snapshot")
}

// R7: a slice that is being made when a window opens, and has not disarmed its pages
// yet, has nobody who stores to them: they stay armed, and older snapshots get them
// when it does.
//
//	Slice                       second snapshot
//	is in the set
//	                            takes armed pages for pinned: not armed any more
//	finds them unarmed; a device stores: the first lacks them
func TestR7SliceThatIsBeingMade(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	held := &Slice{region: r, first: 1, n: 2, off: page, size: 2 * page, access: Write}
	mustDo(t, r.pins.hold(held))
	second := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustDo(t, held.makeReady())
	if r.anyArmed(1, 2) {
		t.Error("pages of a slice for writing are armed")
	}
	held.Bytes()[5] = 99
	mustShow(t, first, r.base, want, "the first")
	mustShow(t, second, r.base, want, "the second")
	mustSweep(t, first)
	mustSweep(t, second)
	held.Release()
}
