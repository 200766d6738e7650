package guestmem

import (
	"errors"
	"fmt"
	"reflect"
)

// RegionListener keeps something equal to the regions of a memory: the slots of
// a virtual machine, the memory table of a device.
type RegionListener interface {
	// UpdateRegions is given the complete new set, sorted by base. When it
	// returns nil, what it keeps is equal to the set, and nothing uses a
	// region that is no longer in it. After an error it is as before the call. It may
	// read the memory, and not change its regions or listeners.
	UpdateRegions(regions []*Region) error
}

// AttachListener tells l of the present regions, and from then on of every
// change. Attaching twice is refused with ErrBusy, and with ErrInvalid what could
// not be told from another one, such as a function type. A listener that refuses is
// not attached, and its error returned.
func (m *Memory) AttachListener(l RegionListener) error {
	if !isComparable(l) {
		return fmt.Errorf("guestmem: attach listener: a %T cannot be compared, and so not be detached: %w", l, ErrInvalid)
	}
	m.layout.Lock()
	defer m.layout.Unlock()
	if m.isClosed() {
		return fmt.Errorf("guestmem: attach listener: %w", ErrClosed)
	}
	for _, x := range m.listeners {
		if x == l {
			return fmt.Errorf("guestmem: attach listener: attached already: %w", ErrBusy)
		}
	}
	if err := l.UpdateRegions(m.Regions()); err != nil {
		return fmt.Errorf("guestmem: attach listener: %w", err)
	}
	m.listeners = append(m.listeners, l)
	return nil
}

// isComparable reports whether x is something that == takes.
func isComparable(x any) bool { return x != nil && reflect.ValueOf(x).Comparable() }

// DetachListener forgets a listener, which is told nothing: what it keeps of the
// regions is its own to take down first. Detaching one that is not attached
// does nothing.
func (m *Memory) DetachListener(l RegionListener) {
	if !isComparable(l) {
		return
	}
	m.layout.Lock()
	defer m.layout.Unlock()
	for i, x := range m.listeners {
		if x == l {
			m.listeners = append(m.listeners[:i:i], m.listeners[i+1:]...)
			return
		}
	}
}

// tellListeners gives every listener the set next. If one refuses, those before
// it are given back the set last, and the refusal is returned.
//
// Preconditions: layout is held.
func (m *Memory) tellListeners(next, last regionTable) error {
	for i, l := range m.listeners {
		err := l.UpdateRegions(append([]*Region(nil), next...))
		if err == nil {
			continue
		}
		err = fmt.Errorf("a listener refuses the regions: %w", err)
		for j := i - 1; j >= 0; j-- {
			if back := m.listeners[j].UpdateRegions(append([]*Region(nil), last...)); back != nil {
				err = errors.Join(err, fmt.Errorf("and another one refuses those of before: %w", back))
			}
		}
		return err
	}
	return nil
}
