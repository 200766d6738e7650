package guestmem

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Guard pages are entries of the page table, not areas: a guard below each of a
// thousand stacks costs no area. They survive what takes pages away, and go with
// what takes areas away.
//
// To install them is a change that takes away (R1). It sweeps once: a lookup begun
// before the mark finds a guard where it would install, and loses, since the sweep
// has left no leaf in the range absent, and no table.

// installGuards makes guards of the pages of r.
//
// Errors: ErrNoMemory, for page tables, with the pages below done; as advisedHead.
func (as *AddressSpace) installGuards(r addr.Range) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := advisedHead(r, c.areas.Ascend, AdviceGuardInstall)
	if head = head.Intersect(as.bounds); head.IsEmpty() || c.areas.IsFree(head) {
		c.abort()
		return rest
	}
	c.areas.StartWrite(head)
	as.guarded = true
	s := sweptPool.Get().(*swept)
	c.areas.Ascend(head.Start, func(a *vmarea.Area) bool {
		if a.Start >= head.End {
			return false
		}
		err = c.inParts(a.Intersect(head), s, everyTable, c.as.pt.PlanGuards, c.as.pt.PutGuards)
		return err == nil
	})
	as.mem.domain.Barrier(as.id)
	c.cleanViews(s)
	c.publish()
	c.drop(s)
	c.end()
	if err != nil {
		return err
	}
	return rest
}

// removeGuards lets pages come again where guards are. It only adds; but tables
// that it replaces may be being walked.
//
// Errors: as installGuards.
func (as *AddressSpace) removeGuards(r addr.Range) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := advisedHead(r, c.areas.Ascend, AdviceGuardRemove)
	if head = head.Intersect(as.bounds); as.guarded && !head.IsEmpty() {
		s := sweptPool.Get().(*swept)
		err = c.inParts(head, s, presentTables, as.pt.PlanUnguard, as.pt.ClearGuards)
		if len(s.zapped.Tables) > 0 {
			as.mem.domain.Barrier(as.id)
		}
		c.drop(s)
	}
	c.publish()
	c.end()
	if err != nil {
		return err
	}
	return rest
}

// whichTables says where inParts goes.
type whichTables int

const (
	presentTables whichTables = iota
	everyTable                // where there is none, too
)

// inParts edits the leaves of r a leaf table at a time: plan says what edit needs.
// What was edited before an error stays so.
//
// Errors: ErrNoMemory.
func (c *changeUnderWay) inParts(r addr.Range, s *swept, which whichTables,
	plan func(pagetable.Token, addr.Range) pagetable.PathPlan,
	edit func(pagetable.Token, addr.Range, pagetable.PathPlan, *pagetable.Spare, *pagetable.Zapped)) error {
	as := c.as
	var spare pagetable.Spare
	defer func() {
		for spare.Len() > 0 {
			c.stock.put(as.mem, spare.Take())
		}
	}()
	a := as.borrow()
	defer a.giveBack()
	for !r.IsEmpty() {
		s.reserveLeaves()
		a.h.Hold()
		as.pt.LockTables()
		part, there := pagetable.LeafPart(r), true
		if which == presentTables {
			part, there = as.pt.NextLeaves(r)
		}
		done, lack := !there, 0
		if there {
			p := plan(c.tok, part)
			if lack = p.Tables - spare.Len(); lack <= 0 {
				done = c.editTables(a, p.Replaces, func() { edit(c.tok, part, p, &spare, s.zapped) })
			}
		}
		as.pt.UnlockTables()
		a.h.Free()
		switch {
		case done:
			r.Start = part.End
		case lack > 0:
			if err := c.stock.add(as.mem, &spare, lack); err != nil {
				return err
			}
		default:
			as.mem.door.wait()
		}
	}
	return nil
}

// reserveLeaves makes room for the leaves of one table, and the tables on its path.
func (s *swept) reserveLeaves() {
	s.zapped.Leaves = slices.Grow(s.zapped.Leaves, arena.EntriesPerTable)
	s.zapped.Tables = slices.Grow(s.zapped.Tables, 2*pagetable.MaxPathTables)
}
