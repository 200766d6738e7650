package guestmem

import (
	"maps"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

// Fork returns a child that begins as a copy of the address space: private
// memory is copied on write, by both sides; shared memory stays shared; pinned
// pages stay with the parent, and the child gets copies at once. Its cost does
// not grow with the memory or the number of areas, only with the number of
// pinned pages and of objects mapped.
//
// How: both sides get a new root that leads to the same tables with write
// permission off, so that everything below is shared without being looked at;
// the area tree is cloned in the same way. Writers that walked the old root are
// waited for before Fork returns (notes on R1; TestR1ForkWaitsForWriters).
//
// Errors, with nothing changed: ErrNoMemory; ErrClosed. Source: fork(2).
func (as *AddressSpace) Fork() (*AddressSpace, error) {
	child, err := as.fork()
	if err != nil {
		return nil, opError("fork", addr.Range{}, err)
	}
	as.mem.forks.Inc()
	return child, nil
}

func (as *AddressSpace) fork() (*AddressSpace, error) {
	m := as.mem
	var roots [2]addr.PFN
	if err := m.allocateTables(roots[:]); err != nil {
		return nil, err
	}
	c, err := as.startChange()
	if err != nil {
		m.returnTables(roots[:]...)
		return nil, err
	}
	child := &AddressSpace{mem: m, bounds: as.bounds, opts: as.opts, brk: as.brk}
	if err := m.addSpace(child); err != nil {
		c.abort()
		m.returnTables(roots[:]...)
		return nil, err
	}
	c.areas.StartWriteAll()
	old := as.shareTables(c, roots)
	m.domain.Barrier(as.id)
	if invariants.Enabled {
		as.checkOldRoot(old)
	}
	m.drop(pagetable.Dropped{Frame: old, Level: 4, Moved: true})
	child.pt = pagetable.New(m.arena, m.pool, roots[1], pagetable.Options{FreshPath: m.view != nil})
	child.tree = c.areas.Fork()
	child.objects = maps.Clone(as.objects)
	for o := range child.objects {
		o.ref()
	}
	err = as.copyPinned(child)
	c.areas.EndWriteAll()
	c.end()
	if err != nil {
		child.Close()
		return nil, err
	}
	return child, nil
}

// shareTables gives both sides their new roots and returns the old one.
func (as *AddressSpace) shareTables(c *changeUnderWay, roots [2]addr.PFN) (old addr.PFN) {
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		as.pt.LockTables()
		done := c.editTables(a, true, func() { old = as.pt.Share(c.tok, roots[0], roots[1]) })
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return old
		}
		as.mem.door.wait()
	}
}

// checkOldRoot panics if the old root was changed after it was shared.
func (as *AddressSpace) checkOldRoot(old addr.PFN) {
	for i := range uint64(256) {
		was := pagetable.Entry(as.mem.arena.Load(old, i))
		if was != 0 && was.Frame() == 0 {
			panic("guestmem: the old root of a fork was overwritten")
		}
	}
}
