package guestmem

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// A copier that walked the old root is waited for, before its frame is given back:
//
//	copier                       rollback
//	enters, walks to F
//	                             exchanges the roots
//	                             waits
//	stores to F, leaves
//	                             gives F back
func TestR1RollbackWaitsForCopiers(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	s := mustSnapshot(t, as)
	defer s.Close()
	mustDo(t, as.Store64(ctx, gva, 1))
	h := m.NewHandle()
	defer h.Close()
	h.h.Enter(as.id)
	f, ok := as.pt.Translate(gva, pagetable.Writable)
	if !ok {
		t.Fatal("the page is not there")
	}
	done := inBackground(func() {
		if err := as.Rollback(ctx, s); err != nil {
			t.Error(err)
		}
	})
	waited := parked(done)
	live := m.pool.Of(f) > 0
	h.h.Exit()
	mustEnd(t, "rollback", done)
	if !waited || !live {
		t.Errorf("rollback waited: %v; the frame was held: %v", waited, live)
	}
	if m.pool.Of(f) != 0 {
		t.Error("the frame was not given back")
	}
	mustSee(t, as, gva, make([]byte, 8))
	mustCheck(t, m)
}

// A copier that walked the fresh root is waited for before that is emptied:
//
//	copier                       rollback, close of the snapshot
//	                             exchanges the roots
//	enters, walks to table T
//	                             exchanges them back
//	                             waits
//	walks on in T, leaves
//	                             empties the fresh root; the snapshot gives T up
func TestR4RollbackWaitsForCopiersOfTheFreshRoot(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	mustDo(t, as.Store64(ctx, gva, 7))
	s := mustSnapshot(t, as)
	mustDo(t, as.Store64(ctx, gva, 8)) // behind tables of its own
	inside, leave := make(chan struct{}), make(chan struct{})
	var section <-chan struct{} // written before inside is closed
	rollbackHook = func() {
		rollbackHook = nil
		entered := make(chan struct{})
		section = inBackground(func() {
			h := m.NewHandle()
			defer h.Close()
			h.h.Enter(as.id)
			table := pagetable.Entry(m.arena.Load(as.Root(), uint64(gva>>39))).Frame()
			close(entered)
			<-leave
			if m.pool.Of(table) == 0 {
				t.Error("a table was taken from under who walks it")
			}
			h.h.Exit()
		})
		<-entered
		close(inside)
	}
	defer func() { rollbackHook = nil }()
	rollback := inBackground(func() {
		if err := errors.Join(as.Rollback(ctx, s), s.Close()); err != nil {
			t.Error(err)
		}
	})
	<-inside
	if !parked(rollback) {
		t.Error("rollback did not wait for who walked the fresh root")
	}
	close(leave)
	mustEnd(t, "the section", section)
	mustEnd(t, "rollback", rollback)
	mustCheck(t, m)
}

// A fault that passed StartRead before the mark, and goes on after the roots were
// exchanged, may not make a path of the snapshot's its own.
func TestR2NoPathIsOwnedBesideARollback(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	mustDo(t, as.Store64(ctx, gva, 1))
	s := mustSnapshot(t, as)
	defer s.Close()
	mustDo(t, as.Store64(ctx, gva, 2))
	inside, leave := make(chan struct{}), make(chan struct{})
	section := inBackground(func() { // holds the rollback in its grace period
		h := m.NewHandle()
		defer h.Close()
		h.h.Enter(as.id)
		close(inside)
		<-leave
		h.h.Exit()
	})
	<-inside
	before := as.Root()
	done := inBackground(func() {
		if err := as.Rollback(ctx, s); err != nil {
			t.Error(err)
		}
	})
	for as.Root() == before {
		if !parked(done) {
			break
		}
	}
	// The slow half of a fault: it finds the tree marked under the tables mutex.
	half := as.Root()
	a := as.borrow()
	mustDo(t, a.ownPath(gva))
	l := as.pt.Find(gva)
	a.giveBack()
	if as.Root() != half || l.Owned {
		t.Error("a path was made the address space's own while it is rolled back")
	}
	close(leave)
	mustEnd(t, "the section", section)
	mustEnd(t, "rollback", done)
	mustCheck(t, m)
	if got, err := as.Load64(ctx, gva); got != 1 || err != nil {
		t.Errorf("%d, %v", got, err)
	}
}

// Writers and readers run beside rollbacks. A store that began after a rollback is
// seen until the next begins, one from before never after it; and a rollback is one
// step: who sees one page as it was sees no other as it became before.
func TestR1RollbackIsOneStep(t *testing.T) {
	rounds := 300
	if *soak {
		rounds = 20_000
	}
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	const stride = 2 << 20 // each page in a leaf table of its own
	gva := mapAt(t, as, 0x40000000, 4*stride, rw)
	for i := range addr.GVA(3) {
		mustDo(t, as.Store64(ctx, gva+i*stride, 0))
	}
	s := mustSnapshot(t, as)
	defer s.Close()
	var epoch atomic.Uint64 // odd while a rollback is under way
	var stop atomic.Bool
	var wg sync.WaitGroup
	worker := func(fn func(n uint64)) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := uint64(1); !stop.Load(); n++ {
				fn(n)
			}
		}()
	}
	worker(func(n uint64) {
		before := epoch.Load()
		if err := as.Store64(ctx, gva, n); err != nil {
			t.Error(err)
		}
		got, err := as.Load64(ctx, gva)
		if epoch.Load() == before && before%2 == 0 && (got != n || err != nil) {
			t.Errorf("stored %d and read %d (%v), with no rollback in between", n, got, err)
		}
	})
	// One page, then the other, and read the other way round: with no rollback, or
	// only whole ones, in between the first is never behind the second by more than
	// the rollbacks say.
	worker(func(n uint64) {
		for i := range addr.GVA(2) {
			if err := as.Store64(ctx, gva+(i+1)*stride, n); err != nil {
				t.Error(err)
			}
		}
	})
	worker(func(uint64) {
		before := epoch.Load()
		second, err := as.Load64(ctx, gva+2*stride)
		first, err2 := as.Load64(ctx, gva+stride)
		if epoch.Load() == before && before%2 == 0 && (first < second || err != nil || err2 != nil) {
			t.Errorf("the second page has %d, and the first, which is written before, %d", second, first)
		}
	})
	for range rounds {
		epoch.Add(1)
		if err := as.Rollback(ctx, s); err != nil {
			t.Error(err)
		}
		epoch.Add(1)
	}
	stop.Store(true)
	wg.Wait()
	mustCheck(t, m)
	mustDo(t, as.Rollback(ctx, s))
	for i := range addr.GVA(3) {
		if got, err := as.Load64(ctx, gva+i*stride); got != 0 || err != nil {
			t.Errorf("page %d has %d (%v) after the last rollback", i, got, err)
		}
	}
}

// A space that was swept, and is rolled back to a snapshot that was not, is swept
// again:
//
//	punch                        rollback
//	sweeps the space
//	                             brings the leaf back, from the snapshot
//	sweeps the snapshot
//	sweeps the space again
func TestR1PunchSweepsWhatARollbackBroughtBack(t *testing.T) {
	for _, view := range []bool{false, true} {
		m := newMemory(t, 16<<20)
		if view {
			attachRecorder(t, m)
		}
		as := newSpace(t, m)
		gva := mustMap(t, as, MapOptions{Length: 2 * page, Prot: rw, Flags: MapShared | MapAnonymous})
		mustDo(t, errors.Join(as.Store64(ctx, gva, 1), as.Store64(ctx, gva+page, 2)))
		s := mustSnapshot(t, as)
		rolled := 0
		punchHook = func(of *AddressSpace) {
			if of == s.frozen && rolled == 0 {
				rolled++
				if _, ok := as.frameAt(gva); ok {
					t.Error("the snapshot is swept before its address space, so that this shows nothing")
				}
				mustDo(t, as.Rollback(ctx, s))
				if _, ok := as.frameAt(gva); !ok {
					t.Error("the rollback brought nothing back, so that this shows nothing")
				}
			}
		}
		err := as.Advise(ctx, gva, 2*page, AdviceRemove)
		punchHook = nil
		mustDo(t, err)
		if rolled != 1 {
			t.Error("the snapshot was not swept")
		}
		mustCheck(t, m)
		for i := range addr.GVA(2) {
			if got, err := as.Load64(ctx, gva+i*page); got != 0 || err != nil {
				t.Errorf("view %v: page %d has %d (%v), and was taken out", view, i, got, err)
			}
		}
		mustDo(t, errors.Join(s.Close(), as.Close()))
		if view {
			mustDo(t, m.DetachView())
		}
	}
}
