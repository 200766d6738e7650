package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

const remapTarget addr.GVA = 0x7000_0000_0000 // tables of its own

func mustRemap(t *testing.T, as *AddressSpace, o RemapOptions) addr.GVA {
	t.Helper()
	at, err := as.Remap(ctx, o)
	mustDo(t, err)
	return at
}

// walker is a copier in a goroutine of its own that has walked to a page, and
// stores there when it is told what.
type walker struct {
	store chan string
	done  <-chan struct{}
}

func walkTo(t *testing.T, as *AddressSpace, gva addr.GVA) *walker {
	t.Helper()
	w := &walker{store: make(chan string)}
	there := make(chan struct{})
	w.done = inBackground(func() {
		a := as.borrow()
		defer a.giveBack()
		a.h.Enter(as.id)
		defer a.h.Exit()
		f, ok := as.pt.Translate(gva, needFor(Write))
		close(there)
		if what := <-w.store; ok {
			copy(as.mem.arena.Bytes(f), what)
		} else {
			t.Errorf("%v was not there", gva)
		}
	})
	mustEnd(t, "the walk", there)
	return w
}

func (w *walker) leave(t *testing.T, what string) {
	t.Helper()
	w.store <- what
	mustEnd(t, "the copier", w.done)
}

// A copier that walked to the source stores there before the entry can be found
// at the target, and no later:
//
//	copier K                         remap
//	enters, walks to a writable page
//	                                 marks
//	                                 grace period, take, grace period
//	stores to the page
//	leaves
//	                                 puts the entry in at the target
//
// Were the entry at the target before, somebody could read there, and read again
// after K's store, which has an older address: a store to what was unmapped.
func TestR1RemapPutsInAfterWhoWalkedToTheSource(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, rw)
	mustWrite(t, as, gva, []byte("before"))
	was := as.leafEntry(gva)
	k := walkTo(t, as, gva)
	done := inBackground(func() {
		if _, err := as.Remap(ctx, RemapOptions{Addr: gva, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget}); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("remap returned beside a copier that had walked to its source")
	}
	if e := as.leafEntry(remapTarget); e != 0 {
		t.Errorf("the entry is at the target (%#x) beside a copier that walked to the source", uint64(e))
	}
	for name, at := range map[string]addr.GVA{"source": gva, "target": remapTarget} {
		access := inBackground(func() { _ = as.Fault(ctx, at, Write) })
		if name == "source" && !parked(access) {
			t.Error("a fault in the source did not wait")
		}
		defer mustEnd(t, "the fault in the "+name, access)
	}
	mustEnd(t, "a write beside it", inBackground(func() { mustWrite(t, as, gva+page, nil) }))
	k.leave(t, "stored")
	mustEnd(t, "remap", done)
	mustSee(t, as, remapTarget, []byte("stored"))
	if e := as.leafEntry(remapTarget); e != was {
		t.Errorf("the entry is %#x at the target, was %#x", uint64(e), uint64(was))
	}
	mustCheck(t, m)
}

// A copier that walks to the source after the first grace period, which is there
// until it is taken, is waited for by the second.
func TestR1RemapWaitsTwice(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	mustWrite(t, as, gva, []byte("before"))
	var second *walker
	took := make(chan struct{})
	takeHook = func() {
		takeHook = nil
		second = walkTo(t, as, gva) // the page is still there for it
		close(took)
	}
	defer func() { takeHook = nil }()
	done := inBackground(func() {
		if _, err := as.Remap(ctx, RemapOptions{Addr: gva, OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget}); err != nil {
			t.Error(err)
		}
	})
	mustEnd(t, "the first grace period", took)
	if !parked(done) {
		t.Error("remap returned beside a copier that walked to its source before it was taken")
	}
	second.leave(t, "second")
	mustEnd(t, "remap", done)
	mustSee(t, as, remapTarget, []byte("second"))
	mustCheck(t, m)
}

// A lookup that passed StartRead before the mark may install until it has ended:
// what it installs moves too.
func TestR1RemapTakesLateInstalls(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, rw)
	mustWrite(t, as, gva+page, []byte("makes the leaf table"))
	f := parkFault(t, as, gva)
	done := inBackground(func() {
		if _, err := as.Remap(ctx, RemapOptions{Addr: gva, OldLength: 2 * page, NewLength: 2 * page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget}); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("remap did not wait for a fault that had begun")
	}
	f.install(t)
	copy(m.arena.Bytes(as.pt.Find(gva).Entry.Frame()), "late")
	f.leave()
	mustEnd(t, "remap", done)
	if e := as.leafEntry(gva); e != 0 {
		t.Errorf("a page installed late is still at the source: entry %#x", uint64(e))
	}
	mustSee(t, as, remapTarget, []byte("late"))
	mustCheck(t, m)
}

// A pinned frame moves with its page, and fork finds it where it is: the child
// has a copy of its own there, and the device's writes stay the parent's.
func TestR7RemapTakesPinsAlong(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000-page, 3*page, rw)
	mustWrite(t, as, gva+page, []byte("pinned"))
	pin, err := as.Pin(ctx, addr.Range{Start: gva + page, End: gva + 2*page}, Write)
	mustDo(t, err)
	defer pin.Release()
	to := mustRemap(t, as, RemapOptions{Addr: gva, OldLength: 3 * page, NewLength: 5 * page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget})
	to = mustRemap(t, as, RemapOptions{Addr: to, OldLength: 5 * page, NewLength: 5 * page, Flags: RemapMayMove | RemapDontUnmap})
	if f := as.leafEntry(to + page).Frame(); f != pin.Frames()[0] {
		t.Errorf("frame %v is at the target, %v is pinned", f, pin.Frames()[0])
	}
	child := mustFork(t, as)
	copy(m.arena.Bytes(pin.Frames()[0]), "DEVICE")
	mustSee(t, as, to+page, []byte("DEVICE"))
	mustSee(t, child, to+page, []byte("pinned"))
	mustWrite(t, as, to+page, []byte("driver"))
	if got := string(m.arena.Bytes(pin.Frames()[0])[:6]); got != "driver" {
		t.Errorf("the device reads %q: the parent's write went elsewhere", got)
	}
	mustCheck(t, m)
}

// Views forget what was moved before it can be found at the target, and learn of
// the tables that are replaced.
func TestR8RemapTellsViews(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000-2*page, 4*page, rw)
	mustWrite(t, as, gva, make([]byte, 4*page))
	r.settle(t)
	child := mustFork(t, as)
	mustWrite(t, as, gva, []byte("again"))
	r.settle(t)
	r.settle(t)
	to := mustRemap(t, as, RemapOptions{Addr: gva, OldLength: 4 * page, NewLength: 4 * page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget - page})
	r.settle(t)
	mustRemap(t, child, RemapOptions{Addr: gva + page, OldLength: 2 * page, NewLength: 3 * page, Flags: RemapMayMove})
	r.settle(t)
	mustRemap(t, as, RemapOptions{Addr: to, OldLength: 2 * page, NewLength: 2 * page, Flags: RemapMayMove | RemapDontUnmap})
	r.settle(t)
	mustSee(t, child, gva+3*page, make([]byte, 8))
	r.settle(t)
	for _, e := range r.errs {
		t.Error(e)
	}
	mustCheck(t, m)
}

// What moves in a family changes no count but those of the tables on its path.
func TestR6RemapInAFamily(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4*page, rw)
	mustWrite(t, as, gva, []byte("parent"))
	child := mustFork(t, as)
	f := as.leafEntry(gva).Frame()
	mustRemap(t, as, RemapOptions{Addr: gva, OldLength: 4 * page, NewLength: 4 * page, Flags: RemapMayMove | RemapFixed, NewAddr: remapTarget})
	if n := m.pool.Of(f); n != 2 || as.leafEntry(remapTarget).Frame() != f {
		t.Errorf("frame %v has %d references, want parent's and child's", f, n)
	}
	mustWrite(t, as, remapTarget, []byte("PARENT"))
	mustSee(t, child, gva, []byte("parent"))
	mustDo(t, as.Close())
	mustWrite(t, child, gva, []byte("CHILD!"))
	if g := child.leafEntry(gva).Frame(); g != f {
		t.Errorf("the last owner of frame %v copied it to %v", f, g)
	}
	mustCheck(t, m)
}
