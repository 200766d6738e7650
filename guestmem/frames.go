package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/pagetable"
)

// What is retired is encoded as the frame's number over four bits: the level of
// the table (0 is data), and whether its content has moved on.
const movedItem = 1 << 3

func itemOf(d pagetable.Dropped) epoch.Item {
	it := epoch.Item(d.Frame)<<4 | epoch.Item(d.Level)
	if d.Moved {
		it |= movedItem
	}
	return it
}

// reclaim is the reclaimer's callback.
func (m *Memory) reclaim(items []epoch.Item) {
	for _, it := range items {
		m.drop(pagetable.Dropped{
			Frame: addr.PFN(it >> 4),
			Level: int(it & (movedItem - 1)),
			Moved: it&movedItem != 0,
		})
	}
}

// drop gives up one reference. No reader can be following it.
func (m *Memory) drop(d pagetable.Dropped) { pagetable.Drop(&m.arena, m.pool, d) }

// refill gets frames for the handle's cache. The handle holds its slot, in no
// section, and holds it still when this returns.
func (m *Memory) refill(h *epoch.Handle) error {
	epoch.AssertOutside("refill")
	err := m.pool.Refill(h.Local().(*cow.Cache))
	if err == nil || !errors.Is(err, ErrNoMemory) {
		return err
	}
	h.Free()
	m.reclaimAll()
	h.Hold() // perhaps another slot, with frames
	return m.pool.Refill(h.Local().(*cow.Cache))
}

// allocate takes frames, all or none, with one reference each.
func (m *Memory) allocate(out []addr.PFN) error {
	epoch.AssertOutside("allocate")
	if m.pool == nil {
		return errNoPool
	}
	err := m.pool.Alloc(out)
	if err == nil || !errors.Is(err, ErrNoMemory) {
		return err
	}
	m.reclaimAll()
	return m.pool.Alloc(out)
}

// reclaimAll finds the frames that are free in truth: retired, in the caches of
// slots that nobody holds, in the view's quarantine. Memory is short, so this is the one
// place besides closing where an allocation waits for readers.
func (m *Memory) reclaimAll() {
	m.domain.Synchronize()
	m.emptyCaches()
	if m.view != nil {
		m.view.Flush()
	}
}

func (m *Memory) emptyCaches() {
	if m.pool == nil {
		return
	}
	m.domain.Drain(func(local any) { m.pool.Empty(local.(*cow.Cache)) })
	if m.hosted.Load() {
		m.giveBackHosted(nil)
	}
}

// allocateBlock takes a block of 2 MiB: for what can do without, so it does not
// wait for readers.
func (m *Memory) allocateBlock() (block addr.PFN, zero bool, err error) {
	epoch.AssertOutside("allocate a block")
	return m.pool.AllocBlock()
}

// allocateTables takes frames for tables.
func (m *Memory) allocateTables(out []addr.PFN) error {
	if err := m.allocate(out); err != nil {
		return err
	}
	m.tables.Add(uint64(len(out)))
	m.privileged.mark(out)
	return nil
}

// returnTables takes back table frames that were not used.
func (m *Memory) returnTables(frames ...addr.PFN) {
	m.privileged.unmark(frames)
	m.tables.Sub(uint64(len(frames)))
	for _, f := range frames {
		if m.pool.Drop(f) {
			m.pool.FreeData(f)
		}
	}
}

// returnFrames gives back frames that allocate took.
func (m *Memory) returnFrames(frames []addr.PFN) {
	for _, f := range frames {
		if m.pool.Drop(f) {
			m.pool.FreeData(f)
		}
	}
}

// AllocSupervisor takes n zeroed frames for a platform's own use: descriptor
// tables, stubs, stacks, and the tables that map them. They are never part of
// an address space's lower half nor of an object.
//
// Errors: ErrInvalid for a negative n; ErrNoMemory, and none is taken; ErrNotSupported
// for a memory without a frame pool; ErrClosed.
func (m *Memory) AllocSupervisor(n int) ([]addr.PFN, error) {
	const op = "allocate supervisor frames"
	switch {
	case n < 0:
		return nil, opError(op, addr.Range{}, fmt.Errorf("%d of them: %w", n, ErrInvalid))
	case m.pool == nil:
		return nil, opError(op, addr.Range{}, errNoPool)
	case m.isClosed():
		return nil, opError(op, addr.Range{}, ErrClosed)
	}
	out := make([]addr.PFN, n)
	if err := m.allocate(out); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	m.pastDoor(func() {
		for _, f := range out {
			m.stored(f)
			m.arena.Zero(f)
		}
	})
	m.supervisorFrames.Add(uint64(n))
	m.privileged.mark(out)
	return out, nil
}

// FreeSupervisor takes frames of AllocSupervisor back.
func (m *Memory) FreeSupervisor(frames []addr.PFN) {
	m.privileged.unmark(frames)
	for _, f := range frames {
		if m.pool.Drop(f) {
			m.pool.FreeData(f)
		}
	}
	m.supervisorFrames.Sub(uint64(len(frames)))
}

// SupervisorBytes returns the 4096 bytes of a frame of AllocSupervisor, through
// the alias.
func (m *Memory) SupervisorBytes(f addr.PFN) []byte { return m.arena.Bytes(f) }

// SetSupervisorTable has entry index (256 to 511) of every root lead to a
// page-directory-pointer table of the platform's, for ring 0 only, or to nothing
// if pdpt is 0.
//
// Errors: ErrInvalid; ErrBusy if there is an address space already.
func (m *Memory) SetSupervisorTable(index int, pdpt addr.PFN) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case index < 256 || index > 511 || pdpt != 0 && !m.arena.Contains(pdpt):
		return opError("set supervisor table", addr.Range{}, ErrInvalid)
	case len(m.spaces) > 0:
		return opError("set supervisor table", addr.Range{}, ErrBusy)
	}
	m.supervisor[index-256] = 0
	if pdpt != 0 {
		m.supervisor[index-256] = pagetable.LeafEntry(pdpt, pagetable.Writable)
	}
	return nil
}
