package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// FaultServer brings the pages of a region that is filled lazily, and is told of
// stores to armed ones. Its methods are called outside of read sections, from
// many goroutines, and may block.
type FaultServer interface {
	// Fetch returns once the pages [first, first+n) of r are present (R11), or
	// removed. An error is what the access fails with; nothing that could
	// not be read is taken for zeroes.
	Fetch(ctx context.Context, r *Region, first, n uint64) error
	// BeforeStore returns once none of the pages is armed: each was claimed,
	// copied to whoever needs it, unprotected and released. They may be armed
	// again at once; then it is called again.
	BeforeStore(ctx context.Context, r *Region, first, n uint64) error
}

// Remover is a FaultServer that is told before pages are given back. A hole
// punched into a memfd or file is something of which the kernel tells no userfaultfd:
// without this, a vCPU that faults on such a page would be given what the image
// has there.
type Remover interface {
	// Remove is called before the pages [first, first+n) go. From its return on
	// nothing of the image is installed there, and faults are answered by
	// zeroes. An error means that nothing is given back. It is called with locks
	// of the region held, and waits for installs under way and nothing else: it does
	// not use the region's Memory.
	Remove(r *Region, first, n uint64) error
}

type faultServer struct{ FaultServer }

// SetFaultServer has s bring the pages of the region from now on: a new epoch
// begins in which every page is in state initial, PageAbsent for a restore.
// Nil ends that, with initial PagePresent: then every page must be present or
// removed, and none armed, since nothing that is missing is taken for zeroes (R12).
//
// Errors, with nothing changed: ErrBusy if Slices of the region are held, pages
// are absent, being filled or armed, or the region is the pool's; ErrInvalid;
// ErrClosed after RemoveRegion.
func (r *Region) SetFaultServer(s FaultServer, initial PageState) error {
	const op = "set fault server"
	if r.pooled {
		return regionError(op, r.base, r.size, fmt.Errorf("address spaces are made of it: %w", ErrBusy))
	}
	if initial > PagePresent || initial == PageFilling || s == nil && initial != PagePresent {
		return regionError(op, r.base, r.size, fmt.Errorf("pages that are all %v: %w", initial, ErrInvalid))
	}
	err := r.withdraw(0, r.nPages(), func() error {
		if r.gone {
			return ErrClosed
		}
		if err := r.mem.forgetArms(r); err != nil {
			return err
		}
		if s == nil {
			if err := r.states.settled(); err != nil {
				return err
			}
		}
		if err := r.states.NextEpoch(initial); err != nil {
			return err
		}
		if s == nil {
			r.server.Store(nil)
		} else {
			r.server.Store(&faultServer{s})
		}
		return nil
	})
	if err != nil {
		return regionError(op, r.base, r.size, err)
	}
	return nil
}

// States returns the states of the region's pages, which its fault server keeps.
func (r *Region) States() *PageStates { return &r.states }

// Intercept says that somebody else registers the slot mapping with userfaultfd:
// where there is no alias, Go code reaches the region by system calls only from
// when it returns, so that a fault is waited for in the kernel. Atomic accesses
// of words are refused then (ErrNotSupported).
//
// Errors: ErrBusy if Slices of the region are held whose bytes Go may touch, or an
// open snapshot lacks pages of it.
func (r *Region) Intercept() error {
	err := r.withdraw(0, r.nPages(), func() error {
		if err := r.mem.forgetArms(r); err != nil {
			return err
		}
		r.intercepted = r.host.alias == nil
		return nil
	})
	if err != nil {
		return regionError("intercept", r.base, r.size, err)
	}
	return nil
}

// EndIntercept undoes Intercept: nobody watches the slot mapping any more.
func (r *Region) EndIntercept() {
	r.pop.Lock()
	defer r.pop.Unlock()
	r.intercepted = false
}

// WithSlot calls fn with where the region is mapped for vCPUs, unless it was removed,
// and returns whether it has. The mapping is there until fn returns, which does not use
// the Memory: for who has to do with the mapping itself, and cannot know whether the
// address is somebody else's by now.
func (r *Region) WithSlot(fn func(slot addr.HVA, size uint64)) bool {
	r.pop.RLock()
	defer r.pop.RUnlock()
	if r.gone {
		return false
	}
	fn(r.Slot(), r.size)
	return true
}
