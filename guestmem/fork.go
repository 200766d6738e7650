package guestmem

import (
	"context"
	"maps"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Fork returns a child that begins as a copy of the address space: private
// memory is copied on write, by both sides; shared memory stays shared; pinned
// pages stay with the parent, and the child gets copies at once. Its cost does
// not grow with the memory or the number of areas, only with the number of
// pinned pages, of objects mapped, and of areas that a child does not get as they
// are (AdviceDontFork, AdviceWipeOnFork).
//
// How: both sides get a new root that leads to the same tables with write
// permission off, so that everything below is shared without being looked at;
// the area tree is cloned in the same way. Writers that walked the old root are
// waited for before Fork returns (R1; TestR1ForkIsAnInstant).
//
// Errors, with nothing changed: ErrNoMemory; ErrClosed. Source: fork(2).
func (as *AddressSpace) Fork() (*AddressSpace, error) { return as.ForkContext(context.Background()) }

// ForkContext is Fork where ctx is for the wait until monitors have read of it.
//
// Errors: as Fork; that of ctx, or ErrKilled, and there is no child.
func (as *AddressSpace) ForkContext(ctx context.Context) (*AddressSpace, error) {
	child, told, err := as.fork(toRun, 0)
	if err == nil {
		if err = tellAll(ctx, as, told); err != nil {
			child.Close()
		}
	}
	if err != nil {
		return nil, opError("fork", addr.Range{}, err)
	}
	as.mem.forks.Inc()
	return child, nil
}

// forkKind is what the child of a fork is for.
type forkKind int

const (
	toRun  forkKind = iota // a process: it loses what fork(2) does not hand on
	toKeep                 // a snapshot: everything, and nobody ever looks anything up in it
)

// fork makes the child. Spare, of one to keep, becomes its spareRoot if there is no
// error.
func (as *AddressSpace) fork(kind forkKind, spare addr.PFN) (*AddressSpace, []*notice, error) {
	m := as.mem
	var roots [2]addr.PFN
	if err := m.allocateTables(roots[:]); err != nil {
		return nil, nil, err
	}
	reserve, err := as.reserveForPinned()
	if err != nil {
		m.returnTables(roots[:]...)
		return nil, nil, err
	}
	defer func() { m.returnFrames(reserve) }()
	c, err := as.startChange()
	if err != nil {
		m.returnTables(roots[:]...)
		return nil, nil, err
	}
	if kind == toKeep && c.isWatched() {
		c.abort()
		m.returnTables(roots[:]...)
		return nil, nil, errWatched
	}
	child := &AddressSpace{mem: m, id: noSpace, bounds: as.bounds, opts: as.opts, brk: as.brk, guarded: as.guarded}
	child.mon.used.Store(as.mon.used.Load())
	child.stacks.Store(as.stacks.Load())
	child.tracks.Store(as.tracks.Load())
	child.devices.Store(as.devices.Load())
	child.overlays.Store(as.overlays.Load())
	child.limits.Store(as.limits.Load())
	if kind == toKeep {
		child.frozen, child.lockFuture, child.spareRoot = true, as.lockFuture, spare
	}
	var monitors map[*Monitor]*Monitor
	if kind == toRun {
		monitors = c.noteFork(child)
	}
	if !variant.NoWholeMark {
		c.areas.StartWriteAll()
	}
	old := as.shareTables(c, roots)
	if invariants.Enabled {
		invariants.MayYield()
	}
	if !variant.ForkDoesNotWait {
		m.domain.Barrier(as.id)
	}
	if invariants.Enabled {
		as.checkOldRoot(old)
	}
	m.drop(pagetable.Dropped{Frame: old, Level: 4, Moved: true})
	child.pt = m.newTable(roots[1])
	m.returnFrames(reserve)
	reserve = nil
	err = as.copyPinned(child)
	var listed []*vmarea.Area
	if kind == toRun {
		listed = c.areas.Listed()
	}
	if err == nil {
		err = child.emptyForked(listed)
	}
	if err != nil {
		// While the parent is still marked: a write of its would find a pinned
		// frame shared with the child, and leave it.
		child.pt.DropRoot(child.pt.Root()) // where there is a view, no longer roots[1]
		child.mon.close()                  // its monitors have nothing to take away
		c.withdraw()
		c.areas.Abort()
		c.end()
		return nil, nil, err
	}
	child.tree = c.areas.Fork()
	child.objects = maps.Clone(as.objects)
	child.leaveForked(listed, monitors)
	for o := range child.objects {
		o.ref()
	}
	// Not before it is whole: from here on a check may find it.
	if err := m.addSpace(child, 0); err != nil {
		panic("guestmem: fork: the memory was closed under an open address space")
	}
	c.areas.EndWriteAll()
	c.end()
	return child, c.takeNotices(), nil
}

// shareTables gives both sides their new roots and returns the old one.
func (as *AddressSpace) shareTables(c *changeUnderWay, roots [2]addr.PFN) (old addr.PFN) {
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		if !variant.ForkOutsideTables {
			as.pt.LockTables()
		}
		done := c.editTables(a, true, func() { old = as.pt.Share(c.tok, roots[0], roots[1]) })
		if !variant.ForkOutsideTables {
			as.pt.UnlockTables()
		}
		a.h.Free()
		if done {
			return old
		}
		as.mem.door.wait()
	}
}

// checkOldRoot panics if the old root no longer leads to frames.
func (as *AddressSpace) checkOldRoot(old addr.PFN) {
	for i := range uint64(256) {
		was := pagetable.Entry(as.mem.arena.Load(old, i))
		if was != 0 && was.Frame() == 0 {
			panic("guestmem: the old root of a fork was overwritten")
		}
	}
}
