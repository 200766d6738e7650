package guestmem

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A word is loaded and stored as one atomic access, as the guest's own CPUs do
// it; it has to be aligned, so that it lies in one page.

// word runs fn in a read section, on the frame of gva, once the page is there; or device,
// where it is of a device's memory.
func (a Accessor) word(ctx context.Context, op string, gva addr.GVA, size uint64, access Access, fn func(f addr.PFN, off uint64), device func(wordRef)) error {
	r := addr.Range{Start: gva, End: gva + addr.GVA(size)}
	if uint64(gva)%size != 0 {
		return opError(op, r, fmt.Errorf("not aligned to %d bytes: %w", size, ErrInvalid))
	}
	for {
		a.h.Enter(a.as.id)
		shut := !a.as.mem.door.passes()
		if !shut {
			if f, ok := a.as.pt.Translate(gva, needFor(access)); ok {
				var stamp cow.Stamp
				if invariants.Enabled {
					stamp = a.as.mem.pool.Stamp(f)
					mayYieldToStore()
				}
				if access == Write {
					a.as.mem.stored(f)
				}
				ok := true
				if a.as.mem.hosted.Load() {
					ok = guard(func() { fn(f, gva.PageOffset()) })
				} else {
					fn(f, gva.PageOffset())
				}
				if invariants.Enabled {
					a.as.mem.pool.MustHold(f, stamp)
				}
				stays := access == Write || !a.as.overlays.Load() || a.as.stillLeads(gva, f)
				a.h.Exit()
				if !stays {
					continue
				}
				if !ok {
					return opError(op, r, errLost)
				}
				return nil
			}
		}
		a.h.Exit()
		if shut {
			a.as.mem.door.wait()
			continue
		}
		if a.as.devices.Load() {
			if done, err := a.wordOfDevice(gva, access, device); done {
				if err != nil {
					err = opError(op, r, err)
				}
				return err
			}
		}
		if err := a.fault(ctx, gva, access); err != nil {
			return opError(op, r, err)
		}
	}
}

// Load32 is AddressSpace.Load32.
func (a Accessor) Load32(ctx context.Context, gva addr.GVA) (v uint32, err error) {
	err = a.word(ctx, "load", gva, 4, Read, func(f addr.PFN, off uint64) {
		v = atomic.LoadUint32(a.as.mem.arena.Word32(f, off))
	}, func(w wordRef) {
		x, _ := w.do(loadWord, 4, 0, 0)
		v = uint32(x)
	})
	return v, err
}

// Store32 is AddressSpace.Store32.
func (a Accessor) Store32(ctx context.Context, gva addr.GVA, v uint32) error {
	return a.word(ctx, "store", gva, 4, Write, func(f addr.PFN, off uint64) {
		atomic.StoreUint32(a.as.mem.arena.Word32(f, off), v)
	}, func(w wordRef) {
		w.do(storeWord, 4, 0, uint64(v))
	})
}

// CompareAndSwap32 is AddressSpace.CompareAndSwap32.
func (a Accessor) CompareAndSwap32(ctx context.Context, gva addr.GVA, old, new uint32) (swapped bool, err error) {
	err = a.word(ctx, "compare and swap", gva, 4, Write, func(f addr.PFN, off uint64) {
		swapped = atomic.CompareAndSwapUint32(a.as.mem.arena.Word32(f, off), old, new)
	}, func(w wordRef) {
		_, swapped = w.do(swapWord, 4, uint64(old), uint64(new))
	})
	return swapped, err
}

// Load64 is AddressSpace.Load64.
func (a Accessor) Load64(ctx context.Context, gva addr.GVA) (v uint64, err error) {
	err = a.word(ctx, "load", gva, 8, Read, func(f addr.PFN, off uint64) {
		v = atomic.LoadUint64(a.as.mem.arena.Word64(f, off))
	}, func(w wordRef) {
		x, _ := w.do(loadWord, 8, 0, 0)
		v = x
	})
	return v, err
}

// Store64 is AddressSpace.Store64.
func (a Accessor) Store64(ctx context.Context, gva addr.GVA, v uint64) error {
	return a.word(ctx, "store", gva, 8, Write, func(f addr.PFN, off uint64) {
		atomic.StoreUint64(a.as.mem.arena.Word64(f, off), v)
	}, func(w wordRef) {
		w.do(storeWord, 8, 0, v)
	})
}

// CompareAndSwap64 is AddressSpace.CompareAndSwap64.
func (a Accessor) CompareAndSwap64(ctx context.Context, gva addr.GVA, old, new uint64) (swapped bool, err error) {
	err = a.word(ctx, "compare and swap", gva, 8, Write, func(f addr.PFN, off uint64) {
		swapped = atomic.CompareAndSwapUint64(a.as.mem.arena.Word64(f, off), old, new)
	}, func(w wordRef) {
		_, swapped = w.do(swapWord, 8, old, new)
	})
	return swapped, err
}

// Load32 loads the aligned 32-bit word at gva in one atomic access. Words are
// little-endian, as the guest has them.
//
// Errors: ErrInvalid if gva is not aligned; as ReadAt.
func (as *AddressSpace) Load32(ctx context.Context, gva addr.GVA) (uint32, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.Load32(ctx, gva)
}

// Store32 stores the aligned 32-bit word at gva in one atomic access.
//
// Errors: as Load32.
func (as *AddressSpace) Store32(ctx context.Context, gva addr.GVA, v uint32) error {
	a := as.borrow()
	defer a.giveBack()
	return a.Store32(ctx, gva, v)
}

// CompareAndSwap32 compares the aligned 32-bit word at gva with old and, if
// equal, stores new, in one atomic step. The page must be writable either way.
//
// Errors: as Load32.
func (as *AddressSpace) CompareAndSwap32(ctx context.Context, gva addr.GVA, old, new uint32) (bool, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.CompareAndSwap32(ctx, gva, old, new)
}

// Load64 is Load32 for 64 bits.
func (as *AddressSpace) Load64(ctx context.Context, gva addr.GVA) (uint64, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.Load64(ctx, gva)
}

// Store64 is Store32 for 64 bits.
func (as *AddressSpace) Store64(ctx context.Context, gva addr.GVA, v uint64) error {
	a := as.borrow()
	defer a.giveBack()
	return a.Store64(ctx, gva, v)
}

// CompareAndSwap64 is CompareAndSwap32 for 64 bits.
func (as *AddressSpace) CompareAndSwap64(ctx context.Context, gva addr.GVA, old, new uint64) (bool, error) {
	a := as.borrow()
	defer a.giveBack()
	return a.CompareAndSwap64(ctx, gva, old, new)
}
