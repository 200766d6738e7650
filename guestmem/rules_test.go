package guestmem

import (
	"strings"
	"testing"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// parkedReader is a reader that has entered a section and walked to a page, and
// is then descheduled until the test lets it go on.
type parkedReader struct {
	a     Accessor
	frame addr.PFN
}

func parkAt(t *testing.T, as *AddressSpace, gva addr.GVA, access Access) *parkedReader {
	t.Helper()
	p := &parkedReader{a: as.borrow()}
	p.a.h.Enter(as.id)
	f, ok := as.pt.Translate(gva, needFor(access))
	if !ok {
		t.Fatalf("%v is not there", gva)
	}
	p.frame = f
	return p
}

func (p *parkedReader) bytes() []byte { return p.a.as.mem.arena.Bytes(p.frame) }

func (p *parkedReader) leave() {
	p.a.h.Exit()
	p.a.giveBack()
}

// Interleaving 1: grace period before the edit only.
//
//	copier K                         change
//	enters, walks to a writable page
//	                                 swaps the root, or sweeps
//	stores to the page
//	leaves
//	                                 returns, and not earlier
//
// Were the change to return before K's store, the store would hit a frame that
// a child now shares, that was given away, or that is read-only.
func TestR1ChangeWaitsForWriters(t *testing.T) {
	for name, change := range map[string]func(*AddressSpace, addr.GVA) error{
		"fork": func(as *AddressSpace, _ addr.GVA) error {
			child, err := as.Fork()
			if err == nil {
				mustSee(t, child, 0x40000000, []byte("K was here"))
			}
			return err
		},
		"unmap":   func(as *AddressSpace, gva addr.GVA) error { return as.Unmap(gva, page) },
		"discard": func(as *AddressSpace, gva addr.GVA) error { return as.Discard(gva, page) },
		"guard":   func(as *AddressSpace, gva addr.GVA) error { return as.Advise(ctx, gva, page, AdviceGuardInstall) },
		"discard beside guards": func(as *AddressSpace, gva addr.GVA) error {
			as.guarded = true
			return as.Discard(gva, page)
		},
		"protect": func(as *AddressSpace, gva addr.GVA) error { return as.Protect(gva, page, ProtRead) },
		"remap": func(as *AddressSpace, gva addr.GVA) error {
			to, err := as.Remap(ctx, RemapOptions{Addr: gva, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: 0x70000000})
			if err == nil {
				mustSee(t, as, to, []byte("K was here"))
			}
			return err
		},
		"remap over": func(as *AddressSpace, gva addr.GVA) error {
			_, err := as.Remap(ctx, RemapOptions{Addr: gva + page, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: gva})
			return err
		},
		"map over": func(as *AddressSpace, gva addr.GVA) error {
			_, err := as.Map(ctx, MapOptions{Addr: gva, Length: page, Prot: ProtRead, Flags: MapPrivate | MapAnonymous | MapFixed})
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, 16<<20)
			as := newSpace(t, m)
			gva := mapAt(t, as, 0x40000000, 4*page, ProtRead|ProtWrite)
			mustWrite(t, as, gva, []byte("before"))
			k := parkAt(t, as, gva, Write)
			// The change may do all it likes but return.
			done := inBackground(func() {
				if err := change(as, gva); err != nil {
					t.Error(err)
				}
			})
			if !parked(done) {
				t.Error("the change returned beside a copier that had walked the table")
			}
			copy(k.bytes(), "K was here")
			k.leave()
			mustEnd(t, name, done)
		})
	}
}

// A lookup that passed StartRead before the mark installs after the first
// sweep:
//
//	fault F                          unmap
//	enters, StartRead passes
//	                                 marks, sweeps: nothing there
//	installs a page
//	leaves
//	                                 sweeps again
func TestR1SecondSweepFindsLateInstalls(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva+page, []byte("makes the leaf table"))

	a := as.borrow()
	a.h.Hold()
	mustDo(t, m.refill(a.h))
	a.h.Return(as.id)
	area, status := as.tree.StartRead(gva)
	if status != vmarea.Found {
		t.Fatal(status)
	}
	done := inBackground(func() {
		if err := as.Unmap(gva, page); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("unmap did not wait for a fault that had begun")
	}
	if o := as.faultIn(area, a.h.Local().(*cow.Cache), a, &attempt{gva: gva, access: Write}); o != resolved {
		t.Fatalf("the late install: outcome %d", o)
	}
	as.tree.EndRead(area)
	a.h.Exit()
	a.giveBack()
	mustEnd(t, "unmap", done)
	if e := as.leafEntry(gva); e != 0 {
		t.Errorf("a page installed late outlived the unmap: entry %#x", uint64(e))
	}
	mustCheck(t, m)
}

// leafEntry returns the leaf of gva.
func (as *AddressSpace) leafEntry(gva addr.GVA) pagetable.Entry {
	a := as.borrow()
	defer a.giveBack()
	a.h.Enter(as.id)
	defer a.h.Exit()
	return as.pt.Find(gva).Entry
}

// A lookup whose section begins after the mark does not pass until the change
// has ended, and the slow path waits for it.
func TestR2FaultWaitsForTheChangeOfItsAreaOnly(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, ProtRead|ProtWrite)
	other := mapAt(t, as, 0x50000000, 4*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("x"))
	k := parkAt(t, as, gva, Write) // holds the change in its grace period
	change := inBackground(func() { as.Protect(gva, 4*page, ProtRead) })
	if !parked(change) {
		t.Fatal("the change did not wait")
	}
	fault := inBackground(func() {
		if err := as.Fault(ctx, gva+page, Write); err == nil {
			t.Error("a write fault passed into an area that became read-only")
		}
	})
	if !parked(fault) {
		t.Error("a fault did not wait for the change that has its area")
	}
	mustEnd(t, "a fault in another area", inBackground(func() {
		if err := as.Fault(ctx, other, Write); err != nil {
			t.Error(err)
		}
	}))
	mustEnd(t, "a copy in another area", inBackground(func() { mustWrite(t, as, other, []byte("y")) }))
	k.leave()
	mustEnd(t, "protect", change)
	mustEnd(t, "fault", fault)
}

// Interleaving 5: count dropped at once.
//
//	reader K of the parent     parent                   child
//	walks to F0
//	                           writes: F0 -> copy F1
//	                                                    writes: is F0 mine alone?
//	reads F0
//
// If the parent's reference were dropped at once, the child would take F0 over
// in place, and K would read the child's bytes: a leak across guests.
func TestR4DropIsRetired(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("shared"))
	mustWrite(t, as, gva+page, []byte("first"))
	child := mustFork(t, as)
	mustWrite(t, as, gva+page, []byte("makes the parent's own tables"))
	m.domain.FlushAll()
	k := parkAt(t, as, gva, Read)
	mustEnd(t, "the parent's write", inBackground(func() { mustWrite(t, as, gva, []byte("parent")) }))
	mustEnd(t, "reclaiming", inBackground(func() { m.domain.FlushAll() }))
	mustEnd(t, "the child's write", inBackground(func() { mustWrite(t, child, gva, []byte("secret")) }))
	if got := string(k.bytes()[:6]); got != "shared" {
		t.Errorf("a reader of the parent reads %q in the frame it walked to", got)
	}
	k.leave()
	mustSee(t, as, gva, []byte("parent"))
	mustSee(t, child, gva, []byte("secret"))
}

// The same for a table: the child must not free the table under a reader of the
// parent that has walked to it.
func TestR4TableDropIsRetired(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("shared"))
	child := mustFork(t, as)
	a := as.borrow()
	a.h.Enter(as.id)
	l := as.pt.Find(gva)
	mustEnd(t, "the writes", inBackground(func() {
		mustWrite(t, as, gva, []byte("parent"))
		m.domain.FlushAll()
		mustWrite(t, child, gva, []byte("child!"))
		m.domain.FlushAll()
		// Whatever was freed is used again, as tables and as data.
		other := mustFork(t, child)
		mustWrite(t, other, gva, []byte("other"))
	}))
	if got := l.Reload(); got != l.Entry {
		t.Errorf("the table that a reader walked to holds %#x, was %#x", uint64(got), uint64(l.Entry))
	}
	a.h.Exit()
	a.giveBack()
}

// Interleaving 4: a moved table keeps W.
//
//	parent                           child
//	(both lead to table X, whose leaves are writable)
//	copies X, drops it: every frame below has two owners
//	                                 moves X, which is now its alone
//	                                 stores: to the parent's frame?
//
// And one level up: the table above X is moved too, and its entry for X says
// writable from before the fork. X looks owned by the child alone, but was copied
// by the parent meanwhile.
func TestR6MovedTableDoesNotTrustTheTablesBelow(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	const table = 2 << 20
	gva := mapAt(t, as, 0x40000000, 2*table, ProtRead|ProtWrite)
	for i := range addr.GVA(4) {
		mustWrite(t, as, gva+i*page, []byte("parent"))
		mustWrite(t, as, gva+table+i*page, []byte("parent"))
	}
	child := mustFork(t, as)
	mustWrite(t, as, gva, []byte("copies the tables"))
	mustWrite(t, as, gva+table, []byte("copies the tables"))
	m.domain.FlushAll()
	mustWrite(t, child, gva+page, []byte("child!")) // moves both tables' parent
	mustWrite(t, child, gva+table+page, []byte("child!"))
	for i := range addr.GVA(2) {
		mustSee(t, as, gva+i*table+page, []byte("parent"))
		mustSee(t, child, gva+i*table, []byte("parent"))
		mustSee(t, child, gva+i*table+3*page, []byte("parent"))
	}
	mustCheck(t, m)
}

// R6: once the last relative has gone, a write copies nothing.
func TestR6NoCopyAfterTheLastRelativeExited(t *testing.T) {
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	const n = 1024
	gva := mapAt(t, as, 0x40000000, n*page, ProtRead|ProtWrite)
	for i := range addr.GVA(n) {
		mustWrite(t, as, gva+i*page, []byte{byte(i), 1})
	}
	for range 3 {
		a, b := mustFork(t, as), mustFork(t, as)
		c := mustFork(t, b)
		mustWrite(t, a, gva, []byte("a"))
		mustWrite(t, c, gva+700*page, []byte("c"))
		mustWrite(t, as, gva+100*page, []byte{100, 1})
		mustDo(t, b.Close())
		mustDo(t, a.Close())
		mustDo(t, c.Close())
		before := m.Stats()
		for i := range addr.GVA(n) {
			mustWrite(t, as, gva+i*page, []byte{byte(i), 1})
		}
		after := m.Stats()
		if copied := after.Copied - before.Copied; copied != 0 {
			t.Fatalf("%d pages were copied though no relative is left", copied)
		}
		if after.FramesInUse != before.FramesInUse {
			t.Fatalf("frames in use: %d, before the writes %d", after.FramesInUse, before.FramesInUse)
		}
	}
}

// A data copy is of one frame, whoever writes first.
func TestR6ACopyIsOfOneFrame(t *testing.T) {
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, ProtRead|ProtWrite)
	mustDo(t, as.Populate(ctx, addr.Range{Start: gva, End: gva + 4<<20}, Write))
	child := mustFork(t, as)
	before := m.Stats()
	mustWrite(t, child, gva+5*page, []byte("one"))
	after := m.Stats()
	if n := after.Copied - before.Copied; n != 1 {
		t.Fatalf("%d frames copied for one byte", n)
	}
	if n := after.FramesInUse - before.FramesInUse; n != 1+3 {
		t.Fatalf("%d more frames in use, want one of data and three tables", n)
	}
}

// Interleaving 6: lost install.
//
//	fault A                          fault B
//	                                 finds its path shared
//	copies the path, publishes it
//	installs its page
//	                                 makes its path: of what is there now
func TestR6NoInstallIsLostToAPathCopy(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("both share this"))
	mustFork(t, as)

	as.pt.LockTables()
	b := inBackground(func() { mustWrite(t, as, gva+2<<20, []byte("B")) })
	if !parked(b) {
		t.Error("a path was edited without the tables mutex")
	}
	a := as.borrow()
	var spare pagetable.Spare
	plan := as.pt.PlanPath(gva, 1, true)
	mustDo(t, m.addSpare(&spare, plan.Tables))
	a.h.Hold()
	if !a.h.HasRoom(pagetable.MaxPathTables) {
		a.h.Flush()
	}
	a.editPath(gva, plan, &spare)
	a.h.Free()
	a.giveBack()
	as.pt.UnlockTables()
	mustEnd(t, "A", inBackground(func() { mustWrite(t, as, gva+page, []byte("A")) }))
	mustEnd(t, "B", b)
	mustSee(t, as, gva+page, []byte("A"))
	mustSee(t, as, gva+2<<20, []byte("B"))
	mustCheck(t, m)
}

// Interleaving 15: fork copies the root outside of the tables mutex.
//
//	fault (holds the mutex)          fork
//	reads: table T has one owner
//	                                 copies the root: both sides lead to T
//	moves T, retires it
func TestR6ForkWaitsForThePathBeingMoved(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("T"))
	mustDo(t, mustFork(t, as).Close()) // the tables have one owner, behind a read-only root entry

	as.pt.LockTables()
	var child *AddressSpace
	fork := inBackground(func() {
		var err error
		if child, err = as.Fork(); err != nil {
			t.Error(err)
		}
	})
	if !parked(fork) {
		t.Error("fork copied the root beside a path edit")
	}
	a := as.borrow()
	var spare pagetable.Spare
	plan := as.pt.PlanPath(gva, 1, true)
	mustDo(t, m.addSpare(&spare, plan.Tables))
	a.h.Hold()
	if !a.h.HasRoom(pagetable.MaxPathTables) {
		a.h.Flush()
	}
	a.h.Return(as.id)
	var gone pagetable.Retired
	as.pt.OwnPath(gva, 1, true, &spare, &gone) // of a fault that passed StartRead before the fork
	for _, d := range gone.All() {
		a.h.Retire(itemOf(d))
	}
	a.h.Leave()
	a.h.Free()
	a.giveBack()
	as.pt.UnlockTables()
	mustEnd(t, "fork", fork)
	m.domain.Synchronize()
	mustCheck(t, m)
	mustWrite(t, child, gva, []byte("c"))
	mustSee(t, as, gva, []byte("T"))
	mustSee(t, child, gva, []byte("c"))
}

// A path is owned on behalf of a fault whose section has ended:
//
//	writer K            fault L            fault M            fork
//	walks to F, W
//	                                       lacks its path,
//	                                       leaves
//	                    StartRead passes
//	                                                          marks, shares, waits for K, L
//	                                       copies the tables
//	                                       of the new root
//	                    walks: F has two
//	                    owners; copies it
//	stores to F: the child has it, and not the parent
//
// So M is refused: it asks StartRead again.
func TestR2NoPathIsOwnedBesideAFork(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("before"))
	k := parkAt(t, as, gva, Write) // holds the fork in its grace period
	var child *AddressSpace
	fork := inBackground(func() {
		var err error
		if child, err = as.Fork(); err != nil {
			t.Error(err)
		}
	})
	if !parked(fork) {
		t.Fatal("fork did not wait for a writer")
	}
	mustEnd(t, "M", inBackground(func() {
		a := as.borrow()
		defer a.giveBack()
		if err := a.ownPath(gva); err != nil {
			t.Error(err)
		}
	}))
	if as.pt.Find(gva).Owned {
		t.Error("a path was owned while a fork was waiting for writers")
	}
	copy(k.bytes(), "K's")
	k.leave()
	mustEnd(t, "fork", fork)
	mustSee(t, as, gva, []byte("K'sore"))
	mustSee(t, child, gva, []byte("K'sore"))
}

// Interleaving 10: a barrier inside a section would wait for itself. Memory is
// so small that faults have to reclaim what they retired themselves.
func TestR4RefillingNeverWaitsForItself(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 40 * page, Grow: page})
	mustDo(t, err)
	defer m.Close()
	as, err := m.NewAddressSpace(SpaceOptions{})
	mustDo(t, err)
	defer as.Close()
	gva := mapAt(t, as, 0x40000000, 8*page, ProtRead|ProtWrite)
	done := inBackground(func() {
		for round := range 200 {
			for i := range addr.GVA(8) {
				if _, err := as.WriteAt(ctx, []byte{byte(round)}, gva+i*page); err != nil {
					t.Errorf("round %d: %v", round, err)
					return
				}
			}
			child, err := as.Fork()
			if err != nil {
				t.Errorf("round %d: %v", round, err)
				return
			}
			for i := range addr.GVA(8) {
				if _, err := as.WriteAt(ctx, []byte{byte(round)}, gva+i*page); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			}
			child.Close()
		}
	})
	mustEnd(t, "copying with no frame to spare", done)
	mustCheck(t, m)
}

// R14: no guest reaches a table, or a frame of the platform's, as memory.
func TestR14TablesAreNeverMappedAsData(t *testing.T) {
	if !invariants.Enabled {
		t.Log("checked under the invariants tag only")
		return
	}
	m := newMemory(t, 16<<20)
	frames, err := m.AllocSupervisor(2)
	mustDo(t, err)
	defer m.FreeSupervisor(frames)
	as := newSpace(t, m)
	for _, f := range []addr.PFN{as.Root(), frames[1]} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("frame %v was taken for a guest's", f)
				}
			}()
			m.assertData(f)
		}()
	}
	// And the walk finds it, if it happens all the same.
	gva := mapAt(t, as, 0x40000000, page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("x"))
	l := as.pt.Find(gva)
	m.pool.Share([]addr.PFN{as.Root()})
	entry := m.arena.Entry(tableOf(as, gva), uint64(gva>>addr.PageShift)&511)
	was := *entry
	*entry = uint64(pagetable.LeafEntry(as.Root(), pagetable.User|pagetable.Writable|pagetable.NoExec))
	if err := m.Check(); err == nil || !strings.Contains(err.Error(), "mapped as data") {
		t.Errorf("Check of a table that is mapped as data: %v", err)
	}
	*entry = was
	m.pool.Drop(as.Root())
	if got := l.Reload(); uint64(got) != was {
		t.Error("the test did not find the leaf table")
	}
}

// tableOf returns the leaf table at gva.
func tableOf(as *AddressSpace, gva addr.GVA) addr.PFN {
	f := as.Root()
	for shift := 39; shift > 12; shift -= 9 {
		f = pagetable.Entry(as.mem.arena.Load(f, uint64(gva>>shift)&511)).Frame()
	}
	return f
}
