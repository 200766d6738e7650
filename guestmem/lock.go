package guestmem

import (
	"context"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// Nothing is ever taken from a guest to make room here, so that a lock is three
// things: a label that areas carry, merge by and lose in a fork; what other calls
// answer for it; and pages that are faulted in ahead.

// LockMode is what Lock does with pages that are not there yet, numerically that
// of mlock2(2).
type LockMode int

// Modes of Lock.
const (
	LockNow     LockMode = 0 // fault them in
	LockOnFault LockMode = 1 // lock them when they are touched
)

// LockAllFlags say what LockAll locks, numerically MCL_*.
type LockAllFlags int

// Flags of LockAll.
const (
	LockAllCurrent LockAllFlags = 1 // what is mapped
	LockAllFuture  LockAllFlags = 2 // what will be mapped, by Map and Brk
	LockAllOnFault LockAllFlags = 4 // with one of them: as LockOnFault
)

const lockFlags = vmarea.Locked | vmarea.LockOnFault

// Lock locks the pages that [start, start+length) touches, as mlock2(2) does, and
// with LockNow faults them in, for which ctx is.
//
// Errors: ErrInvalid (mode), ErrPermission (nothing may be locked), ErrNoSpace
// (ENOMEM: more than may be locked), ErrInvalid (a range that wraps), ErrNoSpace
// (start is not mapped), all with nothing changed; ErrNoSpace (ENOMEM) with what
// lies below locked, for a hole or where a split would make too many areas;
// with all of it locked, and pages faulted in as far as it went: ErrNoSpace for a
// page that cannot be had, ErrAgain where memory is short, that of ctx. ErrClosed.
// Source: mlock(2), mm/mlock.c.
func (as *AddressSpace) Lock(ctx context.Context, start addr.GVA, length uint64, mode LockMode) error {
	r := addr.Range{Start: start, End: start + addr.GVA(length)}
	flags := vmarea.Locked
	switch mode {
	case LockNow:
	case LockOnFault:
		flags |= vmarea.LockOnFault
	default:
		return opError("lock", r, fmt.Errorf("mode %#x: %w", int(mode), ErrInvalid))
	}
	r, err := as.changeLocks(start, length, flags)
	if err == nil {
		err = as.populateLocked(ctx, r, stopAtError)
	}
	if err != nil {
		return opError("lock", r, err)
	}
	return nil
}

// Unlock unlocks the pages that [start, start+length) touches, as munlock(2) does.
//
// Errors: ErrInvalid (a range that wraps), ErrNoSpace (ENOMEM: start is not mapped,
// or, with what lies below unlocked, a hole, or too many areas); ErrClosed.
// Source: munlock(2).
func (as *AddressSpace) Unlock(start addr.GVA, length uint64) error {
	if r, err := as.changeLocks(start, length, 0); err != nil {
		return opError("unlock", r, err)
	}
	return nil
}

// touched returns the whole pages that a range touches. As in Linux, a length
// that wraps when it is rounded up is none; ok says that the range itself does not
// wrap.
func touched(start addr.GVA, length uint64) (r addr.Range, ok bool) {
	n := (length + start.PageOffset() + addr.PageSize - 1) &^ (addr.PageSize - 1)
	r.Start = start.RoundDown()
	r.End = r.Start + addr.GVA(n)
	return r, r.End >= r.Start
}

// changeLocks gives areas the lock that flags say, none if 0.
func (as *AddressSpace) changeLocks(start addr.GVA, length uint64, flags vmarea.Flags) (addr.Range, error) {
	r, ok := touched(start, length)
	if flags != 0 && as.limits.Load().MaxLocked < 0 {
		return r, errNoLocks
	}
	c, err := as.startChange()
	if err != nil {
		return r, err
	}
	if flags != 0 && as.limits.Load().MaxLocked > 0 {
		var had uint64
		for _, a := range c.areas.Listed() {
			if a.Flags&vmarea.Locked != 0 {
				had += a.Len()
				if ok {
					had -= a.Intersect(r).Len()
				}
			}
		}
		if want := uint64(r.End-r.Start) / addr.PageSize; want+had/addr.PageSize > as.maxLockedPages() {
			c.abort()
			return r, fmt.Errorf("%#x pages more than may be locked: %w", want, ErrNoSpace)
		}
	}
	switch {
	case !ok:
		err = fmt.Errorf("length %#x wraps: %w", length, ErrInvalid)
	case r.IsEmpty():
	default:
		head, rest := as.mappedHead(c, r)
		if err = as.setLocks(c, head, flags); err == nil {
			err = rest
		}
	}
	c.publish()
	c.end()
	return r, err
}

var errNoLocks = fmt.Errorf("nothing may be locked: %w", ErrPermission)

func (as *AddressSpace) maxLockedPages() uint64 {
	return uint64(as.limits.Load().MaxLocked) / addr.PageSize
}

// mayLock checks whether so much more may be locked.
//
// Errors: ErrAgain.
func (as *AddressSpace) mayLock(c *changeUnderWay, length uint64) error {
	if as.limits.Load().MaxLocked == 0 {
		return nil
	}
	var had uint64
	for _, a := range c.areas.Listed() {
		if a.Flags&vmarea.Locked != 0 {
			had += a.Len() / addr.PageSize
		}
	}
	if as.limits.Load().MaxLocked < 0 || had+length/addr.PageSize > as.maxLockedPages() {
		return fmt.Errorf("%#x pages are locked, %#x may be: %w", had, max(as.limits.Load().MaxLocked, 0)/int64(addr.PageSize), ErrAgain)
	}
	return nil
}

// LockAll locks all that is mapped, or will be, or both, as mlockall(2) does; what
// is not named in flags is as UnlockAll leaves it for what will be mapped. Pages
// that cannot be had, and areas whose label cannot change, are passed over.
//
// Errors, with nothing changed: ErrInvalid (flags), ErrPermission (nothing may be
// locked), ErrNoSpace (ENOMEM: more is mapped than may be locked), ErrClosed; that
// of ctx. Source: mlockall(2).
func (as *AddressSpace) LockAll(ctx context.Context, flags LockAllFlags) error {
	if flags&^(LockAllCurrent|LockAllFuture|LockAllOnFault) != 0 || flags&(LockAllCurrent|LockAllFuture) == 0 {
		return opError("lock all", addr.Range{}, fmt.Errorf("flags %#x: %w", int(flags), ErrInvalid))
	}
	if as.limits.Load().MaxLocked < 0 {
		return opError("lock all", addr.Range{}, errNoLocks)
	}
	lock := vmarea.Locked
	if flags&LockAllOnFault != 0 {
		lock |= vmarea.LockOnFault
	}
	c, err := as.startChange()
	if err != nil {
		return opError("lock all", addr.Range{}, err)
	}
	if flags&LockAllCurrent != 0 && as.limits.Load().MaxLocked > 0 {
		var mapped uint64
		c.areas.Ascend(0, func(a *vmarea.Area) bool { mapped += a.Len(); return true })
		if mapped/addr.PageSize > as.maxLockedPages() {
			c.abort()
			return opError("lock all", addr.Range{}, fmt.Errorf("%#x bytes are mapped: %w", mapped, ErrNoSpace))
		}
	}
	as.lockFuture = 0
	if flags&LockAllFuture != 0 {
		as.lockFuture = lock
	}
	if flags&LockAllCurrent != 0 {
		_ = as.setLocks(c, as.bounds, lock) // whole areas: none is split
	}
	c.publish()
	c.end()
	if flags&LockAllCurrent != 0 {
		if err := as.populateLocked(ctx, as.bounds, skipErrors); err != nil {
			return opError("lock all", addr.Range{}, err)
		}
	}
	return nil
}

// UnlockAll unlocks all that is mapped, and what will be, as munlockall(2) does.
//
// Errors: ErrClosed.
func (as *AddressSpace) UnlockAll() error {
	c, err := as.startChange()
	if err != nil {
		return opError("unlock all", addr.Range{}, err)
	}
	as.lockFuture = 0
	c.areas.SetFlags(as.bounds, 0, lockFlags)
	c.publish()
	c.end()
	return nil
}

// onError is what populateLocked does where a page cannot be had.
type onError int

const (
	stopAtError onError = iota
	skipErrors          // go on with the next area
)

// populateLocked faults in the pages of locked areas in r: writable private ones as
// a write does, so that nothing is left to be copied. Source: __mm_populate.
//
// Errors: that of ctx; with stopAtError, as Lock.
func (as *AddressSpace) populateLocked(ctx context.Context, r addr.Range, e onError) error {
	a := as.borrow()
	defer a.giveBack()
	for r.Start < r.End {
		var area *vmarea.Area
		as.tree.Snapshot().Ascend(r.Start, func(b *vmarea.Area) bool { area = b; return false })
		if area == nil || area.Start >= r.End {
			return nil
		}
		part := area.Intersect(r)
		r.Start = part.End
		if area.Flags&lockFlags != vmarea.Locked {
			continue
		}
		access := Read
		if area.Prot&ProtWrite != 0 && area.Flags&vmarea.Shared == 0 {
			access = Write
		}
		for gva := part.Start; gva < part.End; gva += addr.PageSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			err := a.fault(ctx, gva, access)
			switch {
			case err == nil:
				continue
			case e == skipErrors:
			case errors.Is(err, ErrNoMemory):
				return fmt.Errorf("%w: %v", ErrAgain, err)
			default:
				return fmt.Errorf("%w: %v: %v", ErrNoSpace, gva, err)
			}
			break
		}
	}
	return nil
}

// mappedHead returns the part of r up to the first hole, and the error for the
// rest.
func (as *AddressSpace) mappedHead(c *changeUnderWay, r addr.Range) (head addr.Range, rest error) {
	head = addr.Range{Start: r.Start, End: r.Start}
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start > head.End {
			return false
		}
		head.End = min(a.End, r.End)
		return head.End < r.End
	})
	if head.End < r.End {
		rest = fmt.Errorf("%v is not mapped: %w", head.End, ErrNoSpace)
	}
	return head, rest
}
