package guestmem

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

func mustSnapshot(tb testing.TB, as *AddressSpace) *SpaceSnapshot {
	tb.Helper()
	s, err := as.Snapshot()
	mustDo(tb, err)
	return s
}

// Everything that an address space is comes back: areas, what they allow, labels,
// break, locks, guards and pages; again and again, and to each of several.
func TestRollbackBringsEverythingBack(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	base := mapAt(t, as, 0x40000000, 8*page, rw)
	for i := range addr.GVA(8) {
		mustDo(t, as.Store64(ctx, base+i*page, uint64(i)))
	}
	mustDo(t, as.Protect(base+2*page, page, ProtRead))
	mustDo(t, as.Lock(ctx, base+4*page, page, LockNow))
	mustDo(t, as.Advise(ctx, base+6*page, page, AdviceDontFork))
	shared := mustMap(t, as, MapOptions{Addr: 0x50000000, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, as.Store64(ctx, shared, 7))
	const brk addr.GVA = 0x20000000
	as.SetBreak(brk)
	_, err := as.Brk(brk + 3*page)
	mustDo(t, err)
	mustDo(t, as.Store64(ctx, brk, 1))
	one := slices.Collect(as.Areas())
	s1 := mustSnapshot(t, as)

	mustDo(t, as.Unmap(base+3*page, page))
	mustDo(t, as.Store64(ctx, base, 100))
	two := slices.Collect(as.Areas())
	s2 := mustSnapshot(t, as)

	ruin := func() {
		mustDo(t, as.Unmap(base+page, 5*page))
		mustDo(t, as.Discard(base, page))
		mustDo(t, as.Unmap(shared, page))
		mapAt(t, as, 0x60000000, 4<<20, rw)
		mustDo(t, as.Store64(ctx, 0x60000000, 5))
		mustDo(t, as.Store64(ctx, base+7*page, 700))
		_, err := as.Brk(brk)
		mustDo(t, err)
		mustDo(t, as.UnlockAll())
	}
	for round := range 3 {
		for n, to := range []struct {
			s     *SpaceSnapshot
			areas []AreaInfo
			first uint64
			third error
		}{{s1, one, 0, nil}, {s2, two, 100, ErrNotMapped}} {
			ruin()
			mustCheck(t, m)
			mustDo(t, as.Rollback(ctx, to.s))
			mustCheck(t, m)
			if d := cmp.Diff(to.areas, slices.Collect(as.Areas())); d != "" {
				t.Fatalf("round %d: areas after a rollback to snapshot %d (-want +got):\n%s", round, n+1, d)
			}
			if end, err := as.Brk(0); end != brk+3*page || err != nil {
				t.Errorf("the break is %v (%v), was %v", end, err, brk+3*page)
			}
			if err := as.Store64(ctx, base+2*page, 1); !errors.Is(err, ErrAccess) {
				t.Errorf("store to a page that was read-only: %v", err)
			}
			if _, err := as.Load64(ctx, base+3*page); !errors.Is(err, to.third) {
				t.Errorf("load of the page that was unmapped between the snapshots: %v, want %v", err, to.third)
			}
			for i, want := range map[addr.GVA]uint64{0: to.first, 1: 1, 2: 2, 4: 4, 7: 7} {
				if got, err := as.Load64(ctx, base+i*page); got != want || err != nil {
					t.Errorf("round %d, snapshot %d: page %d has %d (%v), want %d", round, n+1, i, got, err, want)
				}
			}
			if got, err := as.Load64(ctx, shared); got != 7 || err != nil {
				t.Errorf("the shared page has %d (%v)", got, err)
			}
		}
	}
	// What was locked is: its pages may not be discarded.
	if err := as.Discard(base+4*page, page); !errors.Is(err, ErrInvalid) {
		t.Errorf("discard of a locked page after a rollback: %v", err)
	}
	child := mustFork(t, as)
	if _, err := child.Load64(ctx, base+6*page); !errors.Is(err, ErrNotMapped) {
		t.Errorf("a child has what was not to be forked: %v", err)
	}
	if s := m.Stats(); s.Snapshots != 2 || s.Spaces != 2 {
		t.Errorf("%+v", s)
	}
	mustDo(t, errors.Join(s2.Close(), s1.Close(), s1.Close()))
}

// A page of a shared area allows what it did, no more and no less, though its frame
// is the same.
func TestR5RollbackTakesWritingFromSharedPages(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	shm := mustMap(t, as, MapOptions{Addr: 0x50000000, Length: 2 * page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, errors.Join(as.Store64(ctx, shm, 1), as.Store64(ctx, shm+page, 1)))
	mustDo(t, as.Protect(shm, page, ProtRead))
	s := mustSnapshot(t, as)
	defer s.Close()
	mustDo(t, as.Protect(shm, page, rw))
	mustDo(t, as.Store64(ctx, shm, 2))
	mustDo(t, as.Protect(shm+page, page, ProtRead))
	mustDo(t, as.Rollback(ctx, s))
	mustCheck(t, m)
	if err := as.Store64(ctx, shm, 3); !errors.Is(err, ErrAccess) {
		t.Errorf("store to a page that was read-only: %v", err)
	}
	mustDo(t, as.Store64(ctx, shm+page, 3))
	if got, err := as.Load64(ctx, shm); got != 2 || err != nil {
		t.Errorf("the shared page has %d (%v): it is not rolled back", got, err)
	}
}

// What a rollback is refused for, by name, with nothing changed.
func TestRollbackRefusals(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	mustDo(t, as.Store64(ctx, gva, 1))
	s := mustSnapshot(t, as)
	mustDo(t, as.Store64(ctx, gva, 2))
	child := mustFork(t, as)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	for _, c := range []struct {
		name string
		err  error
		want error
	}{
		{"a child", child.Rollback(ctx, s), ErrOtherSpace},
		{"another's", newSpace(t, m).Rollback(ctx, s), syscall.EXDEV},
		{"no snapshot", as.Rollback(ctx, nil), ErrInvalid},
		{"cancelled", as.Rollback(cancelled, s), context.Canceled},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, c.err, c.want)
		}
	}
	for _, a := range []*AddressSpace{as, child} {
		if got, err := a.Load64(ctx, gva); got != 2 || err != nil {
			t.Errorf("after refusals: %d, %v", got, err)
		}
	}
	gone := mustSnapshot(t, as)
	mustDo(t, errors.Join(gone.Close(), gone.Close()))
	if err := as.Rollback(ctx, gone); !errors.Is(err, ErrClosed) {
		t.Errorf("rollback to a closed snapshot: %v", err)
	}
	mustDo(t, as.Close())
	if err := as.Rollback(ctx, s); !errors.Is(err, ErrClosed) {
		t.Errorf("rollback of a closed address space: %v", err)
	}
	if _, err := as.Snapshot(); !errors.Is(err, ErrClosed) {
		t.Errorf("snapshot of a closed address space: %v", err)
	}
	if err := m.Close(); !errors.Is(err, ErrBusy) {
		t.Errorf("close of a memory with a snapshot: %v", err)
	}
	mustCheck(t, m)
	mustDo(t, s.Close())
}

// With no frame left a snapshot is refused and changes nothing, and a rollback
// works all the same.
func TestRollbackWithoutMemory(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 32 * page, Grow: page})
	mustDo(t, err)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 32*page, rw)
	mustDo(t, as.Store64(ctx, gva, 1))
	for free := range uint64(3) {
		hog, err := m.AllocSupervisor(int(m.Stats().FramesFree - free))
		mustDo(t, err)
		if _, err := as.Snapshot(); !errors.Is(err, ErrNoMemory) {
			t.Fatalf("snapshot with %d frames, of three: %v", free, err)
		}
		mustCheck(t, m)
		mustDo(t, as.Store64(ctx, gva, 1))
		m.FreeSupervisor(hog)
	}
	s := mustSnapshot(t, as)
	for round := range 3 {
		// The guest takes all there is.
		var full error
		for i := range addr.GVA(32) {
			if full = as.Store64(ctx, gva+i*page, 100+uint64(i)); full != nil {
				break
			}
		}
		if !errors.Is(full, ErrNoMemory) {
			t.Fatalf("the guest got all that it wanted: %v", full)
		}
		mustDo(t, as.Rollback(ctx, s))
		mustCheck(t, m)
		if got, err := as.Load64(ctx, gva); got != 1 || err != nil {
			t.Fatalf("round %d: %d, %v", round, got, err)
		}
	}
	mustDo(t, errors.Join(s.Close(), as.Close()))
	mustCheck(t, m)
	if n := m.Stats().FramesInUse; n != 0 {
		t.Errorf("%d frames left in use", n)
	}
	mustDo(t, m.Close())
}

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

// A pinned frame stays with its pinner through snapshots and rollbacks, and the
// address space gets the page as it was.
func TestR7RollbackLeavesThePin(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, rw)
	mustWrite(t, as, gva, []byte("before"))
	pin, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + page}, Write)
	mustDo(t, err)
	s := mustSnapshot(t, as)
	defer s.Close()
	device := m.arena.Bytes(pin.Frames()[0])
	copy(device, "DEVICE")
	mustSee(t, as, gva, []byte("DEVICE"))
	mustWrite(t, as, gva, []byte("driver"))
	if string(device[:6]) != "driver" {
		t.Fatalf("the device reads %q after a snapshot", device[:6])
	}
	mustDo(t, as.Rollback(ctx, s))
	mustCheck(t, m)
	mustSee(t, as, gva, []byte("before"))
	copy(device, "DEVICE")
	mustWrite(t, as, gva, []byte("guest!"))
	if string(device[:6]) != "DEVICE" {
		t.Errorf("the device reads %q, which the guest wrote to a page of its own", device[:6])
	}
	mustSee(t, as, gva, []byte("guest!"))
	child := mustFork(t, as) // the pinned frame is nowhere in it
	mustSee(t, child, gva, []byte("guest!"))
	mustDo(t, pin.Release())
	mustCheck(t, m)
}

// Pages taken out of an object are gone for who rolls back to a snapshot from
// before, beside it or after.
func TestRollbackBringsNoPunchedPageBack(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	const n = 16
	gva := mustMap(t, as, MapOptions{Length: n * page, Prot: rw, Flags: MapShared | MapAnonymous})
	rounds := 50
	if *soak {
		rounds = 5000
	}
	for round := range rounds {
		for i := range addr.GVA(n) {
			mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)+1))
		}
		s := mustSnapshot(t, as)
		punch := inBackground(func() {
			if err := as.Advise(ctx, gva, n*page, AdviceRemove); err != nil {
				t.Error(err)
			}
		})
		for range round % 5 {
			mustDo(t, as.Rollback(ctx, s))
		}
		mustEnd(t, "punch", punch)
		mustCheck(t, m)
		mustDo(t, as.Rollback(ctx, s))
		mustCheck(t, m)
		for i := range addr.GVA(n) {
			if got, err := as.Load64(ctx, gva+i*page); got != 0 || err != nil {
				t.Fatalf("round %d: page %d has %d (%v), and was taken out", round, i, got, err)
			}
		}
		mustDo(t, s.Close())
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

// With a view: it is stopped, gets a new root, and is told of all that it must
// forget.
func TestR8RollbackUnderAView(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 1<<20, rw)
	for i := range addr.GVA(8) {
		mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)))
	}
	s := mustSnapshot(t, as)
	for range 5 {
		for i := range addr.GVA(8) {
			mustDo(t, as.Store64(ctx, gva+i*page, 100))
		}
		mustDo(t, as.Unmap(gva+64*page, 8*page))
		root, stops := as.Root(), r.nStops
		mustDo(t, as.Rollback(ctx, s))
		if as.Root() == root || r.nStops == stops {
			t.Error("the root was exchanged for itself, or under a running view")
		}
		for i := range addr.GVA(8) {
			if got, err := as.Load64(ctx, gva+i*page); got != uint64(i) || err != nil {
				t.Errorf("page %d: %d, %v", i, got, err)
			}
		}
		mustCheck(t, m)
	}
	mustDo(t, s.Close())
	mustDo(t, as.Close())
	for _, e := range r.errs {
		t.Error(e)
	}
	mustDo(t, m.DetachView())
}

// A snapshot owns a path once pages were taken out of an object there: a rollback
// shares that path, and takes write permission from both sides.
func TestR6RollbackSharesWhatTheSnapshotOwned(t *testing.T) {
	m := newMemory(t, 16<<20)
	attachRecorder(t, m)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	shm := mustMap(t, as, MapOptions{Addr: 0x50000000, Length: page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, errors.Join(as.Store64(ctx, gva, 1), as.Store64(ctx, shm, 1)))
	s := mustSnapshot(t, as)
	mustDo(t, as.Advise(ctx, shm, page, AdviceRemove))
	for round := range uint64(3) {
		mustDo(t, as.Rollback(ctx, s))
		if got, err := as.Load64(ctx, gva); got != 1 || err != nil {
			t.Errorf("round %d: %d (%v)", round, got, err)
		}
		mustDo(t, errors.Join(as.Store64(ctx, gva, 2+round), as.Store64(ctx, shm, 2)))
		mustCheck(t, m)
		mustDo(t, as.Advise(ctx, shm, page, AdviceRemove))
	}
	mustDo(t, errors.Join(s.Close(), as.Close()))
	mustDo(t, m.DetachView())
}

func TestDiffListsWhatDiffers(t *testing.T) {
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, rw)
	for i := range addr.GVA(1024) {
		mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)))
	}
	s := mustSnapshot(t, as)
	defer s.Close()
	list := func(a, b Comparable, mode DiffMode) (out []Difference) {
		for d, err := range Diff(a, b, mode) {
			mustDo(t, err)
			out = append(out, d)
		}
		return out
	}
	if d := list(as, s, ByFrame); d != nil {
		t.Errorf("nothing was written, and there differs %v", d)
	}
	mustDo(t, as.Store64(ctx, gva+3*page, 3)) // what was there
	mustDo(t, as.Store64(ctx, gva+4*page, 1))
	mustDo(t, as.Store64(ctx, gva+600*page, 1))
	mustDo(t, as.Protect(gva+700*page, 2*page, ProtRead))
	mustDo(t, as.Unmap(gva+1000*page, page))
	mapAt(t, as, 0x60000000, page, rw)
	at := func(i, n addr.GVA) addr.Range { return addr.Range{Start: gva + i*page, End: gva + (i+n)*page} }
	mappings := []Difference{{at(700, 2), true}, {at(1000, 1), true}, {addr.Range{Start: 0x60000000, End: 0x60000000 + page}, true}}
	for _, c := range []struct {
		mode DiffMode
		want []Difference
	}{
		{ByFrame, append([]Difference{{at(3, 2), false}, {at(600, 1), false}}, mappings...)},
		{ByContent, append([]Difference{{at(4, 1), false}, {at(600, 1), false}}, mappings...)},
	} {
		if d := cmp.Diff(c.want, list(s, as, c.mode)); d != "" {
			t.Errorf("mode %d (-want +got):\n%s", c.mode, d)
		}
	}
	other := newSpace(t, newMemory(t, 1<<20))
	gone := mustSnapshot(t, as)
	mustDo(t, gone.Close())
	for _, c := range []struct {
		b    Comparable
		want error
	}{{other, ErrOtherSpace}, {gone, ErrClosed}, {nil, ErrInvalid}, {(*SpaceSnapshot)(nil), ErrInvalid}, {(*AddressSpace)(nil), ErrInvalid}} {
		n := 0
		for _, err := range Diff(as, c.b, ByFrame) {
			if n++; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
		if n != 1 {
			t.Errorf("%d yields of an error", n)
		}
	}
	mustCheck(t, m)
}

// The limit on pins, and what else is refused, with the books as before.
func TestR7PinsAreAccountedAndLimited(t *testing.T) {
	m := newMemory(t, 16<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxPinned: 4 * page})
	mustDo(t, err)
	gva := mapAt(t, as, 0x40000000, 8*page, rw)
	pinned := func(want uint64) {
		t.Helper()
		if got := as.Stats().PinnedBytes; got != want*page {
			t.Errorf("%d bytes are counted as pinned, want %d pages", got, want)
		}
		mustCheck(t, m)
	}
	r := func(i, n addr.GVA) addr.Range { return addr.Range{Start: gva + i*page, End: gva + (i+n)*page} }
	p, err := as.Pin(ctx, r(0, 3), Write)
	mustDo(t, err)
	pinned(3)
	for _, c := range []struct {
		r    addr.Range
		want error
	}{
		{r(0, 2), ErrLimit}, {r(4, 2), syscall.ENOMEM}, {r(7, 1<<30), ErrLimit},
		{addr.Range{Start: gva + 8*page, End: gva + 9*page}, ErrNotMapped},
	} {
		if _, err := as.Pin(ctx, c.r, Write); !errors.Is(err, c.want) {
			t.Errorf("pin of %v: %v, want %v", c.r, err, c.want)
		}
		pinned(3)
	}
	mustDo(t, as.Unmap(gva+4*page, page))
	if _, err := as.Pin(ctx, r(4, 1), Write); !errors.Is(err, ErrNotMapped) {
		t.Errorf("pin over a hole: %v", err)
	}
	pinned(3)
	child := mustFork(t, as)
	if n := child.Stats().PinnedBytes; n != 0 {
		t.Errorf("a child has %d bytes pinned", n)
	}
	q, err := child.Pin(ctx, r(0, 4), Write)
	mustDo(t, errors.Join(err, q.Release()))
	mustDo(t, p.Release())
	pinned(0)
	if err := p.Release(); !errors.Is(err, ErrReleased) {
		t.Errorf("released twice: %v", err)
	}
	pinned(0)
	none, err := m.NewAddressSpace(SpaceOptions{MaxPinned: -1})
	mustDo(t, err)
	mapAt(t, none, gva, page, rw)
	if _, err := none.Pin(ctx, r(0, 1), Read); !errors.Is(err, ErrLimit) {
		t.Errorf("pin where none may be: %v", err)
	}
}

// Runs are the frames, and the bytes of the mapping that vCPUs use.
func TestR7PinRunsLeadToThePages(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 6*page, rw)
	for _, i := range []addr.GVA{0, 1, 2, 5, 3, 4} { // frames in another order than pages
		mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)))
	}
	p, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + 6*page}, Write)
	mustDo(t, err)
	defer p.Release()
	var frames []addr.PFN
	for _, run := range p.Runs() {
		if want := m.Region().Slot() + addr.HVA(run.First.GPA()-m.Region().Base()); run.HVA != want {
			t.Errorf("run of %v is at %v, want %v", run.First, run.HVA, want)
		}
		for i := range run.N {
			frames = append(frames, run.First+addr.PFN(i))
		}
	}
	if d := cmp.Diff(p.Frames(), frames); d != "" {
		t.Errorf("frames of the runs (-want +got):\n%s", d)
	}
	if n := len(p.Runs()); n < 2 || n > 4 {
		t.Errorf("%d runs", n)
	}
	part := addr.Range{Start: gva + page - 8, End: gva + 3*page + 100}
	runs, err := p.HostRuns(part)
	mustDo(t, err)
	total := uint64(0)
	for _, run := range runs {
		total += run.Length
	}
	if want := p.hva(p.Frames()[0]) + page - 8; runs[0].HVA != want || total != part.Len() {
		t.Errorf("%v: from %v on, %d bytes; want %v, %d", runs, runs[0].HVA, total, want, part.Len())
	}
	for _, bad := range []addr.Range{{}, {Start: gva - 1, End: gva + 1}, {Start: gva, End: gva + 7*page}} {
		if _, err := p.HostRuns(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("runs of %v: %v", bad, err)
		}
	}
}

// A device writes through its pins for the whole of a storm of forks, snapshots,
// rollbacks, moves and unmaps: it finds every write of its own, and nobody else
// finds one that was made after the pages were shared.
func TestR7DeviceWritesThroughAStorm(t *testing.T) {
	rounds := 150
	if *soak {
		rounds = 10_000
	}
	m := newMemory(t, 32<<20)
	as := newSpace(t, m)
	const n = 6
	gva := mapAt(t, as, 0x40000000-3*page, n*page, rw)
	other := mapAt(t, as, 0x50000000, page, rw)
	pin, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + n*page}, Write)
	mustDo(t, err)
	const offDevice, offGuest = 64, 128
	var stop atomic.Bool
	var clock [n]atomic.Uint64
	var pause sync.Mutex // a check is exact when nobody is in a section
	device := inBackground(func() {
		var b [8]byte
		for x := uint64(1); !stop.Load(); x++ {
			pause.Lock()
			for i, f := range pin.Frames() {
				binary.LittleEndian.PutUint64(b[:], x)
				if _, err := m.WriteAt(b[:], f.GPA()+offDevice); err != nil {
					t.Error(err)
				}
				clock[i].Store(x)
				if _, err := m.ReadAt(b[:], f.GPA()+offDevice); err != nil || binary.LittleEndian.Uint64(b[:]) != x {
					t.Errorf("the device wrote %d to page %d and reads %d (%v)", x, i, binary.LittleEndian.Uint64(b[:]), err)
				}
			}
			pause.Unlock()
		}
	})
	// latest is the most that a copy made by now may have of the device's.
	mustStand := func(a *AddressSpace, who string, latest, seen *[n]uint64) {
		for i := range addr.GVA(n) {
			got, err := a.Load64(ctx, gva+i*page+offDevice)
			switch {
			case err != nil || got > latest[i]:
				t.Fatalf("%s has %d of the device's writes to page %d (%v); the copy was made at %d", who, got, i, err, latest[i])
			case seen[i] != 0 && got != seen[i]:
				t.Fatalf("%s: page %d went from %d to %d by the device's hand", who, i, seen[i], got)
			}
			seen[i] = got
		}
	}
	now := func() (out [n]uint64) {
		for i := range out {
			out[i] = clock[i].Load() + 1
		}
		return out
	}
	for round := range rounds {
		child := mustFork(t, as)
		latest, seen := now(), [n]uint64{}
		mustStand(child, "a child", &latest, &seen)
		// The pinner's own CPU and its device have the same pages.
		mustDo(t, as.Store64(ctx, gva+offGuest, uint64(round)))
		var b [8]byte
		_, err := m.ReadAt(b[:], pin.Frames()[0].GPA()+offGuest)
		mustDo(t, err)
		if got := binary.LittleEndian.Uint64(b[:]); got != uint64(round) {
			t.Fatalf("round %d: the device reads %d of what the guest wrote", round, got)
		}
		s := mustSnapshot(t, child)
		mustDo(t, child.Store64(ctx, gva+page, 1))
		mustDo(t, as.Store64(ctx, other, uint64(round)))
		mustDo(t, child.Rollback(ctx, s))
		mustStand(child, "a child rolled back", &latest, &seen)
		own := mustSnapshot(t, as) // copies what is pinned at once
		mustDo(t, own.Close())
		if round%10 == 0 {
			pause.Lock()
			mustCheck(t, m)
			pause.Unlock()
		}
		mustStand(child, "a child, later", &latest, &seen)
		mustDo(t, errors.Join(s.Close(), child.Close()))
	}
	// The pin holds through what takes the area away, and a rollback.
	s := mustSnapshot(t, as)
	mustDo(t, as.Protect(gva, page, ProtNone))
	mustDo(t, as.Discard(gva+page, page))
	mustDo(t, as.Unmap(gva+2*page, page))
	_, err = as.Remap(ctx, RemapOptions{Addr: gva + 3*page, OldLength: page, NewLength: page, NewAddr: 0x70000000, Flags: RemapMayMove | RemapFixed})
	mustDo(t, err)
	mustDo(t, as.Rollback(ctx, s))
	latest, seen := now(), [n]uint64{}
	for range 20 {
		mustStand(as, "the pinner's space, rolled back", &latest, &seen)
	}
	stop.Store(true)
	mustEnd(t, "the device", device)
	mustDo(t, errors.Join(pin.Release(), s.Close()))
}
