package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// Register has the monitor told of faults in the areas of [start, start+length),
// and returns what can be done there. It replaces what they were registered for,
// unless that includes mode. Holes are left out. It waits for the lookups in progress,
// so that whoever finds nothing from now on is told of.
//
// Errors, with nothing changed: ErrInvalid (mode; not whole pages; no area; a file's
// area, or Minor of private anonymous memory); ErrPermission (shared and not to be
// written); ErrBusy (another monitor has it); ErrNoSpace (ENOMEM: too many areas, or
// the address space was closed); ErrNoMemory; ErrClosed. Source: UFFDIO_REGISTER.
func (m *Monitor) Register(start addr.GVA, length uint64, mode uffd.Mode) (uffd.Ioctls, error) {
	r, err := m.as.checkMonitored(start, length)
	if mode == 0 || mode&^knownModes != 0 {
		err = fmt.Errorf("mode %v: %w", mode, ErrInvalid)
	}
	if err == nil {
		err = m.register(r, mode)
	}
	if err != nil {
		return 0, opError("register", r, err)
	}
	return ioctlsOf(mode), nil
}

// startChange is AddressSpace.startChange where a space that is gone is ENOMEM. The
// caller leaves.
func (m *Monitor) startChange() (*changeUnderWay, error) {
	err := m.enter()
	if err == ErrGone {
		return nil, fmt.Errorf("%w: %w", ErrNoSpace, ErrGone)
	}
	if err != nil {
		return nil, err
	}
	c, err := m.as.startChange()
	if err == nil && m.closed.Load() {
		c.abort() // who closes it may have looked for what is registered already
		c, err = nil, ErrClosed
	}
	if err != nil {
		m.leave()
	}
	return c, err
}

func (m *Monitor) register(r addr.Range, mode uffd.Mode) error {
	as := m.as
	c, err := m.startChange()
	if err != nil {
		return err
	}
	defer m.leave()
	areas, err := m.areasToWatch(c, r, mode)
	if err != nil {
		c.abort()
		return err
	}
	mayBeArmed := as.mon.used.Swap(true)
	as.guarded = true
	for _, a := range areas {
		c.areas.SetWatch(a.Intersect(r), m.watches[mode])
	}
	if n := c.areas.Len(); n > as.opts.MaxAreas {
		c.abort()
		return fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	c.areas.StartWrite(r)
	as.mem.domain.Barrier(as.id)
	if mayBeArmed {
		for _, a := range areas {
			if was, modes := monitorOf(a); was == nil || modes&uffd.WP == 0 {
				err = c.disarm(a.Intersect(r)) // what a parent, or a monitor before, has armed
			}
			if err != nil {
				c.abort()
				return err
			}
		}
	}
	c.publish()
	c.end()
	return nil
}

// areasToWatch returns the areas in r that are not registered for mode yet.
func (m *Monitor) areasToWatch(c *changeUnderWay, r addr.Range, mode uffd.Mode) (areas []*vmarea.Area, err error) {
	found := false
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		found = true
		was, modes := monitorOf(a)
		o, _ := a.Backing.(*Object)
		switch {
		case !canWatch(a, mode):
			err = fmt.Errorf("%v: %w", a, ErrInvalid)
		case o != nil && o.readOnly && a.Flags&vmarea.Shared != 0:
			err = fmt.Errorf("%v may not be written: %w", a, ErrPermission)
		case was != nil && was != m:
			err = fmt.Errorf("%v has another monitor: %w", a, ErrBusy)
		case was != m || modes&mode != mode:
			areas = append(areas, a)
		}
		return err == nil
	})
	if err == nil && !found {
		err = fmt.Errorf("nothing is mapped: %w", ErrInvalid)
	}
	return areas, err
}

// canWatch reports whether areas of that kind can be registered: anonymous memory,
// and objects that are memory.
func canWatch(a *vmarea.Area, mode uffd.Mode) bool {
	o, ok := a.Backing.(*Object)
	if ok {
		return o.src == nil && o.device == nil && o.host == nil
	}
	return a.Backing == nil && mode&uffd.Minor == 0
}

// Unregister ends what Register began, for the areas of [start, start+length): pages
// there are not armed any more, and who waits goes on.
//
// Errors, with nothing changed: ErrInvalid (not whole pages; no area, one that cannot
// be registered, or that another monitor has); ErrNoSpace (ENOMEM: too many areas, or
// the address space was closed); ErrClosed. Source: UFFDIO_UNREGISTER.
func (m *Monitor) Unregister(start addr.GVA, length uint64) error {
	r, err := m.as.checkMonitored(start, length)
	if err == nil {
		err = m.unregister(r)
	}
	if err != nil {
		return opError("unregister", r, err)
	}
	return nil
}

func (m *Monitor) unregister(r addr.Range) error {
	c, err := m.startChange()
	if err != nil {
		return err
	}
	defer m.leave()
	var areas []*vmarea.Area
	found := false
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		found = true
		was, modes := monitorOf(a)
		switch {
		case was != nil && was != m, !canWatch(a, modes):
			err = fmt.Errorf("%v: %w", a, ErrInvalid)
		case was == m:
			areas = append(areas, a)
		}
		return err == nil
	})
	if err == nil && !found {
		err = fmt.Errorf("nothing is mapped: %w", ErrInvalid)
	}
	if err != nil {
		c.abort()
		return err
	}
	for _, a := range areas {
		m.unwatch(c, a, a.Intersect(r))
	}
	if n := c.areas.Len(); n > m.as.opts.MaxAreas {
		c.abort()
		return fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	c.publish()
	c.end()
	m.wake(r)
	return nil
}

// unwatch ends the registration of part of an area. It only adds: nobody is waited
// for. If memory is short, marks of armed pages stay, which mean nothing where
// nobody watches, and go when the area is registered again.
func (m *Monitor) unwatch(c *changeUnderWay, a *vmarea.Area, part addr.Range) {
	if uffd.Mode(a.Watch.Modes)&uffd.WP != 0 {
		_ = c.disarm(part)
	}
	c.areas.SetWatch(part, nil)
}
