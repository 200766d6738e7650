package guestmem

import "github.com/guestmm/guestmm/guestmem/addr"

// View is a second translator of address spaces that may cache what their page
// tables say: the vCPUs of a virtual machine, a device. One view serves one
// Memory. Its methods are called outside of read sections and may block for as
// long as it takes a vCPU to leave the guest.
type View interface {
	// Stop returns once nothing runs guest code in as; until the matching
	// Resume nothing begins to. Calls nest and may come from several
	// goroutines. Whoever runs in as again after Resume uses as.Root as it is
	// then, and no translation from an older root.
	Stop(as *AddressSpace)
	Resume(as *AddressSpace)
	// Invalidate drops every cached translation of as to the frames: a leaf
	// that led to each was cleared, replaced, or lost a permission. When it
	// returns, none is used any more.
	Invalidate(as *AddressSpace, frames []addr.PFN)
	// RetireTables takes table frames that nothing refers to any more. The view
	// hands them to Memory.ReuseTables when no cached state of theirs is left.
	RetireTables(frames []addr.PFN)
	// Flush hands back now what RetireTables took: memory is short.
	Flush()
}

// AttachView makes v the view of this memory's address spaces.
//
// Errors: ErrInvalid for nil; ErrBusy if there is a view or an address space already;
// ErrNotSupported for a memory without a frame pool.
func (m *Memory) AttachView(v View) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pool == nil {
		return opError("attach view", addr.Range{}, errNoPool)
	}
	if v == nil {
		return opError("attach view", addr.Range{}, ErrInvalid)
	}
	if m.view != nil || len(m.spaces) > 0 {
		return opError("attach view", addr.Range{}, ErrBusy)
	}
	m.view = v
	m.store.populateSlot.Store(true)
	if m.around == 0 {
		m.around = defaultAround
	}
	return nil
}

// DetachView removes the view.
//
// Errors: ErrBusy if there is an address space.
func (m *Memory) DetachView() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.spaces) > 0 {
		return opError("detach view", addr.Range{}, ErrBusy)
	}
	m.view = nil
	if m.store != nil {
		m.store.populateSlot.Store(false)
	}
	return nil
}

// ReuseTables takes back table frames from the view.
func (m *Memory) ReuseTables(frames []addr.PFN) {
	m.quarantined.Sub(uint64(len(frames)))
	for _, f := range frames {
		m.pool.FreeData(f)
	}
}

// freeTable is where the pool sends table frames without references.
func (m *Memory) freeTable(f addr.PFN) {
	m.tables.Dec()
	m.privileged.unmark([]addr.PFN{f})
	if m.view == nil {
		m.pool.FreeData(f)
		return
	}
	m.quarantined.Inc()
	m.view.RetireTables([]addr.PFN{f})
}
