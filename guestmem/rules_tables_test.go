package guestmem

import (
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

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

// planPath has edit make the path of a page, with the tables that this takes and room
// to retire those it takes the place of.
//
// Preconditions: the tables mutex is held.
func planPath(t *testing.T, as *AddressSpace, gva addr.GVA, edit func(a Accessor, plan pagetable.PathPlan, spare *pagetable.Spare)) {
	t.Helper()
	a := as.borrow()
	defer a.giveBack()
	var spare pagetable.Spare
	plan := as.pt.PlanPath(gva, 1, true)
	mustDo(t, as.mem.addSpare(&spare, plan.Tables))
	a.h.Hold()
	defer a.h.Free()
	if !a.h.HasRoom(pagetable.MaxPathTables) {
		a.h.Flush()
	}
	edit(a, plan, &spare)
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
	planPath(t, as, gva, func(a Accessor, plan pagetable.PathPlan, spare *pagetable.Spare) { a.editPath(gva, plan, spare) })
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
	planPath(t, as, gva, func(a Accessor, _ pagetable.PathPlan, spare *pagetable.Spare) {
		a.h.Return(as.id)
		var gone pagetable.Retired
		as.pt.OwnPath(gva, 1, true, spare, &gone) // of a fault that passed StartRead before the fork
		for _, d := range gone.All() {
			a.h.Retire(itemOf(d))
		}
		a.h.Leave()
	})
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
