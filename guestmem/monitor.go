package guestmem

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// MonitorFeatures are the features of userfaultfd(2) that a Monitor has: all of
// Linux 6.18 but those for huge pages of hugetlbfs, and write protection that
// nobody is told of (UFFD_FEATURE_WP_ASYNC).
const MonitorFeatures = uffd.FeatureFaultWP | uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove |
	uffd.FeatureMissingShmem | uffd.FeatureEventUnmap | uffd.FeatureSigbus | uffd.FeatureThreadID |
	uffd.FeatureMinorShmem | uffd.FeatureExactAddress | uffd.FeatureWPHugetlbShmem | uffd.FeatureWPUnpopulated |
	uffd.FeaturePoison | uffd.FeatureMove

// MonitorOptions say what a monitor is to be told, and how.
type MonitorOptions struct {
	// Features are some of MonitorFeatures. The events are told only if they
	// are asked for here.
	Features uffd.Features
	// UserModeOnly has only the guest's own faults told (Fault, TryFault); those of
	// copies fail with ErrBus.
	UserModeOnly bool
}

// Monitor is a userfaultfd of an address space: it is told of faults in the areas
// that are registered with it, whose pages it installs, and of changes of those
// areas. All methods are safe for concurrent use.
//
// From the moment a change begins that it is told of until the event has been
// read, whatever installs, arms or disarms pages fails with ErrAgain and does
// nothing (R9); so it always knows on which side of the change a page landed. Of
// AdviceDontNeed and its like it is told before the pages go, and ErrAgain lasts
// until they have gone. A change waits for its event to be read, with no lock held:
// a monitor that never reads holds up the changes of its own areas and who needs
// its pages, until their contexts end or Kill, and nobody else.
//
// The numbers, results and errors are those of Linux 6.18.
// Source: userfaultfd(2), ioctl_userfaultfd(2), fs/userfaultfd.c, mm/userfaultfd.c.
type Monitor struct {
	as       *AddressSpace    // immutable
	features uffd.Features    // immutable
	userOnly bool             // immutable
	watches  [8]*vmarea.Watch // immutable; by modes

	// changing counts the changes that have begun and whose event was not read.
	// Atomic. It is raised under the change lock before the change's grace period, and
	// whoever installs loads it in the section in which it installs. So an install
	// that saw none has ended before the change has, or is told.
	changing atomic.Int32
	closed   atomic.Bool // stored under mu

	mu      sync.Mutex           // innermost; nothing is called under it
	pending []*waiter            // faults that were not read, the oldest first; mu
	told    map[*waiter]struct{} // faults that were read and not woken; mu
	events  []*notice            // events that were not read, the oldest first; mu
	changed chan struct{}        // closed when there is more to read; nil if nobody waits; mu
	notify  func()               // mu
}

// spaceMonitors is what an address space knows of its monitors.
type spaceMonitors struct {
	used atomic.Bool // an area is, or was, registered; stored in changes

	// life is held shared by who is in a call of a monitor, and whole by who
	// closes the space. Above the change lock.
	life sync.RWMutex
	gone bool // life

	mu     sync.Mutex    // innermost
	killed chan struct{} // closed by Kill; nil until somebody waits; mu
	isDead bool          // mu
}

// NewMonitor returns a monitor of the address space, with which nothing is
// registered yet. Close ends it.
//
// Errors: ErrInvalid (features that there are not); ErrClosed.
func (as *AddressSpace) NewMonitor(o MonitorOptions) (*Monitor, error) {
	if unknown := o.Features &^ MonitorFeatures; unknown != 0 {
		return nil, opError("new monitor", addr.Range{}, fmt.Errorf("features %v: %w", unknown, ErrInvalid))
	}
	as.mon.life.RLock()
	defer as.mon.life.RUnlock()
	if as.mon.gone {
		return nil, opError("new monitor", addr.Range{}, ErrClosed)
	}
	return newMonitor(as, o), nil
}

func newMonitor(as *AddressSpace, o MonitorOptions) *Monitor {
	m := &Monitor{as: as, features: o.Features, userOnly: o.UserModeOnly}
	for modes := range m.watches {
		m.watches[modes] = &vmarea.Watch{Owner: m, Modes: uint8(modes)}
	}
	return m
}

// AddressSpace returns whose monitor it is.
func (m *Monitor) AddressSpace() *AddressSpace { return m.as }

// Features returns what it was made with.
func (m *Monitor) Features() uffd.Features { return m.features }

// ErrGone: the address space of the monitor was closed (ESRCH).
var ErrGone = newErrno("the address space is gone", syscall.ESRCH)

// enter keeps the address space from being closed until leave.
//
// Errors: ErrClosed; ErrGone.
func (m *Monitor) enter() error {
	if m.closed.Load() {
		return ErrClosed
	}
	m.as.mon.life.RLock()
	if m.as.mon.gone {
		m.as.mon.life.RUnlock()
		return ErrGone
	}
	return nil
}

func (m *Monitor) leave() { m.as.mon.life.RUnlock() }

// monitorOf returns the monitor that an area is registered with, and for what; nil
// if there is none, or it was closed.
func monitorOf(a *vmarea.Area) (*Monitor, uffd.Mode) {
	if a.Watch == nil {
		return nil, 0
	}
	m := a.Watch.Owner.(*Monitor)
	if m.closed.Load() {
		return nil, 0
	}
	return m, uffd.Mode(a.Watch.Modes)
}

// Close ends the monitor: its areas are registered no more and their pages not
// armed, and everybody who waits goes on, as if there had been no monitor: into
// pages of zeroes where the data is missing. What has not been read is gone.
// Closing twice does nothing. The error is always nil. Safe for concurrent use.
func (m *Monitor) Close() error {
	m.mu.Lock()
	if m.closed.Load() {
		m.mu.Unlock()
		return nil
	}
	m.closed.Store(true) // from here on nobody is parked, and no notice posted
	m.mu.Unlock()
	m.as.mon.life.RLock()
	if !m.as.mon.gone {
		m.unregisterAll()
	}
	m.as.mon.life.RUnlock()
	m.mu.Lock()
	woken := m.pending
	for p := range m.told {
		woken = append(woken, p)
	}
	m.pending, m.told = nil, nil
	events := m.events
	m.events = nil
	m.signalLocked()
	m.mu.Unlock()
	for _, p := range woken {
		close(p.done)
	}
	for _, n := range events {
		n.drop()
	}
	return nil
}

// unregisterAll takes away all registrations with m.
func (m *Monitor) unregisterAll() {
	as := m.as
	c, err := as.startChange()
	if err != nil {
		return
	}
	for _, a := range c.areas.Listed() {
		if a.Watch != nil && a.Watch.Owner == any(m) {
			m.unwatch(c, a, a.Range)
		}
	}
	c.publish()
	c.end()
}

// Kill lets nobody wait for a monitor in the address space any more: changes and
// faults that do end with ErrKilled, and so do all that come. It is for a process
// that is to die, before its threads are waited for.
func (as *AddressSpace) Kill() {
	s := &as.mon
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isDead {
		return
	}
	s.isDead = true
	if s.killed == nil {
		s.killed = make(chan struct{})
	}
	close(s.killed)
}

// dead returns a channel that Kill closes.
func (s *spaceMonitors) dead() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.killed == nil {
		s.killed = make(chan struct{})
	}
	return s.killed
}

// close waits for the calls of monitors under way, and refuses those to come.
func (s *spaceMonitors) close() {
	s.life.Lock()
	s.gone = true
	s.life.Unlock()
}

// ErrKilled: the address space was killed (EINTR).
var ErrKilled = newErrno("the address space was killed", syscall.EINTR)

// checkMonitored checks a range as Linux checks those of a userfaultfd.
func (as *AddressSpace) checkMonitored(start addr.GVA, length uint64) (addr.Range, error) {
	r, ok := addr.RangeFrom(start, length)
	switch {
	case !start.IsAligned(), length%addr.PageSize != 0, length == 0, !ok:
		return r, fmt.Errorf("not whole pages: %w", ErrInvalid)
	case r.Start < as.bounds.Start, r.End > as.bounds.End:
		return r, fmt.Errorf("beyond %v: %w", as.bounds, ErrInvalid)
	}
	return r, nil
}

// ioctlsOf returns what can be done in a range that is registered for modes.
func ioctlsOf(modes uffd.Mode) uffd.Ioctls {
	all := uffd.IoctlWake | uffd.IoctlCopy | uffd.IoctlZero | uffd.IoctlMove | uffd.IoctlPoison
	if modes&uffd.WP != 0 {
		all |= uffd.IoctlWriteProtect
	}
	if modes&uffd.Minor != 0 {
		all |= uffd.IoctlContinue
	}
	return all
}

const knownModes = uffd.Missing | uffd.WP | uffd.Minor
