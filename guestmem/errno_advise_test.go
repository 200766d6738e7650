package guestmem

import (
	"context"
	"errors"
	"syscall"
	"testing"
)

func adviseCall(from, to int, v Advice) func(*AddressSpace) error {
	return func(as *AddressSpace) error { return as.Advise(ctx, pg(from), uint64(to-from)*page, v) }
}

// At the limit of areas a split by advice is EAGAIN, with what came before it done,
// and one by a lock is ENOMEM.
func TestErrnoAdvise(t *testing.T) {
	full := []area{{0, 3, rw, 0}, {5, 8, r_, 0}, {9, 12, rw, 0}}
	runErrnoCases(t, []errnoCase{
		{"splits", full, 3, adviseCall(1, 2, AdviceDontFork), syscall.EAGAIN, "="},
		{"a whole area", full, 3, adviseCall(0, 3, AdviceDontFork), 0, "="},
		{"splits before a hole", full, 3, adviseCall(1, 6, AdviceRandom), syscall.EAGAIN, "="},
		{"without a split", full, 3, adviseCall(1, 2, AdviceCold), 0, "="},
		{"lock splits", full, 3, func(as *AddressSpace) error { return as.Lock(ctx, pg(1), page, LockNow) }, syscall.ENOMEM, "="},
		{"unlock what is not locked", full, 3, func(as *AddressSpace) error { return as.Unlock(pg(1), page) }, 0, "="},
		{"sync", full, 3, func(as *AddressSpace) error { return as.Sync(pg(0), 8*page, SyncWait) }, syscall.ENOMEM, "="},
	})
	m := newMemory(t, 8<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxAreas: 2})
	mustDo(t, err)
	mapAt(t, as, pg(0), page, rw)
	mapAt(t, as, pg(2), 3*page, rw)
	mustErrno(t, "the first is done", as.Advise(ctx, pg(0), 4*page, AdviceDontFork), syscall.EAGAIN)
	child, err := as.Fork()
	mustDo(t, err)
	if got := layout(child); got != "2-5 rw-p" {
		t.Errorf("the child has %q", got)
	}
	stopped, stop := context.WithCancel(ctx)
	stop()
	if err := as.Advise(stopped, pg(0), page, AdvicePopulateRead); !errors.Is(err, context.Canceled) {
		t.Errorf("populate that was stopped: %v", err)
	}
	mustDo(t, child.Close())
	mustCheck(t, m)
}

func TestErrnoLimitOfLocks(t *testing.T) {
	m := newMemory(t, 8<<20)
	none, err := m.NewAddressSpace(SpaceOptions{MaxLocked: -1})
	mustDo(t, err)
	mapAt(t, none, pg(0), page, rw)
	mustErrno(t, "lock", none.Lock(ctx, pg(0), page, LockNow), syscall.EPERM)
	mustErrno(t, "lock of nothing", none.Lock(ctx, pg(3), 0, LockNow), syscall.EPERM)
	mustErrno(t, "lock mode", none.Lock(ctx, pg(0), page, 2), syscall.EINVAL)
	mustErrno(t, "lock all", none.LockAll(ctx, LockAllCurrent), syscall.EPERM)
	mustErrno(t, "lock all flags", none.LockAll(ctx, LockAllOnFault), syscall.EINVAL)
	mustErrno(t, "unlock", none.Unlock(pg(0), page), 0)
	mustErrno(t, "map locked", mapCall(MapOptions{Length: page, Prot: rw, Flags: anon | MapLocked})(none), syscall.EPERM)

	as, err := m.NewAddressSpace(SpaceOptions{MaxLocked: 4 * int64(page)})
	mustDo(t, err)
	mapAt(t, as, pg(0), 4*page, rw)
	mustDo(t, as.LockAll(ctx, LockAllCurrent))
	vec := make([]bool, 4)
	if n, err := as.Resident(pg(0), 4*page, vec); n != 4 || err != nil || !vec[0] || !vec[3] {
		t.Errorf("what is locked is there: %d %v %v", n, vec, err)
	}
	mapAt(t, as, pg(5), page, rw)
	mustErrno(t, "lock all of too much", as.LockAll(ctx, LockAllCurrent|LockAllFuture), syscall.ENOMEM)
	mustErrno(t, "and it has not begun", mapCall(MapOptions{Length: page, Prot: rw, Flags: anon})(as), 0)
	mustErrno(t, "one more", as.Lock(ctx, pg(5), 1, LockNow), syscall.ENOMEM)
	mustErrno(t, "map one more", mapCall(MapOptions{Length: page, Prot: rw, Flags: anon | MapLocked})(as), syscall.EAGAIN)
	mustDo(t, as.Unmap(pg(1), page))
	mustDo(t, as.Lock(ctx, pg(5), 1, LockNow))
	_, err = as.Remap(ctx, RemapOptions{Addr: pg(5), OldLength: page, NewLength: 2 * page})
	mustErrno(t, "grow what is locked", err, syscall.EAGAIN)
	n, err := as.Resident(pg(0), 3*page, make([]bool, 3))
	mustErrno(t, "a hole", err, syscall.ENOMEM)
	if n != 1 {
		t.Errorf("%d pages below the hole, want 1", n)
	}
	child, err := as.Fork()
	mustDo(t, err)
	mustDo(t, child.Lock(ctx, pg(2), 2*page, LockNow))
	mustDo(t, child.Discard(pg(0), page))
	mustErrno(t, "locked", as.Discard(pg(0), page), syscall.EINVAL)
	mustDo(t, as.UnlockAll())
	mustDo(t, as.Discard(pg(0), page))
	mustDo(t, child.Close())
	mustCheck(t, m)
}
