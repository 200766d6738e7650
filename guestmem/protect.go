package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// protSem is PROT_SEM, which mprotect allows and which means nothing.
const protSem Prot = 8

// PROT_GROWSDOWN and PROT_GROWSUP, for Protect.
const (
	// ProtGrowsDown has Protect begin where the first area in its range does,
	// which must be one that grows down.
	ProtGrowsDown Prot = 0x01000000
	protGrowsUp   Prot = 0x02000000 // no area does
	protGrows          = ProtGrowsDown | protGrowsUp
)

// Protect changes what [start, start+length) allows, as mprotect(2) does. Where
// it takes a permission away, nobody uses that permission any more when it
// returns; where it only adds, it waits for nobody.
//
// Errors: ErrInvalid (both of ProtGrowsDown and PROT_GROWSUP, start not aligned, or
// protection; an area that does not grow so; with nothing changed);
// ErrNoSpace (ENOMEM) for a range that wraps or begins in a hole, or a split
// that would make too many areas, with nothing changed, and for a hole later on,
// with the areas below it changed; ErrDenied at an area that may not be made
// writable, likewise; ErrNoMemory, with nothing changed; ErrClosed.
// Source: mprotect(2).
func (as *AddressSpace) Protect(start addr.GVA, length uint64, prot Prot) error {
	n, ok := addr.RoundUpLength(length)
	r, ok2 := addr.RangeFrom(start, n)
	grows := prot & protGrows
	prot &^= protGrows
	switch {
	case grows == protGrows:
		return opError("protect", r, fmt.Errorf("it cannot grow both ways: %w", ErrInvalid))
	case !start.IsAligned():
		return opError("protect", r, fmt.Errorf("start is not aligned: %w", ErrInvalid))
	case length == 0:
		return nil
	case !ok, !ok2:
		return opError("protect", r, fmt.Errorf("length %#x: %w", length, ErrNoSpace))
	case prot&^(protAll|protSem) != 0:
		return opError("protect", r, fmt.Errorf("protection %#x: %w", uint32(prot), ErrInvalid))
	}
	prot &= protAll
	c, err := as.startChange()
	if err != nil {
		return opError("protect", r, err)
	}
	if grows != 0 {
		if r, err = as.growing(c, r, grows); err != nil {
			c.abort()
			return opError("protect", r, err)
		}
	}
	p := as.planProtect(c, r, prot)
	if p.head.IsEmpty() {
		c.abort()
		return opError("protect", r, p.rest)
	}
	if err := as.protectLocked(c, &p, prot); err != nil {
		c.abort()
		return opError("protect", r, err)
	}
	c.end()
	for _, r := range p.toPopulate {
		_ = as.populateLocked(context.Background(), r, skipErrors)
	}
	if p.rest != nil {
		return opError("protect", addr.Range{Start: p.head.End, End: r.End}, p.rest)
	}
	return nil
}

// growing returns what of r is to change where its first area is one that grows:
// from its start on.
func (as *AddressSpace) growing(c *changeUnderWay, r addr.Range, grows Prot) (addr.Range, error) {
	a := c.areaFrom(r.Start)
	switch {
	case a == nil, a.Start >= r.End, grows == protGrowsUp && a.Start > r.Start:
		return r, fmt.Errorf("%v is not mapped: %w", r.Start, ErrNoSpace)
	case grows == protGrowsUp, a.Flags&vmarea.GrowsDown == 0:
		return r, fmt.Errorf("%v does not grow so: %w", a.Range, ErrInvalid)
	}
	return addr.Range{Start: a.Start, End: r.End}, nil
}

// protectPlan is what Protect does to a range.
type protectPlan struct {
	head   addr.Range // what of it is changed
	rest   error      // why no more than that; nil if all is
	before Prot       // what some of its areas allow, and
	always Prot       // what all of them do
	// toPopulate is what becomes writable of locked private areas: like Linux, the
	// caller copies that ahead.
	toPopulate []addr.Range
}

// planProtect looks at the areas in r, up to the first hole or the first that may not
// become writable. It looks once, for itself and for SetProt, which is most of what
// protecting a page costs.
func (as *AddressSpace) planProtect(c *changeUnderWay, r addr.Range, prot Prot) protectPlan {
	p := protectPlan{head: addr.Range{Start: r.Start, End: r.Start}, always: protAll}
	data := c.areas.Totals().Data
	for _, a := range c.areas.Touching(r) {
		part := a.Intersect(r)
		if part.IsEmpty() {
			continue // it touches r
		}
		if part.Start > p.head.End {
			break
		}
		if prot&ProtWrite != 0 {
			if p.rest = as.mayBecomeWritable(c, a, part, &data); p.rest != nil {
				return p
			}
		}
		p.before |= a.Prot
		p.always &= a.Prot
		if prot&^a.Prot&ProtWrite != 0 && a.Flags&(lockFlags|vmarea.Shared) == vmarea.Locked {
			p.toPopulate = append(p.toPopulate, part)
		}
		p.head.End = part.End
	}
	if p.head.End < r.End {
		p.rest = fmt.Errorf("%v is not mapped: %w", p.head.End, ErrNoSpace)
		if variant.ProtectHeadUndone {
			p.head = addr.Range{}
		}
	}
	return p
}

// protectLocked changes the head of a plan, and publishes.
func (as *AddressSpace) protectLocked(c *changeUnderWay, p *protectPlan, prot Prot) error {
	r := p.head
	c.areas.SetProt(r, prot)
	if n := c.areas.Len(); n > as.opts.MaxAreas {
		return fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	if p.before&^prot != 0 {
		if err := as.takePermissions(c, r, permOf(prot)); err != nil {
			return err
		}
	}
	c.publish()
	if prot&^p.always != 0 {
		as.addPermissions(r, prot)
	}
	return nil
}

// takePermissions goes through R1's steps with the leaves of r.
func (as *AddressSpace) takePermissions(c *changeUnderWay, r addr.Range, perm pagetable.Entry) error {
	c.areas.StartWrite(r)
	s := sweptPool.Get().(*swept)
	defer c.recycle(s)
	err := as.sweepPermissions(c, r, perm, s)
	as.mem.domain.Barrier(as.id)
	if err == nil {
		before := len(s.frames)
		if err = as.sweepPermissions(c, r, perm, s); len(s.frames) > before {
			as.mem.domain.Barrier(as.id)
		}
	}
	// After a failure too: what was swept so far is swept, and the next change
	// will not find it again.
	c.cleanViews(s)
	for _, d := range s.zapped.Tables {
		as.mem.drop(d)
	}
	return err
}

// sweepPermissions takes from every leaf of r what perm does not allow, a leaf
// table at a time. Where it fails for want of table frames, leaves before that
// allow less than their areas, which a fault mends: nothing was lost.
//
// It looks first: the second sweep finds hardly ever anything, and what an edit takes
// besides, a slot and a section, costs more than to look twice where there is
// something. Whoever installs or allows a page after the look is one whom the grace
// period is for.
func (as *AddressSpace) sweepPermissions(c *changeUnderWay, r addr.Range, perm pagetable.Entry, s *swept) error {
	for !r.IsEmpty() {
		as.pt.LockToLook()
		part, found := as.pt.Shrinks(c.tok, r, perm)
		as.pt.UnlockTables()
		if found {
			if err := as.takeFromLeaves(c, part, perm, s); err != nil {
				return err
			}
		}
		r.Start = part.End
	}
	return nil
}

// takeFromLeaves does it for the part of one leaf table.
func (as *AddressSpace) takeFromLeaves(c *changeUnderWay, part addr.Range, perm pagetable.Entry, s *swept) error {
	var spare pagetable.Spare
	defer func() {
		for spare.Len() > 0 {
			as.mem.returnTables(spare.Take())
		}
	}()
	a := as.borrow()
	defer a.giveBack()
	for {
		s.reserve() // nothing is allocated in the section
		a.h.Hold()
		as.pt.LockTables()
		plan := as.pt.PlanProtect(c.tok, part, perm)
		lack := plan.Tables - spare.Len()
		done := lack <= 0 && c.editTables(a, plan.Replaces, func() { as.protectPart(c, part, perm, plan, &spare, s) })
		as.pt.UnlockTables()
		a.h.Free()
		switch {
		case done:
			return nil
		case lack > 0:
			if err := as.mem.addSpare(&spare, spare.Len()+lack); err != nil {
				return err
			}
		default:
			as.mem.door.wait()
		}
	}
}

func (as *AddressSpace) protectPart(c *changeUnderWay, part addr.Range, perm pagetable.Entry, plan pagetable.PathPlan, spare *pagetable.Spare, s *swept) {
	var gone pagetable.Retired
	s.frames = as.pt.Protect(c.tok, part, perm, plan, spare, &gone, s.frames)
	s.zapped.Tables = append(s.zapped.Tables, gone.All()...)
}

// addPermissions gives present leaves ahead what a fault would give them, by
// the same predicate (R5), where the path is this space's own. Its areas are
// published: it is a lookup like any other.
func (as *AddressSpace) addPermissions(r addr.Range, prot Prot) {
	a := as.borrow()
	defer a.giveBack()
	for !r.IsEmpty() {
		r.Start = a.addPermissions(r, prot)
	}
}

// addPermissions does so for what one leaf table covers of r, and returns where that
// ends.
func (a Accessor) addPermissions(r addr.Range, prot Prot) (end addr.GVA) {
	as := a.as
	a.h.Enter(as.id)
	defer a.h.Exit()
	if !as.mem.door.passes() {
		return r.End // the faults will do it
	}
	part, there := as.pt.NextLeaves(r)
	if !there {
		return part.End
	}
	for gva := part.Start; gva < part.End; gva += addr.PageSize {
		l := as.pt.Find(gva)
		e := l.Entry
		if !l.Owned || !e.Has(pagetable.Present) || l.Huge { // that is edited under the mutex: a fault does it
			continue
		}
		perm := permOf(prot)
		grant := perm &^ e & pagetable.User
		if !perm.Has(pagetable.NoExec) && e.Has(pagetable.NoExec) {
			grant |= pagetable.NoExec
		}
		if !e.Has(pagetable.Writable) && as.mem.pool.MayWrite(cow.Write{
			AreaMayWrite: prot&ProtWrite != 0,
			// Armed, or was; or of an object that may want to know: a fault finds out.
			Watched:    e.Has(pagetable.Armed) || e.Has(pagetable.Shared) && as.tracks.Load(),
			OwnPath:    l.Owned,
			SharedArea: e.Has(pagetable.Shared),
			Frame:      e.Frame(),
		}) {
			grant |= pagetable.Writable
		}
		if grant != 0 {
			l.Allow(grant) // who came first knows as much
		}
	}
	return part.End
}
