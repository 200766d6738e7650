package guestmem

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A pinned frame stays with its pinner through snapshots and rollbacks, and the
// address space gets the page as it was.
func TestR7RollbackLeavesThePin(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, rw)
	mustWrite(t, as, gva, []byte("before"))
	pin := mustPin(t, as, gva, 1, Write)
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
