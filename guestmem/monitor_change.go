package guestmem

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// A change that a monitor is told of (R9):
//
//	change                               monitor
//	  change lock
//	    changing++                       installs: ErrAgain from here on
//	    mark, sweep, grace period …      installs that saw 0 have ended
//	  unlock
//	  post the event, wait               reads it: changing--; installs go on
//
// No lock is held while it waits. Of a removal of pages the monitor is told before,
// as Linux does, and the count falls when the pages have gone.

// notice is an event on its way, and who waits for it to be read.
type notice struct {
	m     *Monitor
	event MonitorEvent
	// keep: the change lowers the count, when it has ended.
	keep bool
	// late: it comes after the move that it is part of.
	late bool
	done chan struct{} // closed when it was read, or will not be

	reading bool // somebody is about to take it; m.mu
	left    bool // nobody waits for it any more; m.mu
}

// note begins a change that m is told of.
//
// Preconditions: the change lock is held, and the change waits for a grace period
// before it posts the event.
func (m *Monitor) note(e MonitorEvent) *notice {
	if !variant.InstallsBesideChanges {
		m.changing.Add(1)
	}
	return &notice{m: m, event: e, done: make(chan struct{})}
}

// lower ends the time in which installs fail.
func (n *notice) lower() {
	if !variant.InstallsBesideChanges {
		n.m.changing.Add(-1)
	}
}

// deliver lets the change go on: the event was read.
func (n *notice) deliver() {
	if !n.keep {
		n.lower()
	}
	close(n.done)
}

// drop lets the change go on: nobody will read the event.
func (n *notice) drop() {
	if n.event.Child != nil {
		n.event.Child.Close()
	}
	n.deliver()
}

// post makes the event readable.
func (n *notice) post() {
	m := n.m
	m.mu.Lock()
	if m.closed.Load() {
		m.mu.Unlock()
		n.drop()
		return
	}
	m.events = append(m.events, n)
	m.signalLocked()
	m.mu.Unlock()
}

// await returns when the event was read, or will not be. If it is not to wait any
// more, the event is withdrawn.
//
// Errors: that of ctx; ErrKilled.
func (n *notice) await(ctx context.Context, as *AddressSpace) error {
	as.mem.monitorWaits.Add(1)
	defer as.mem.monitorWaits.Add(-1)
	var err error
	select {
	case <-n.done:
		return nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-as.mon.dead():
		err = ErrKilled
	}
	m := n.m
	m.mu.Lock()
	n.left = true
	for i, other := range m.events {
		if other == n {
			m.events = append(m.events[:i:i], m.events[i+1:]...)
			m.mu.Unlock()
			n.drop()
			return err
		}
	}
	reading := n.reading
	m.mu.Unlock()
	if reading {
		return err // who reads it deals with it
	}
	select {
	case <-n.done: // read after all
		return nil
	default:
	}
	return err // it was not posted, or is being taken this moment
}

// tell posts the notices of a change that has ended, and waits for all of them.
//
// Preconditions: no lock is held.
//
// Errors: that of ctx; ErrKilled. The change stays as it is made.
func (c *changeUnderWay) tell(ctx context.Context) error {
	return tellAll(ctx, c.as, c.takeNotices())
}

func tellAll(ctx context.Context, as *AddressSpace, notices []*notice) error {
	for _, n := range notices {
		n.post()
	}
	var errs []error
	for _, n := range notices {
		if err := n.await(ctx, as); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (c *changeUnderWay) takeNotices() []*notice {
	n := c.notices
	c.notices = nil
	return n
}

// withdraw ends the notices of a change that is not made after all.
func (c *changeUnderWay) withdraw() {
	for _, n := range c.takeNotices() {
		n.drop()
	}
}

// noteUnmap notes whom the unmapping of r is to be told, before the areas go; of
// each monitor once for a range.
func (c *changeUnderWay) noteUnmap(r addr.Range) {
	if !c.as.mon.used.Load() {
		return
	}
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start >= r.End {
			return false
		}
		m, _ := monitorOf(a)
		if m == nil {
			return true
		}
		c.wakes = append(c.wakes, waking{m, r})
		if !m.features.Has(uffd.FeatureEventUnmap) {
			return true
		}
		for _, n := range c.notices {
			if n.m == m && n.event.Kind == uffd.EventUnmap && n.event.Start == r.Start && n.event.End == r.End {
				return true
			}
		}
		c.notices = append(c.notices, m.note(MonitorEvent{Kind: uffd.EventUnmap, Start: r.Start, End: r.End}))
		return true
	})
}

// noteRemap notes whom a move of an area is to be told, and returns with what
// the area is registered where it goes: without the event, nothing.
func (c *changeUnderWay) noteRemap(a *vmarea.Area, from, to addr.GVA, length uint64) *vmarea.Watch {
	m, _ := monitorOf(a)
	if m == nil || !m.features.Has(uffd.FeatureEventRemap) {
		return nil
	}
	n := m.note(MonitorEvent{Kind: uffd.EventRemap, From: from, To: to, Len: length})
	at := len(c.notices)
	for at > 0 && c.notices[at-1].late {
		at--
	}
	c.notices = slices.Insert(c.notices, at, n)
	return a.Watch
}

// waking is who may go on when a change has ended.
type waking struct {
	m *Monitor
	r addr.Range
}

// wakeAll lets those go on who wait for pages of what the change has unmapped: they
// find that there is nothing.
func (c *changeUnderWay) wakeAll() {
	for _, w := range c.wakes {
		w.m.wake(w.r)
	}
	c.wakes = nil
}

// noteFork notes whom a fork is to be told, and makes their children.
func (c *changeUnderWay) noteFork(child *AddressSpace) map[*Monitor]*Monitor {
	if !c.as.mon.used.Load() {
		return nil
	}
	var children map[*Monitor]*Monitor
	for _, a := range c.areas.Listed() {
		m, _ := monitorOf(a)
		if m == nil || a.Flags&vmarea.DontFork != 0 || !m.features.Has(uffd.FeatureEventFork) || children[m] != nil {
			continue
		}
		if children == nil {
			children = make(map[*Monitor]*Monitor)
		}
		children[m] = newMonitor(child, MonitorOptions{Features: m.features, UserModeOnly: m.userOnly})
		c.notices = append(c.notices, m.note(MonitorEvent{Kind: uffd.EventFork, Child: children[m]}))
	}
	return children
}

// watchOfChild is what an area of a fork's child is registered with.
func watchOfChild(a *vmarea.Area, children map[*Monitor]*Monitor) *vmarea.Watch {
	m, modes := monitorOf(a)
	if m == nil || children[m] == nil {
		return nil
	}
	return children[m].watches[modes]
}

// adviseMonitored is what gives pages back in an address space with monitors: area
// by area, each after its monitor was told. Source: madvise_dontneed_free,
// userfaultfd_remove.
//
// Errors: as Advise; that of ctx, ErrKilled, with the areas below done.
func (as *AddressSpace) adviseMonitored(ctx context.Context, r addr.Range, advice Advice) error {
	var hole error
	for r.Start < r.End {
		part, n, err := as.noteRemove(r, advice)
		if errors.Is(err, ErrNoSpace) {
			hole = err
		} else if err != nil {
			return err
		}
		if part.IsEmpty() {
			break
		}
		if n != nil {
			// Installs that were under way end before the event is read.
			as.mem.domain.Barrier(as.id)
			n.post()
			err = n.await(ctx, as)
		}
		if err == nil || errors.Is(err, ErrNoSpace) {
			err = as.removeNow(part, advice)
		}
		if n != nil {
			n.lower()
		}
		if errors.Is(err, ErrNoSpace) {
			hole = err
		} else if err != nil {
			return err
		}
		r.Start = part.End
	}
	return hole
}

// removeNow gives the pages of one part back.
func (as *AddressSpace) removeNow(part addr.Range, advice Advice) error {
	switch advice {
	case AdviceRemove:
		return as.removePages(part)
	case AdviceFree:
		_, err := advisedHead(part, as.tree.Snapshot().Ascend, advice)
		return err
	}
	return as.discardNow(part, advice)
}

// noteRemove returns the first part of r that lies in one area, and, if it has a
// monitor that is to be told, the notice. ErrNoSpace says that there is a hole
// before it, or nothing.
func (as *AddressSpace) noteRemove(r addr.Range, advice Advice) (part addr.Range, n *notice, err error) {
	c, err := as.startChange()
	if err != nil {
		return part, nil, err
	}
	defer c.abort()
	a := c.areaFrom(r.Start)
	if a == nil || a.Start >= r.End {
		return part, nil, errHole(r.Start)
	}
	var hole error
	if a.Start > r.Start {
		hole = errHole(r.Start)
	}
	check := advice
	if advice == AdviceFree {
		check = AdviceDontNeed // the rest is refused when the monitor was told
	}
	if err := check.refuses(a); err != nil {
		return part, nil, err
	}
	part = a.Intersect(r)
	if m, _ := monitorOf(a); m != nil && m.features.Has(uffd.FeatureEventRemove) {
		n = m.note(MonitorEvent{Kind: uffd.EventRemove, Start: part.Start, End: part.End})
		n.keep = true
	}
	return part, n, hole
}

func errHole(at addr.GVA) error { return fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace) }

// isMonitored reports whether an area is, or was, registered with a monitor.
func (as *AddressSpace) isMonitored() bool {
	return as.mon.used.Load()
}
