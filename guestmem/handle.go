package guestmem

import (
	"context"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
)

// Handle is a slot of the reclaimer for one goroutine's own use, such as that
// which runs a vCPU. Accesses with a handle are cheaper than without, where one
// is borrowed for each call. One goroutine at a time.
type Handle struct {
	mem *Memory
	h   *epoch.Handle
}

// NewHandle returns a handle. Close gives it back.
func (m *Memory) NewHandle() *Handle { return &Handle{m, m.domain.NewHandle()} }

// Close gives the handle back. Closing twice does nothing.
//
// Preconditions: no accessor of the handle is used any more.
func (h *Handle) Close() { h.h.Close() }

// Accessor is an address space as seen with a handle: its lookups. One goroutine
// at a time.
type Accessor struct {
	as *AddressSpace
	h  *epoch.Handle
	// private says that nobody else uses the address space yet: what is
	// replaced in it can be dropped at once.
	private bool
	// user says that the guest itself accesses, and wait, if it is not nil, has
	// a fault that would wait for a monitor returned there.
	user bool
	wait *FaultWait
}

// With returns the accessor for a handle of the same memory.
func (as *AddressSpace) With(h *Handle) Accessor {
	if h.mem != as.mem {
		panic("guestmem: With: handle of another memory")
	}
	return Accessor{as: as, h: h.h}
}

// borrow returns an accessor over a borrowed slot.
func (as *AddressSpace) borrow() Accessor { return Accessor{as: as, h: as.mem.domain.Borrow()} }

func (a Accessor) giveBack() { a.as.mem.domain.GiveBack(a.h) }

// ReadAt is AddressSpace.ReadAt.
func (a Accessor) ReadAt(ctx context.Context, p []byte, gva addr.GVA) (int, error) {
	if a.as.readHit(a.h, p, gva) {
		return len(p), nil
	}
	return a.copy(ctx, p, gva, Read)
}

// WriteAt is AddressSpace.WriteAt.
func (a Accessor) WriteAt(ctx context.Context, p []byte, gva addr.GVA) (int, error) {
	return a.copy(ctx, p, gva, Write)
}

// Fault is AddressSpace.Fault.
func (a Accessor) Fault(ctx context.Context, gva addr.GVA, access Access) error {
	a.user = true
	if err := a.fault(ctx, gva, access); err != nil {
		return opError("fault", addr.Range{Start: gva, End: gva + 1}, err)
	}
	return nil
}

// ReadAt copies guest memory from gva on to p and returns how many bytes it
// copied; fewer than len(p) only with an error, and then exactly those below
// the address that failed. Pages are faulted in as needed; ctx is for the
// reading that this may take.
//
// Errors: ErrNotMapped, ErrAccess, ErrBus (each EFAULT); ErrNoMemory; that of
// ctx or of the object's source.
func (as *AddressSpace) ReadAt(ctx context.Context, p []byte, gva addr.GVA) (int, error) {
	h := as.mem.domain.Borrow()
	if as.readHit(h, p, gva) {
		as.mem.domain.GiveBack(h)
		return len(p), nil
	}
	a := Accessor{as: as, h: h}
	defer a.giveBack()
	return a.copy(ctx, p, gva, Read)
}

// WriteAt copies p to guest memory from gva on, as ReadAt does the other way, and with
// its errors. A page that it may write to only after a copy is copied first.
func (as *AddressSpace) WriteAt(ctx context.Context, p []byte, gva addr.GVA) (int, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.copy(ctx, p, gva, Write)
}

// Fault resolves a fault of the guest: it installs the page that the access
// needs, or makes it writable, copying it if it is shared. Nil means that the
// access is to be tried again.
//
// Errors: ErrNotMapped, ErrAccess, ErrBus (what the guest is to be told);
// ErrNoMemory; that of ctx or of the object's source.
func (as *AddressSpace) Fault(ctx context.Context, gva addr.GVA, access Access) error {
	a := as.borrow()
	defer a.giveBack()
	return a.Fault(ctx, gva, access)
}

// Populate faults in every page of r ahead of use. It stops at the first page
// that cannot be had, with what came before it done.
//
// Errors: as Fault.
func (as *AddressSpace) Populate(ctx context.Context, r addr.Range, access Access) error {
	a := as.borrow()
	defer a.giveBack()
	for gva := r.Start.RoundDown(); gva < r.End; gva += addr.PageSize {
		if err := a.fault(ctx, gva, access); err != nil {
			return opError("populate", addr.Range{Start: gva, End: r.End}, err)
		}
	}
	return nil
}
