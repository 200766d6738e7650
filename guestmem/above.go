package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// editAbove makes one edit above the leaves at gva, as a lookup: under the tables
// mutex, with the table frames that plan asks for, with views stopped where it says
// so, in a section that began under the mutex, passed the door and StartRead. It
// returns without having called edit where a change has the area, for the attempt to
// find out about. Plan is asked under the mutex, right before.
//
// What edit makes unreachable is retired.
//
// Errors: ErrNoMemory.
func (a Accessor) editAbove(gva addr.GVA, plan func() pagetable.PathPlan,
	edit func(area *vmarea.Area, spare *pagetable.Spare, gone *pagetable.Retired)) error {
	as, m := a.as, a.as.mem
	var spare pagetable.Spare
	defer func() {
		for spare.Len() > 0 {
			m.returnTables(spare.Take())
		}
	}()
	for {
		a.h.Hold()
		if !a.h.HasRoom(pagetable.MaxPathTables) {
			a.h.Flush()
		}
		as.pt.LockTables()
		p := plan()
		if p.Tables > spare.Len() {
			as.pt.UnlockTables()
			a.h.Free()
			if err := m.addSpare(&spare, p.Tables); err != nil {
				return err
			}
			continue
		}
		done := a.editAboveIn(gva, p, &spare, edit)
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return nil
		}
		m.door.wait()
	}
}

// editAboveIn does it, and reports false, with nothing done, if the door was shut.
//
// Preconditions: the slot is held, with room for what is retired, and the tables
// mutex; spare has what p asks for.
func (a Accessor) editAboveIn(gva addr.GVA, p pagetable.PathPlan, spare *pagetable.Spare,
	edit func(*vmarea.Area, *pagetable.Spare, *pagetable.Retired)) bool {
	as := a.as
	if v := as.mem.view; v != nil && p.Replaces {
		v.Stop(as)
		defer v.Resume(as)
	}
	a.h.Return(as.id)
	defer a.h.Leave()
	if !as.mem.door.passes() {
		return false
	}
	area, status := as.tree.StartRead(gva)
	if status != vmarea.Found {
		return true
	}
	var gone pagetable.Retired
	edit(area, spare, &gone)
	as.tree.EndRead(area)
	for _, d := range gone.All() {
		a.h.Retire(itemOf(d))
	}
	return true
}
