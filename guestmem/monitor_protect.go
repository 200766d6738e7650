package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// WriteProtect arms the pages of [start, start+length) with uffd.Armed: the next
// write to each waits, and the monitor is told of it as uffd.FaultWP. Without it
// they are armed no more, and who waits is woken unless uffd.DontWake is given. All
// areas in it are registered for uffd.WP; holes are left out. Arming takes
// permissions away, as Protect does, and waits for the lookups in progress.
//
// Pages that are not there stay as they are in private anonymous memory, unless the
// monitor has FeatureWPUnpopulated.
//
// Errors: ErrAgain; ErrInvalid (flags, not whole pages); ENOENT (an area that is not
// registered for it, with those below done, or no area); ErrNoMemory, with part of it done;
// ErrGone; ErrClosed. Source: UFFDIO_WRITEPROTECT.
func (m *Monitor) WriteProtect(start addr.GVA, length uint64, fl uffd.Flags) error {
	r, err := m.begin(start, length)
	if err == nil && (fl&^(uffd.Armed|uffd.DontWake) != 0 || fl == uffd.Armed|uffd.DontWake) {
		err = fmt.Errorf("flags %v: %w", fl, ErrInvalid)
	}
	if err == nil {
		err = m.protect(r, fl)
	}
	if err != nil {
		return opError("write-protect", r, err)
	}
	if fl == 0 {
		m.wake(r)
	}
	return nil
}

func (m *Monitor) protect(r addr.Range, fl uffd.Flags) error {
	if err := m.enter(); err != nil {
		return err
	}
	defer m.leave()
	c, err := m.as.startChange()
	if err != nil {
		return ErrGone
	}
	if m.changing.Load() != 0 {
		// One change at a time: what raised it has ended, and was not read.
		c.abort()
		return errChanging
	}
	var areas []*vmarea.Area
	rest := errUnregistered
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		if _, modes := monitorOf(a); modes&uffd.WP == 0 {
			rest = errUnregistered
			return false
		}
		areas, rest = append(areas, a), nil
		return true
	})
	switch {
	case len(areas) == 0:
	case fl&uffd.Armed != 0:
		err = c.arm(areas, r)
	default:
		for _, a := range areas {
			if err == nil {
				err = c.disarm(a.Intersect(r))
			}
		}
	}
	c.publish()
	c.end()
	if err != nil {
		return err
	}
	return rest
}

// arm arms the pages of areas in r: R1's steps, as takePermissions.
//
// Errors: ErrNoMemory, with part of it done.
func (c *changeUnderWay) arm(areas []*vmarea.Area, r addr.Range) error {
	as := c.as
	for _, a := range areas {
		c.areas.StartWrite(a.Intersect(r))
	}
	s := sweptPool.Get().(*swept)
	defer c.recycle(s)
	err := c.sweepArmed(areas, r, s)
	as.mem.domain.Barrier(as.id)
	if err == nil {
		before := len(s.frames)
		if err = c.sweepArmed(areas, r, s); len(s.frames) > before {
			as.mem.domain.Barrier(as.id)
		}
	}
	c.cleanViews(s)
	for _, d := range s.zapped.Tables {
		as.mem.drop(d)
	}
	return err
}

func (c *changeUnderWay) sweepArmed(areas []*vmarea.Area, r addr.Range, s *swept) error {
	pt := c.as.pt
	for _, a := range areas {
		m, _ := monitorOf(a)
		which, absent := presentTables, pagetable.SkipAbsent
		switch {
		case a.Flags&vmarea.Shared != 0:
			which, absent = everyTable, pagetable.MarkAbsentKept
		case a.Backing != nil, m != nil && m.features.Has(uffd.FeatureWPUnpopulated):
			which, absent = everyTable, pagetable.MarkAbsent
		}
		err := c.inParts(a.Intersect(r), s, which,
			func(tok pagetable.Token, part addr.Range) pagetable.PathPlan {
				s.reserve() // nothing is allocated in the section
				return pt.PlanArm(tok, part, absent)
			},
			func(tok pagetable.Token, part addr.Range, p pagetable.PathPlan, spare *pagetable.Spare, out *pagetable.Zapped) {
				s.frames = pt.Arm(tok, part, absent, p, spare, out, s.frames)
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// disarm takes the marks of armed pages away. It only adds, but tables that it
// replaces may be being walked.
//
// Errors: ErrNoMemory, with part of it done.
func (c *changeUnderWay) disarm(r addr.Range) error {
	s := sweptPool.Get().(*swept)
	err := c.inParts(r, s, presentTables, c.as.pt.PlanDisarm, c.as.pt.Disarm)
	if len(s.zapped.Tables) > 0 {
		c.as.mem.domain.Barrier(c.as.id)
	}
	c.drop(s)
	return err
}
