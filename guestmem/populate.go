package guestmem

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

const hugePageSize = sys.HugePageSize

// Go code touches a page of a region only while it is in the region's set of
// readable, or writable, pages. A page comes into a set once a system call has
// shown that the host has it, so that no touch can be a SIGBUS, or park the
// thread (R10); it leaves before it is given back or armed, and a grace period of
// the whole memory later nobody touches it. So the hot path asks one bit, and
// everything else (lazy restore, arming, discards, a mapping that somebody else
// watches) is a bit that is not set and a slow path outside of the section.

// withdraw runs fn while no Go code touches the pages [first, first+n) nor can
// come to: sections that had found them usable have ended.
//
// Errors: ErrBusy if Slices of them are held; that of fn.
func (r *Region) withdraw(first, n uint64, fn func() error) error {
	r.pop.Lock()
	defer r.pop.Unlock()
	if err := r.pins.overlapping(first, n); err != nil {
		return err
	}
	r.hidePages(first, n)
	return fn()
}

// hidePages takes pages out of both sets and waits for who had found them there.
//
// Preconditions: pop is held for writing.
func (r *Region) hidePages(first, n uint64) {
	if !r.readable.any(first, n) && !r.writable.any(first, n) {
		return
	}
	r.writable.remove(first, n)
	r.readable.remove(first, n)
	r.mem.domain.BarrierAll()
}

// WithholdWrites has every store of Go code to the pages [first, first+n) ask
// the fault server first, if the page is armed then. The caller has marked what
// it arms; after WithholdWrites returns, no store that had begun before is
// under way.
func (r *Region) WithholdWrites(first, n uint64) {
	r.pop.Lock()
	defer r.pop.Unlock()
	if r.writable.any(first, n) {
		r.writable.remove(first, n)
		r.mem.domain.BarrierAll()
	}
}

// maxAsked is how often a fault server is asked for the same pages: one that
// returns without having brought them is broken. Pages that are armed again and again
// by snapshots do not get near it.
const maxAsked = 10000

// readyHook runs between the questions to a fault server and the populating that
// counts on the answers. Only tests set it.
var readyHook func()

// ready makes pages usable for an access of Go code: fetched, not armed if it is
// to be stored to, populated. Whoever calls it tries again in a new section,
// where a page may be gone again.
//
// Preconditions: the caller is in no section.
func (r *Region) ready(ctx context.Context, first, n uint64, access Access) error {
	for asked := 0; ; asked++ {
		if asked == maxAsked {
			return fmt.Errorf("the fault server of region %v was asked %d times for page %#x, which is not there: %w", r, asked, first, ErrBus)
		}
		again := false
		if s := r.server.Load(); s != nil {
			var err error
			if again, err = r.ask(ctx, s, first, n, access); err != nil {
				return r.unlessGone(err)
			}
		}
		if !again {
			var err error
			if again, err = r.askSnapshots(ctx, first, n, access); err != nil {
				return r.unlessGone(err)
			}
		}
		if again {
			continue
		}
		if readyHook != nil {
			readyHook()
		}
		done, err := r.populateUnlessArmed(first, n, access)
		if err != nil || done {
			return err
		}
	}
}

// unlessGone is err, but for a region that was removed meanwhile, of which its fault server
// knows nothing any more: the caller looks the address up again, and finds no region.
func (r *Region) unlessGone(err error) error {
	r.pop.RLock()
	defer r.pop.RUnlock()
	if r.gone {
		return nil
	}
	return err
}

// ask has the fault server do what the pages lack. It returns true if it was
// asked for something.
func (r *Region) ask(ctx context.Context, s *faultServer, first, n uint64, access Access) (bool, error) {
	for page := first; page < first+n; page++ {
		switch st, marks := r.states.State(page); {
		case st == PageAbsent || st == PageFilling:
			return true, s.Fetch(ctx, r, page, first+n-page)
		case access == Write && marks&PageArmed != 0:
			return true, s.BeforeStore(ctx, r, page, 1)
		}
	}
	return false, nil
}

// populateUnlessArmed populates pages and enters them into the sets, unless the
// fault server has to be asked first: a page that was found unarmed may be armed
// by now, and if it came back into the set of writable pages, stores to it would
// not be noticed.
func (r *Region) populateUnlessArmed(first, n uint64, access Access) (bool, error) {
	r.pop.RLock()
	defer r.pop.RUnlock()
	if r.gone {
		return true, nil // the caller looks the address up again, and finds no region
	}
	if access == Write && r.anyArmed(first, n) {
		return false, nil
	}
	if r.server.Load() != nil {
		for page := first; page < first+n; page++ {
			st, marks := r.states.State(page)
			if st < PagePresent || access == Write && marks != 0 {
				return false, nil
			}
		}
	}
	return true, r.populateLocked(first, n, access)
}

// populate has the host back pages, and enters them into the sets.
func (r *Region) populate(first, n uint64, access Access) error {
	r.pop.RLock()
	defer r.pop.RUnlock()
	return r.populateLocked(first, n, access)
}

// populateBatch is how much is populated by one system call.
const populateBatch = 16 << 20 / addr.PageSize

func (r *Region) populateLocked(first, n uint64, access Access) error {
	if r.pageSize > addr.PageSize {
		k := r.pageSize / addr.PageSize
		end := (first + n + k - 1) / k * k
		first = first / k * k
		n = end - first
	}
	if r.pooled {
		return r.poolFrames(first, n)
	}
	for n > 0 {
		k := min(n, populateBatch)
		if err := r.populateHost(hostPages(r.look, first, k), first, k, access); err != nil {
			return err
		}
		r.enter(first, k, access)
		first, n = first+k, n-k
	}
	return nil
}

func (r *Region) enter(first, n uint64, access Access) {
	r.dirty.prepare(first, n)
	r.readable.add(first, n)
	if access == Write {
		r.writable.add(first, n)
	}
}

// populateHost faults b in, which is pages of the mapping that Go looks at.
func (r *Region) populateHost(b []byte, first, n uint64, access Access) error {
	var err error
	if access == Write {
		err = sys.Populate(b)
	} else {
		err = sys.PopulateRead(b)
	}
	if errors.Is(err, sys.ErrNotSupported) && (r.backing == BackingMemfd || r.backing == BackingHugetlb) {
		err = sys.Allocate(r.host.file, r.host.offset+first*addr.PageSize, n*addr.PageSize)
	}
	switch {
	case err == nil:
		return nil
	case r.guarded && errors.Is(err, syscall.EFAULT):
		return r.lost(first)
	case r.backing == BackingForeign && r.host.alias == nil && errors.Is(err, syscall.ENOMEM):
		// So says the kernel of what is not mapped, too.
		if _, gone := r.areasOf(b); gone != nil {
			return gone
		}
	case errors.Is(err, syscall.EFAULT):
		// What would have been a SIGBUS: the memfd's file system is full, or the
		// pool of huge pages empty.
		err = fmt.Errorf("%w: %w", ErrNoMemory, err)
	}
	return fmt.Errorf("populate %#x bytes of the region %v: %w", len(b), r, hostShort(err))
}

// poolFrames enters frames of the pool that somebody has: those are populated.
// Free ones are nobody's to access.
func (r *Region) poolFrames(first, n uint64) error {
	for page := first; page < first+n; page++ {
		if f := r.gpaOf(page).PFN(); !r.mem.pool.Live(f) {
			return fmt.Errorf("frame %v is free: %w", f, ErrNotMapped)
		}
	}
	r.enter(first, n, Write)
	return nil
}
