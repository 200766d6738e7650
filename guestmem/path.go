package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// ownPath makes the tables on the way to gva this space's own, for the leaf to
// be edited. It is the slow half of a fault, once for each 2 MiB.
//
// The order of things held: the slot of the reclaimer (so that whoever has the
// mutex never waits for one), the tables mutex, stopped views, the section.
func (a Accessor) ownPath(gva addr.GVA) error {
	as, m := a.as, a.as.mem
	var spare pagetable.Spare
	defer func() {
		for spare.Len() > 0 {
			m.returnTables(spare.Take())
		}
	}()
	if invariants.Enabled {
		invariants.MayYield()
	}
	for {
		a.h.Hold()
		if !a.h.HasRoom(pagetable.MaxPathTables) {
			a.h.Flush()
		}
		as.pt.LockTables()
		if !a.private && as.pt.Find(gva).Huge {
			// Somebody has installed it meanwhile.
			as.pt.UnlockTables()
			a.h.Free()
			return nil
		}
		plan := as.pt.PlanPath(gva, 1, true)
		if plan.Tables > spare.Len() {
			as.pt.UnlockTables()
			a.h.Free()
			if err := m.addSpare(&spare, plan.Tables); err != nil {
				return err
			}
			continue
		}
		done := plan.Tables == 0 || a.editPath(gva, plan, &spare)
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return nil
		}
		m.door.wait()
	}
}

// editPath does it, and reports false if the door was shut.
//
// StartRead is asked again in its section, as in any other. Were it not, a fault
// that found its path lacking before a fork was marked could copy the tables of
// the new root while the fork still waits for writers that walked the old one: a
// fault that began as early would then see its frame shared and copy it, and
// such a writer's store would go to the child alone (docs/models/fork2.pml,
// BREAK_3; TestR2NoPathIsOwnedBesideAFork). Who is refused here has nothing
// done, and is told so by its next attempt.
//
// Preconditions: the slot is held, with room for what is retired; the tables
// mutex is held; spare has what plan asks for.
func (a Accessor) editPath(gva addr.GVA, plan pagetable.PathPlan, spare *pagetable.Spare) bool {
	as := a.as
	if v := as.mem.view; v != nil && plan.Replaces {
		v.Stop(as)
		defer v.Resume(as)
	}
	a.h.Return(as.id)
	if !as.mem.door.passes() {
		a.h.Leave()
		return false
	}
	var gone pagetable.Retired
	if a.private {
		as.pt.OwnPath(gva, 1, true, spare, &gone)
		a.h.Leave()
		for _, d := range gone.All() {
			as.mem.drop(d)
		}
		return true
	}
	if variant.PathOwnedUnasked {
		as.pt.OwnPath(gva, 1, true, spare, &gone)
	} else if area, status := as.tree.StartRead(gva); status == vmarea.Found {
		as.pt.OwnPath(gva, 1, true, spare, &gone)
		as.tree.EndRead(area)
	}
	for _, d := range gone.All() {
		a.h.Retire(itemOf(d))
	}
	a.h.Leave()
	return true
}

// addSpare fills spare up to n frames.
func (m *Memory) addSpare(spare *pagetable.Spare, n int) error {
	var buf [pagetable.MaxPathTables]addr.PFN
	want := buf[:n-spare.Len()]
	if err := m.allocateTables(want); err != nil {
		return err
	}
	for _, f := range want {
		spare.Add(f)
	}
	return nil
}
