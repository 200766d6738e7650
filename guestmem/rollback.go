package guestmem

import (
	"context"
	"fmt"
	"maps"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A rollback is a fork the other way round: the address space gets a fresh root
// that leads, read-only, to what the snapshot leads to.
//
//	before   root ──► written since: its own tables and frames
//	              └─► not written:   the snapshot's
//	after    fresh root ──► the snapshot's, all of them
//	         old root      goes down where nobody else has a reference
//
// So what it costs is what the address space owns alone: the tables and frames
// that were written since, found by walking down where entries differ and not by
// a search.
//
// One exchange of roots does what R1's two sweeps do elsewhere. A lookup begun
// before the mark may still install behind the old root, which nobody walks any
// more once such lookups have ended; behind the fresh one it can install nothing,
// since its entries are read-only. Until the mark goes nobody passes StartRead, so
// that the areas may follow the tables after the grace period
// (docs/models/rollback.pml).
//
// Without a view the old root is not dropped but set right, and exchanged for the
// fresh one once more: dropping a leaf table takes 512 references away, and the
// next write to it copies it again, which together took 7 µs a table. Nobody can
// see the difference, since both roots lead to the same leaves. With a view that
// would take an invalidation for each page, and the old tables are dropped.

// Rollback returns the address space to the snapshot: its areas, break, locks,
// limits and the pages of private areas. It may be done again and again, to any of
// several snapshots, in any order; snapshots that are newer than the one that it
// goes back to stay valid. When it returns, nobody reads or writes through a
// translation from before. It takes time for what was written since and for the
// objects mapped.
//
// It is done even where memory is used up: the snapshot has the one frame that
// is needed aside.
//
// Pins are not undone. A pinned frame stays with who pinned it, out of the
// address space's sight from here on: the address space gets the page as the
// snapshot has it, which for a page that was pinned then is the copy made by
// Snapshot. A device that is to see the pages as they are now is given a new
// pin. Shared areas are mapped as they were; their pages are not rolled back.
//
// Errors, with nothing changed: ErrOtherSpace if it is a snapshot of another
// address space, be it a relative: a parent's is not a child's, whose areas and
// break have gone their own way since the fork, and whose owner may not know of
// the parent's secrets. ErrClosed if the snapshot or the address space is; that
// of ctx; ErrBusy where a monitor has areas; ErrInvalid for no snapshot; ErrNoMemory only where the frame kept aside
// was used before, by a rollback that could not replace it. No other call may use
// what the areas to come bring back, such as a break, on what it read before.
func (as *AddressSpace) Rollback(ctx context.Context, s *SpaceSnapshot) error {
	const op = "rollback"
	switch {
	case s == nil:
		return opError(op, addr.Range{}, fmt.Errorf("no snapshot: %w", ErrInvalid))
	case s.of != as:
		return opError(op, addr.Range{}, ErrOtherSpace)
	case ctx.Err() != nil:
		return opError(op, addr.Range{}, ctx.Err())
	}
	if err := s.hold(); err != nil {
		return opError(op, addr.Range{}, fmt.Errorf("snapshot: %w", err))
	}
	defer s.letGo()
	if err := as.rollback(s.frozen); err != nil {
		return opError(op, addr.Range{}, err)
	}
	return nil
}

func (as *AddressSpace) rollback(to *AddressSpace) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	if c.isWatched() {
		c.abort()
		return errWatched
	}
	fresh, err := to.takeRoot()
	if err != nil {
		c.abort()
		return err
	}
	c.areas.StartWriteAll()
	old := as.restoreTables(c, to, fresh)
	if invariants.Enabled {
		invariants.MayYield()
	}
	as.mem.domain.Barrier(as.id)
	gone := as.restoreAreas(c, to)
	if as.mem.view == nil {
		as.reuseTables(c, old, fresh)
		to.spareRoot = fresh
	}
	as.rollbacks.Add(1)
	c.areas.EndWriteAll()
	if as.mem.view != nil {
		// Long where much was written, and nobody waits for it but other changes.
		as.pt.DropRoot(old)
		to.keepRoot()
	}
	c.end()
	for o := range gone {
		o.unref()
	}
	return nil
}

// reuseTables makes the old root the current one again, with what it owns set
// right, and empties the fresh one.
//
// Preconditions: lookups that walked the old root have ended, and the tree is
// marked as a whole.
func (as *AddressSpace) reuseTables(c *changeUnderWay, old, fresh addr.PFN) {
	as.pt.Revert(c.tok, old, fresh, as.mem.pastDoor)
	if rollbackHook != nil {
		rollbackHook()
	}
	as.pt.LockTables()
	as.pt.Exchange(c.tok, old)
	as.pt.UnlockTables()
	// Copiers that walked the fresh root read frames of the snapshot's, which may
	// be closed as soon as this returns.
	as.mem.domain.Barrier(as.id)
	as.pt.EmptyRoot(fresh)
}

// rollbackHook is called while the fresh root is the current one. Only tests set it.
var rollbackHook func()

// takeRoot takes a frame for a root, the one kept aside if there is no other.
//
// Preconditions: the change lock of the space that to is a snapshot of is held.
func (to *AddressSpace) takeRoot() (addr.PFN, error) {
	if f := to.spareRoot; f != 0 {
		to.spareRoot = 0
		return f, nil
	}
	var root [1]addr.PFN
	err := to.mem.allocateTables(root[:])
	return root[0], err
}

// keepRoot puts a frame aside for the next rollback. That one tries again if
// there is none to be had.
//
// Preconditions: as takeRoot.
func (to *AddressSpace) keepRoot() {
	var root [1]addr.PFN
	if to.spareRoot == 0 && to.mem.allocateTables(root[:]) == nil {
		to.spareRoot = root[0]
	}
}

// restoreTables exchanges the roots and returns the old one. Two tables mutexes
// are held, the snapshot's inside: nobody has them the other way round.
func (as *AddressSpace) restoreTables(c *changeUnderWay, to *AddressSpace, fresh addr.PFN) (old addr.PFN) {
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		as.pt.LockTables()
		to.pt.LockTables()
		done := c.editTables(a, true, func() { old = as.pt.Restore(c.tok, to.pt, fresh) })
		to.pt.UnlockTables()
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return old
		}
		as.mem.door.wait()
	}
}

// restoreAreas publishes the snapshot's areas, with all that is kept beside
// them, and returns the objects that the address space has a reference to no
// more, for the caller to drop.
func (as *AddressSpace) restoreAreas(c *changeUnderWay, to *AddressSpace) (gone map[*Object]uint64) {
	if !maps.Equal(as.objects, to.objects) {
		gone = as.objects
		as.objects = maps.Clone(to.objects)
		for o := range as.objects {
			o.ref()
		}
	}
	as.brk, as.guarded, as.lockFuture = to.brk, to.guarded, to.lockFuture
	as.stacks.Store(to.stacks.Load())
	as.limits.Store(to.limits.Load())
	c.areas.Restore(to.tree)
	return gone
}
