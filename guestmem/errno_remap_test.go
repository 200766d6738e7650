package guestmem

import (
	"errors"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What the kernel is not asked: bounds of a space's own, limits, other memories'
// failures; the rest is TestCornersRemap and TestCornersStack.

func TestErrnoRemapAtTheAreaLimit(t *testing.T) {
	m := newMemory(t, 16<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxAreas: 12})
	mustDo(t, err)
	for i := range 7 {
		mapAt(t, as, pg(4*i), 3*page, rw)
	}
	before := layout(as)
	remap := func(flags RemapFlags, to addr.GVA, old, now uint64) error {
		_, err := as.Remap(ctx, RemapOptions{Addr: pg(1), OldLength: old, NewLength: now, Flags: flags, NewAddr: to})
		return err
	}
	// 7 + 2 reach the limit less 3.
	mustErrno(t, "to a fixed address", remap(RemapMayMove|RemapFixed, pg(100), page, page), syscall.ENOMEM)
	mustErrno(t, "leaving the source", remap(RemapMayMove|RemapDontUnmap, 0, page, page), syscall.ENOMEM)
	mustErrno(t, "the source is not looked at first", func() error {
		_, err := as.Remap(ctx, RemapOptions{Addr: pg(99), OldLength: page, NewLength: page, Flags: RemapMayMove | RemapFixed, NewAddr: pg(200)})
		return err
	}(), syscall.ENOMEM)
	if got := layout(as); got != before {
		t.Errorf("areas %s, were %s", got, before)
	}
	mustErrno(t, "growing elsewhere", remap(RemapMayMove, 0, page, 2*page), 0)
	mustErrno(t, "growing elsewhere, at the limit", func() error {
		_, err := as.Remap(ctx, RemapOptions{Addr: pg(4), OldLength: page, NewLength: 4 * page, Flags: RemapMayMove})
		return err
	}(), syscall.ENOMEM)
	mustErrno(t, "shrinking", func() error {
		_, err := as.Remap(ctx, RemapOptions{Addr: pg(4), OldLength: 3 * page, NewLength: page})
		return err
	}(), 0)
	mustCheck(t, m)
}

func TestErrnoRemapClosed(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	mapAt(t, as, pg(0), page, rw)
	mustDo(t, as.Close())
	if _, err := as.Remap(ctx, RemapOptions{Addr: pg(0), OldLength: page, NewLength: page}); !errors.Is(err, ErrClosed) {
		t.Errorf("Remap of a closed space: %v", err)
	}
}

// The bounds of a space are its own: a stack does not grow below them.
func TestErrnoStackBounds(t *testing.T) {
	m := newMemory(t, 16<<20)
	as, err := m.NewAddressSpace(SpaceOptions{Lowest: pg(0), Highest: pg(64), MaxStack: 8 * page})
	mustDo(t, err)
	mustMap(t, as, MapOptions{Addr: pg(4), Length: page, Prot: rw, Flags: anon | MapFixed | MapGrowsDown})
	mustErrno(t, "below the lowest address", opError("fault", addr.Range{}, as.Fault(ctx, pg(-1), Write)), syscall.EFAULT)
	mustDo(t, as.Fault(ctx, pg(0), Write))
	if got := layout(as); got != "0-5 rw-p" {
		t.Errorf("areas %s", got)
	}
	mustMap(t, as, MapOptions{Addr: pg(60), Length: page, Prot: rw, Flags: anon | MapFixed | MapGrowsDown})
	if err := as.Fault(ctx, pg(52), Read); !errors.Is(err, ErrNotMapped) {
		t.Errorf("a stack grew beyond its limit: %v", err)
	}
	mustDo(t, as.Fault(ctx, pg(53), Read))
	mustCheck(t, m)
}

// Whoever is beside a growing stack sees it grow once.
func TestStackGrowsBesideOthers(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	mustMap(t, as, MapOptions{Addr: pg(1000), Length: page, Prot: rw, Flags: anon | MapFixed | MapGrowsDown})
	child := mustFork(t, as)
	var all []<-chan struct{}
	for i := range 8 {
		all = append(all, inBackground(func() {
			for n := range 100 {
				space := []*AddressSpace{as, child}[(i+n)%2]
				if err := space.Store64(ctx, pg(999-n), uint64(n)); err != nil {
					t.Error(err)
				}
			}
		}))
	}
	for _, done := range all {
		mustEnd(t, "stores below a stack", done)
	}
	for _, space := range []*AddressSpace{as, child} {
		if got := layout(space); got != "900-1001 rw-p" {
			t.Errorf("areas %s", got)
		}
	}
	mustCheck(t, m)
}
