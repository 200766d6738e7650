package guestmem

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
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
