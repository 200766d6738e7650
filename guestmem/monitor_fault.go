package guestmem

import (
	"context"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// A fault that a monitor is to resolve is parked outside of every section:
//
//	fault                                  monitor
//	  section: nothing there, leave
//	  enter the list, post
//	  section: still nothing there? leave  installs: compare-and-swap
//	  sleep                                wakes who is in the list
//
// It enters the list before it looks again, and the monitor installs before it
// looks at the list; so one of the two sees the other, and nobody sleeps beside a
// page that is there (TestR9NobodySleepsBesideHisPage).

// waiter is a fault that waits for a monitor.
type waiter struct {
	m      *Monitor
	as     *AddressSpace
	page   addr.GVA
	exact  addr.GVA
	flags  uffd.FaultFlags
	thread uint32
	done   chan struct{} // closed by who takes it off the lists
}

func (p *waiter) event(f uffd.Features) MonitorEvent {
	e := MonitorEvent{Kind: uffd.EventFault, Addr: p.page, Flags: p.flags}
	if f.Has(uffd.FeatureExactAddress) {
		e.Addr = p.exact
	}
	if f.Has(uffd.FeatureThreadID) {
		e.ThreadID = p.thread
	}
	return e
}

// Poison and faults that nobody serves are a bus error to the guest.
var (
	// ErrPoison: the page was poisoned (EFAULT; SIGBUS with BUS_MCEERR_AR).
	ErrPoison = fmt.Errorf("poisoned page: %w", ErrBus)

	// errBadMemory is what populating poison ahead is told: EHWPOISON, which not every
	// system has a name for.
	errBadMemory = newErrno("poisoned page", syscall.Errno(133))

	errUnserved = fmt.Errorf("its monitor is not told: %w", ErrBus)

	// errParked says that a fault of TryFault waits.
	errParked = fmt.Errorf("waits for a monitor: %w", ErrAgain)
)

// watched finds out whether an access has to wait for the area's monitor, and what
// that is told.
//
// Preconditions: as faultIn; the area allows the access.
func (as *AddressSpace) watched(area *vmarea.Area, l pagetable.Leaf, at *attempt) (*Monitor, uffd.FaultFlags) {
	m, modes := monitorOf(area)
	if m == nil || l.Guarded {
		return nil, 0
	}
	var flags uffd.FaultFlags
	o, _ := area.Backing.(*Object)
	switch {
	case l.Entry.Has(pagetable.Present):
		if at.access != Write || modes&uffd.WP == 0 || !l.Armed() {
			return nil, 0
		}
		flags = uffd.FaultWP
	case o == nil:
		if modes&uffd.Missing == 0 {
			return nil, 0
		}
	default:
		index := area.OffsetOf(at.gva) / addr.PageSize
		if index >= o.pages() {
			return nil, 0
		}
		if _, there := o.page(index); there {
			if modes&uffd.Minor == 0 || at.filled { // not who has just brought it
				return nil, 0
			}
			flags = uffd.FaultMinor
		} else if modes&uffd.Missing == 0 {
			return nil, 0
		}
	}
	if at.access == Write {
		flags |= uffd.FaultWrite
	}
	return m, flags
}

// armed returns the mark that a page in place of l's is to have.
func armed(area *vmarea.Area, l pagetable.Leaf) pagetable.Entry {
	if !l.Armed() {
		return 0
	}
	if _, modes := monitorOf(area); modes&uffd.WP == 0 {
		return 0
	}
	return pagetable.Armed
}

// unlessArmed is how an attempt ends that has installed a page in place of l: a
// write to one that is armed is tried again, and waits.
func (at *attempt) unlessArmed(area *vmarea.Area, l pagetable.Leaf) outcome {
	if at.access == Write && armed(area, l) != 0 {
		return again
	}
	return resolved
}

// park has the monitor told of a fault, and waits.
//
// Errors: ErrBus (nobody is told); errParked; that of ctx; ErrKilled.
func (a Accessor) park(ctx context.Context, at *attempt) error {
	m, as := at.monitor, a.as
	at.monitor = nil
	if m.features.Has(uffd.FeatureSigbus) || m.userOnly && !a.user || ctx.Value(dontWaitKey{}) != nil {
		return errUnserved
	}
	p := &waiter{m: m, as: as, page: at.gva, exact: at.exact, flags: at.flags, done: make(chan struct{})}
	if p.exact == 0 {
		p.exact = at.gva
	}
	p.thread, _ = ctx.Value(threadKey{}).(uint32)
	if parkHook != nil {
		parkHook()
	}
	if !m.list(p) {
		return nil // closed: the next attempt finds no monitor
	}
	if !as.mustWait(a, at, m) {
		m.unlist(p)
		return nil
	}
	as.mem.monitorFaults.Inc()
	if a.wait != nil {
		a.wait.p = p
		return errParked
	}
	return p.await(ctx)
}

// parkHook is called between the section of a fault that has to wait and its entering
// the list. Only tests set it.
var parkHook func()

// list makes the fault readable; false if the monitor was closed.
func (m *Monitor) list(p *waiter) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed.Load() {
		return false
	}
	m.pending = append(m.pending, p)
	m.signalLocked()
	return true
}

// unlist takes a fault off the lists, if it is there.
func (m *Monitor) unlist(p *waiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.told, p)
	for i, other := range m.pending {
		if other == p {
			m.pending = append(m.pending[:i:i], m.pending[i+1:]...)
			return
		}
	}
}

// mustWait asks again, in a section of its own, what the attempt has found.
func (as *AddressSpace) mustWait(a Accessor, at *attempt, m *Monitor) bool {
	a.h.Enter(as.id)
	defer a.h.Exit()
	if !as.mem.door.passes() {
		return false
	}
	area, status := as.tree.StartRead(at.gva)
	if status != vmarea.Found {
		return false
	}
	defer as.tree.EndRead(area)
	if !allows(area, at.access) {
		return false
	}
	now, flags := as.watched(area, as.pt.Find(at.gva), at)
	return now == m && flags == at.flags
}

// await sleeps until the fault is woken.
func (p *waiter) await(ctx context.Context) error {
	p.as.mem.monitorWaits.Add(1)
	defer p.as.mem.monitorWaits.Add(-1)
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		p.m.unlist(p)
		return ctx.Err()
	case <-p.as.mon.dead():
		p.m.unlist(p)
		return ErrKilled
	}
}

// Wake lets everybody go on who waits for a page of [start, start+length), as
// UFFDIO_WAKE does; who still finds none is told of again.
//
// Errors: ErrInvalid, ErrClosed.
func (m *Monitor) Wake(start addr.GVA, length uint64) error {
	r, err := m.as.checkMonitored(start, length)
	if err == nil && m.closed.Load() {
		err = ErrClosed
	}
	if err != nil {
		return opError("wake", r, err)
	}
	m.wake(r)
	return nil
}

func (m *Monitor) wake(r addr.Range) {
	m.mu.Lock()
	defer m.mu.Unlock()
	kept := m.pending[:0:0]
	for _, p := range m.pending {
		if r.Contains(p.page) {
			close(p.done)
		} else {
			kept = append(kept, p)
		}
	}
	m.pending = kept
	for p := range m.told {
		if r.Contains(p.page) {
			delete(m.told, p)
			close(p.done)
		}
	}
}

// FaultWait is a fault of TryFault that waits for a monitor.
type FaultWait struct{ p *waiter }

// Done is closed when the access is to be tried again.
func (w *FaultWait) Done() <-chan struct{} { return w.p.done }

// Cancel says that nobody waits any more. The access may be tried again all the
// same. Cancelling what is done does nothing.
func (w *FaultWait) Cancel() { w.p.m.unlist(w.p) }

// TryFault is Fault for who has other things to wait for, such as signals: where
// Fault would wait for a monitor, it returns who waits. ctx is for I/O.
//
// Errors: as Fault.
func (as *AddressSpace) TryFault(ctx context.Context, gva addr.GVA, access Access) (*FaultWait, error) {
	a := as.borrow()
	defer a.giveBack()
	var w FaultWait
	a.wait = &w
	err := a.Fault(ctx, gva, access)
	if w.p != nil {
		return &w, nil
	}
	return nil, err
}

type (
	threadKey   struct{}
	dontWaitKey struct{}
)

// WithThreadID has monitors told which thread waits, by FeatureThreadID.
func WithThreadID(ctx context.Context, id uint32) context.Context {
	return context.WithValue(ctx, threadKey{}, id)
}

// WithoutMonitors has accesses that would wait for a monitor fail with ErrBus: a
// thread that ends accesses its memory so.
func WithoutMonitors(ctx context.Context) context.Context {
	return context.WithValue(ctx, dontWaitKey{}, true)
}
