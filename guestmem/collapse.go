package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// AdviceCollapse makes blocks of pages that are there already. It is a change, for
// it takes pages away from under whoever uses them, and one that waits first, as
// Remap is (moving.go): after the grace period nobody installs in the block any more,
// so that what is taken out is all there is, and nothing can fail once it is out.
//
//	mark, grace period
//	look and allocate          an error leaves everything as it was
//	take                       out of the table of leaves, by atomic exchange
//	grace period, views clean  nobody writes to the old frames any more
//	copy                       into the block, 64 KiB in a section
//	put                        the 2 MiB leaf in the table's place
//	grace period, unmark       nobody walks the table any more
//	drop                       frames and table
//
// Who uses the area meanwhile waits, as in Linux: for some hundred microseconds.

// collapse makes blocks of r, area by area.
//
// Errors: as Linux, see Advise.
func (as *AddressSpace) collapse(ctx context.Context, r addr.Range) error {
	var hole error
	for at := r.Start; at < r.End; {
		var area *vmarea.Area
		as.tree.Snapshot().Ascend(at, func(a *vmarea.Area) bool { area = a; return false })
		if area == nil || area.Start >= r.End {
			return fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
		}
		if area.Start > at && hole == nil {
			hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
		}
		part := area.Intersect(addr.Range{Start: at, End: r.End})
		if err := as.collapseIn(ctx, area, part); err != nil {
			return err
		}
		at = part.End
	}
	return hole
}

// collapseIn makes blocks of part of an area.
func (as *AddressSpace) collapseIn(ctx context.Context, area *vmarea.Area, part addr.Range) error {
	last := hugeRange(area.End - 1)
	if last.End > area.End {
		last = addr.Range{Start: last.Start - pagetable.HugeSpan, End: last.Start}
	}
	if !as.mayBeHuge(area) || area.Len() < pagetable.HugeSpan || last.Start < area.Start {
		return fmt.Errorf("%v has no room for 2 MiB, or may not: %w", area, ErrInvalid)
	}
	first := hugeRange(part.Start).Start
	if first < part.Start {
		first += pagetable.HugeSpan
	}
	end := hugeRange(part.End).Start
	if first > end {
		return fmt.Errorf("no whole 2 MiB in %v: %w", part, ErrInvalid)
	}
	var failed error
	for at := first; at < end; at += pagetable.HugeSpan {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch result, err := as.collapseBlock(at); result {
		case collapsed:
		case passedOver:
			failed = err
		case gaveUp:
			return err
		}
	}
	return failed
}

// collapsing is how a block has fared.
type collapsing int

const (
	collapsed  collapsing = iota
	passedOver            // the next one may fare better
	gaveUp
)

// collapseBlock makes a block of the 2 MiB at gva.
func (as *AddressSpace) collapseBlock(gva addr.GVA) (collapsing, error) {
	r := hugeRange(gva)
	c, err := as.startChange()
	if err != nil {
		return gaveUp, err
	}
	area := c.areas.Find(gva)
	if area == nil || !area.ContainsRange(r) || !as.mayBeHuge(area) {
		c.abort() // changed since it was looked at
		return gaveUp, fmt.Errorf("%v: %w", r, ErrInvalid)
	}
	as.pt.LockTables()
	l := as.pt.Find(gva)
	as.pt.UnlockTables()
	switch {
	case l.Huge:
		c.abort()
		return collapsed, nil
	case l.Bare:
		c.abort()
		return passedOver, fmt.Errorf("nothing is there in %v: %w", r, ErrInvalid)
	}
	c.areas.StartWrite(r)
	as.mem.domain.Barrier(as.id)
	if as.isMonitored() {
		// Marks that a parent's monitor has left, or one that is gone, mean nothing.
		if err := c.disarm(r); err != nil {
			c.abort()
			return gaveUp, err
		}
	}
	b := collapse{c: c, r: r, area: area}
	if result, err := b.take(); err != nil {
		c.abort()
		return result, err
	}
	b.fill()
	b.put()
	c.publish()
	as.mem.domain.Barrier(as.id)
	b.drop()
	c.end()
	as.mem.huge.collapsed.Inc()
	return collapsed, nil
}

// collapse is one block under way.
type collapse struct {
	c     *changeUnderWay
	r     addr.Range
	area  *vmarea.Area
	block addr.PFN
	zero  bool // the block's bytes are
	taken []pagetable.Moved
	put2M pagetable.Spare // for the 2 MiB leaf
	gone  [2]pagetable.Retired
}

// look reports whether the leaves of the block may be taken.
//
// Preconditions: nothing is installed there any more; the tables mutex is held.
func (b *collapse) look() (collapsing, error) {
	guarded, pinned := false, false
	pool := b.c.as.mem.pool
	there := b.c.as.pt.LeavesAt(b.r.Start, func(e pagetable.Entry, marked bool) {
		guarded = guarded || marked
		pinned = pinned || !marked && pool.IsPinned(e.Frame())
	})
	switch {
	case !there:
		return passedOver, fmt.Errorf("nothing is there in %v: %w", b.r, ErrInvalid)
	case pinned:
		return passedOver, fmt.Errorf("a page in %v is pinned: %w", b.r, ErrAgain)
	case guarded:
		return gaveUp, fmt.Errorf("a guard is in %v: %w", b.r, ErrInvalid)
	}
	return collapsed, nil
}

// take gets all that is needed, and takes the leaves out. On an error nothing was
// taken.
func (b *collapse) take() (_ collapsing, err error) {
	as, m, c := b.c.as, b.c.as.mem, b.c
	a := as.borrow()
	defer a.giveBack()
	var own pagetable.Spare
	defer func() {
		for own.Len() > 0 {
			m.returnTables(own.Take())
		}
		if err != nil {
			b.giveBack()
		}
	}()
	b.taken = make([]pagetable.Moved, 0, arena.EntriesPerTable)
	for {
		a.h.Hold()
		as.pt.LockTables()
		result, err := b.look()
		plan, put := as.pt.PlanPath(b.r.Start, 1, false), as.pt.PlanHuge(c.tok, b.r.Start)
		enough := b.block != 0 && own.Len() >= plan.Tables && b.put2M.Len() >= put.Tables
		done := false
		if err == nil && enough {
			done = c.editTables(a, plan.Replaces, func() {
				b.taken = as.pt.TakeTable(c.tok, b.r.Start, &own, &b.gone[0], b.taken)
			})
		}
		as.pt.UnlockTables()
		a.h.Free()
		switch {
		case err != nil:
			return result, err
		case done:
			return collapsed, nil
		case enough:
			m.door.wait()
			continue
		}
		if err := b.allocate(&own, plan.Tables, put.Tables); err != nil {
			return gaveUp, err
		}
	}
}

// allocate gets a block and so many table frames.
//
// Errors: ErrNoMemory.
func (b *collapse) allocate(own *pagetable.Spare, nOwn, nPut int) (err error) {
	m := b.c.as.mem
	if b.block == 0 {
		if b.block, b.zero, err = m.allocateBlock(); err != nil {
			m.reclaimAll()
			b.block, b.zero, err = m.allocateBlock()
		}
		if err != nil {
			return err
		}
	}
	if own.Len() < nOwn {
		if err := m.addSpare(own, nOwn); err != nil {
			return err
		}
	}
	if b.put2M.Len() < nPut {
		return m.addSpare(&b.put2M, nPut)
	}
	return nil
}

// giveBack gives back what was not used.
func (b *collapse) giveBack() {
	m := b.c.as.mem
	for b.put2M.Len() > 0 {
		m.returnTables(b.put2M.Take())
	}
	if b.block != 0 {
		m.pool.DropBlock(b.block)
	}
}

// fill copies what was taken into the block, once nobody writes to it any more.
func (b *collapse) fill() {
	as, m := b.c.as, b.c.as.mem
	m.domain.Barrier(as.id)
	frames := make([]addr.PFN, 0, len(b.taken))
	for _, t := range b.taken {
		frames = append(frames, t.Entry.Frame())
	}
	if m.view != nil && len(frames) > 0 {
		m.view.Invalidate(as, frames)
	}
	const section = sectionBytes / addr.PageSize
	left := b.taken
	for first := addr.PFN(0); first < pagetable.HugeFrames; first += section {
		m.pastDoor(func() {
			for i := first; i < first+section; i++ {
				f := b.block + i
				switch {
				case len(left) > 0 && left[0].From == b.r.Start+addr.GVA(i)*addr.PageSize:
					m.stored(f)
					m.arena.Copy(f, left[0].Entry.Frame())
					left = left[1:]
				case !b.zero:
					m.stored(f)
					m.arena.Zero(f)
				}
			}
		})
	}
}

// put puts the 2 MiB leaf in.
func (b *collapse) put() {
	as, c := b.c.as, b.c
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		as.pt.LockTables()
		done := c.editTables(a, true, func() {
			as.pt.PutHuge(c.tok, b.r.Start, as.hugeLeaf(b.area, b.block), &b.put2M, &b.gone[1])
		})
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return
		}
		as.mem.door.wait()
	}
}

// drop gives up what the block has taken the place of.
func (b *collapse) drop() {
	m := b.c.as.mem
	frames := make([]addr.PFN, 0, len(b.taken))
	for _, t := range b.taken {
		frames = append(frames, t.Entry.Frame())
	}
	m.pool.DropData(frames)
	for i := range b.gone {
		for _, d := range b.gone[i].All() {
			m.drop(d)
		}
	}
}
