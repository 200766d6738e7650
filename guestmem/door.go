package guestmem

import (
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/internal/epoch"
)

// door is what every host load and store of guest memory passes, inside the
// section that does the access (R15): one load of a line that is hardly ever
// written. While it is shut, nobody passes; who is refused leaves the section
// and waits outside. A window over the whole memory (a check, the instant of a
// snapshot) shuts it and then waits for all sections: those that had passed
// have ended, and those that come see it shut. The instant of a snapshot shuts it
// for stores alone.
type door struct {
	shut atomic.Uint32 // passage that is refused

	mu   sync.Mutex
	open chan struct{} // closed when the door opens; mu
}

// What a door that is shut refuses.
const (
	shutForNone = iota
	shutForStores
	shutForAll
)

// passes is asked in the section of the access.
func (d *door) passes() bool { return d.shut.Load() == shutForNone }

// passesLoad is passes for an access that stores nothing.
func (d *door) passesLoad() bool { return d.shut.Load() != shutForAll }

// close refuses passage until reopen; what had passed before is the caller's to
// wait for.
func (d *door) close(what uint32) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = make(chan struct{})
	d.shut.Store(what)
}

func (d *door) reopen() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.shut.Store(shutForNone)
	close(d.open)
	d.open = nil
}

// wait returns when the door is open. The caller is in no section.
func (d *door) wait() {
	d.mu.Lock()
	ch := d.open
	d.mu.Unlock()
	if ch != nil {
		<-ch
	}
}

// noSpace is the space of sections that belong to none.
const noSpace epoch.Space = 1

// pastDoor runs fn in a section of no address space that has passed the door:
// for stores to frames that no guest knows yet.
func (m *Memory) pastDoor(fn func()) {
	h := m.domain.Borrow()
	defer m.domain.GiveBack(h)
	for {
		h.Enter(noSpace)
		if m.door.passes() {
			fn()
			h.Exit()
			return
		}
		h.Exit()
		m.door.wait()
	}
}

// window shuts the door, waits for the sections that had passed it, runs fn,
// and opens the door again. One at a time.
func (m *Memory) window(fn func() error) error {
	m.windows.Lock()
	defer m.windows.Unlock()
	m.door.close(shutForAll)
	defer m.door.reopen()
	m.domain.BarrierAll()
	return fn()
}
