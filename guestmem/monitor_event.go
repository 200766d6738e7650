package guestmem

import (
	"context"
	"encoding/binary"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// MonitorEvent is one message of a Monitor. Fields that its Kind does not name are
// zero.
type MonitorEvent struct {
	Kind uffd.EventKind

	// EventFault. Addr is exact with FeatureExactAddress, else the start of the
	// page. ThreadID, with FeatureThreadID, is what WithThreadID has said.
	Addr     addr.GVA
	Flags    uffd.FaultFlags
	ThreadID uint32

	// EventFork. Child is the monitor of the child's address space, with the
	// same ranges registered; it belongs to who reads the event, who closes it.
	Child *Monitor

	// EventRemap.
	From, To addr.GVA
	Len      uint64

	// EventRemove, EventUnmap.
	Start, End addr.GVA
}

// MonitorMessageSize is the length of a message as Linux encodes it.
const MonitorMessageSize = 32

// Encode writes the event as struct uffd_msg. childFD is the descriptor of Child.
//
// Preconditions: b has MonitorMessageSize bytes.
func (e *MonitorEvent) Encode(b []byte, childFD uint32) {
	clear(b[:MonitorMessageSize])
	b[0] = byte(e.Kind)
	var arg [3]uint64
	switch e.Kind {
	case uffd.EventFault:
		arg = [3]uint64{uint64(e.Flags), uint64(e.Addr), uint64(e.ThreadID)}
	case uffd.EventFork:
		arg[0] = uint64(childFD)
	case uffd.EventRemap:
		arg = [3]uint64{uint64(e.From), uint64(e.To), e.Len}
	case uffd.EventRemove, uffd.EventUnmap:
		arg = [3]uint64{uint64(e.Start), uint64(e.End)}
	}
	for i, v := range arg {
		binary.LittleEndian.PutUint64(b[8+8*i:], v)
	}
}

// Read fills events with what waits, without blocking, and returns how many; 0 if
// nothing does. Faults come before other events. Who made a change goes on once its
// event was read.
//
// Errors: ErrClosed.
func (m *Monitor) Read(events []MonitorEvent) (int, error) {
	return m.ReadAccept(events, func(*Monitor) error { return nil })
}

// ReadAccept is Read for who may have no room for the child of a fork: accept is
// called with it, and if it fails, the event stays the next one to be read, and the
// error is returned unless something was read before. No lock is held.
func (m *Monitor) ReadAccept(events []MonitorEvent, accept func(child *Monitor) error) (n int, err error) {
	for n < len(events) {
		ok, err := m.readOne(&events[n], accept)
		if err != nil && n == 0 {
			return 0, opError("read events", addr.Range{}, err)
		}
		if !ok || err != nil {
			break
		}
		n++
	}
	return n, nil
}

func (m *Monitor) readOne(e *MonitorEvent, accept func(*Monitor) error) (bool, error) {
	m.mu.Lock()
	if m.closed.Load() {
		m.mu.Unlock()
		return false, ErrClosed
	}
	if len(m.pending) > 0 {
		p := m.pending[0]
		m.pending = m.pending[1:]
		if m.told == nil {
			m.told = make(map[*waiter]struct{})
		}
		m.told[p] = struct{}{}
		*e = p.event(m.features)
		m.mu.Unlock()
		return true, nil
	}
	if len(m.events) == 0 {
		m.mu.Unlock()
		return false, nil
	}
	n := m.events[0]
	m.events = m.events[1:]
	if n.event.Kind != uffd.EventFork {
		m.mu.Unlock()
		*e = n.event
		n.deliver()
		return true, nil
	}
	n.reading = true // who waits for it is not let go meanwhile
	m.mu.Unlock()
	err := accept(n.event.Child)
	m.mu.Lock()
	n.reading = false
	if err != nil {
		switch {
		case m.closed.Load(), n.left:
			m.mu.Unlock()
			n.drop()
		default:
			m.events = append([]*notice{n}, m.events...)
			m.signalLocked()
			m.mu.Unlock()
		}
		return false, err
	}
	m.mu.Unlock()
	*e = n.event
	n.deliver()
	return true, nil
}

// Changing reports whether a change is under way that was not read of yet, beside
// which installs fail with ErrAgain.
func (m *Monitor) Changing() bool { return m.changing.Load() != 0 }

// Readable reports whether Read would return something.
func (m *Monitor) Readable() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pending) > 0 || len(m.events) > 0
}

// Wait returns when Read would return something.
//
// Errors: ErrClosed; that of ctx.
func (m *Monitor) Wait(ctx context.Context) error {
	for {
		m.mu.Lock()
		if m.closed.Load() {
			m.mu.Unlock()
			return opError("wait for events", addr.Range{}, ErrClosed)
		}
		if len(m.pending) > 0 || len(m.events) > 0 {
			m.mu.Unlock()
			return nil
		}
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		m.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return opError("wait for events", addr.Range{}, ctx.Err())
		}
	}
}

// Notify has fn called whenever there is more to read. It is called with locks
// held: it does not block, and calls nothing of this package.
func (m *Monitor) Notify(fn func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.notify = fn
}

// signalLocked wakes who waits to read.
func (m *Monitor) signalLocked() {
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
	if m.notify != nil {
		m.notify()
	}
}
