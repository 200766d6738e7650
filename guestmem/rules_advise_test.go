package guestmem

import (
	"errors"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Interleaving 11: pages are taken out of an object that several spaces map.
//
//	copier K in space B              AdviceRemove in space A
//	enters, walks to the page
//	                                 marks it in the object, sweeps A, sweeps B
//	stores to the page
//	leaves
//	                                 drops it, and not earlier
//
// Were the frame dropped before, K would store to a frame that is somebody else's.
func TestR1RemoveWaitsForEverySpace(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva, err := as.Map(ctx, MapOptions{Addr: 0x40000000, Length: 4 * page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, err)
	mustWrite(t, as, gva, []byte("before"))
	child, err := as.Fork()
	mustDo(t, err)
	mustWrite(t, child, gva, []byte("before")) // in tables of its own
	k := parkAt(t, child, gva, Write)
	done := inBackground(func() {
		if err := as.Advise(ctx, gva, page, AdviceRemove); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("the pages were taken out beside a copier of another space")
	}
	// Meanwhile a fault on the page waits, and finds it empty then.
	read := inBackground(func() { mustSee(t, as, gva, make([]byte, 6)) })
	if !parked(read) {
		t.Error("a page that is being taken out was found")
	}
	copy(k.bytes(), "K was here")
	k.leave()
	mustEnd(t, "remove", done)
	mustEnd(t, "fault", read)
	mustSee(t, child, gva, make([]byte, 10))
	mustWrite(t, child, gva, []byte("after"))
	mustSee(t, as, gva, []byte("after"))
	mustDo(t, child.Close())
	mustCheck(t, m)
}

// A fault that has found the object's page before it was marked installs it after
// the first sweep: the second one finds it.
func TestR1RemoveSweepsTwice(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva, err := as.Map(ctx, MapOptions{Addr: 0x40000000, Length: 4 * page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, err)
	mustWrite(t, as, gva, []byte("old"))
	mustWrite(t, as, gva+page, []byte("keeps the table"))
	mustDo(t, as.Discard(gva, page))

	a := as.borrow()
	a.h.Enter(as.id)
	area, status := as.tree.StartRead(gva)
	if status != vmarea.Found {
		t.Fatal(status)
	}
	f, ok := area.Backing.(*Object).page(area.OffsetOf(gva) / page)
	if !ok {
		t.Fatal("the object has lost its page")
	}
	done := inBackground(func() {
		if err := as.Advise(ctx, gva, page, AdviceRemove); err != nil {
			t.Error(err)
		}
	})
	if !parked(done) {
		t.Error("the change did not wait for a lookup that had begun")
	}
	m.pool.Share([]addr.PFN{f})
	if !as.pt.Find(gva).Install(pagetable.LeafEntry(f, permOf(rw)|pagetable.Shared)) {
		t.Fatal("the late fault could not install")
	}
	as.tree.EndRead(area)
	a.h.Exit()
	a.giveBack()
	mustEnd(t, "remove", done)
	mustSee(t, as, gva, make([]byte, 3))
	mustCheck(t, m)
}

// What lists the areas that a child does not get keeps up with every edit.
func TestForkLeavesOutWhatItIsTold(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	obj, err := as.Map(ctx, MapOptions{Addr: pg(0), Length: 8 * page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	mustDo(t, err)
	mapAt(t, as, pg(10), 8*page, rw)
	for i := range addr.GVA(8) {
		mustWrite(t, as, obj+i*page, []byte{1})
		mustWrite(t, as, pg(10)+i*page, []byte{2})
	}
	mustDo(t, as.Advise(ctx, pg(0), 8*page, AdviceDontFork))
	mustDo(t, as.Advise(ctx, pg(12), 4*page, AdviceWipeOnFork))
	mustDo(t, as.Unmap(pg(13), page))
	to, err := as.Remap(ctx, RemapOptions{Addr: pg(14), OldLength: 2 * page, NewLength: 2 * page, Flags: RemapMayMove | RemapFixed, NewAddr: pg(30)})
	mustDo(t, err)
	child, err := as.Fork()
	mustDo(t, err)
	if got, want := layout(child), "10-12 rw-p, 12-13 rw-p, 16-18 rw-p, 30-32 rw-p"; got != want {
		t.Errorf("the child has %q, want %q", got, want)
	}
	mustSee(t, child, pg(11), []byte{2})
	mustSee(t, child, pg(12), []byte{0})
	mustSee(t, child, to, []byte{0})
	mustSee(t, as, to, []byte{2})
	mustDo(t, as.Close())
	mustCheck(t, m)
	mustDo(t, child.Close())
	if s := m.Stats(); s.ObjectPages != 0 {
		t.Errorf("%d pages of objects are left", s.ObjectPages)
	}
}

// A view is told of what a guard takes away (R8), and the guard stays where a
// fault of a relative makes the tables its own.
func TestR8GuardsUnderAView(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	as := newSpace(t, m)
	gva := mapAt(t, as, pg(0), 32*page, rw)
	for i := range addr.GVA(32) {
		mustWrite(t, as, gva+i*page, []byte{byte(i)})
	}
	r.settle(t)
	mustDo(t, as.Advise(ctx, gva+10*page, 12*page, AdviceGuardInstall)) // over the border
	r.settle(t)
	child, err := as.Fork()
	mustDo(t, err)
	for _, s := range []*AddressSpace{as, child} {
		for i := range addr.GVA(32) {
			err := s.Fault(ctx, gva+i*page, Write)
			if guarded := i >= 10 && i < 22; guarded != errors.Is(err, ErrNotMapped) || !guarded && err != nil {
				t.Errorf("page %d: %v", i, err)
			}
		}
		mustDo(t, s.Discard(gva, 32*page))
		mustErrno(t, "guard", s.Fault(ctx, gva+10*page, Read), syscall.EFAULT)
	}
	mustDo(t, child.Advise(ctx, gva, 32*page, AdviceGuardRemove))
	mustWrite(t, child, gva+10*page, []byte("again"))
	mustErrno(t, "the parent's guard", as.Fault(ctx, gva+10*page, Read), syscall.EFAULT)
	mustDo(t, child.Close())
	mustDo(t, as.Unmap(gva, 32*page))
	mustDo(t, as.Close())
	mustCheck(t, m)
	if len(r.errs) > 0 {
		t.Errorf("%q", r.errs)
	}
}
