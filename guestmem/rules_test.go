package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
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

	f := parkFault(t, as, gva)
	done := inBackground(func() {
		if err := as.Unmap(gva, page); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("unmap did not wait for a fault that had begun")
	}
	f.install(t)
	f.leave()
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
