package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// SyncFlags say what Sync does, numerically MS_*.
type SyncFlags int

// Flags of Sync.
const (
	SyncAsync      SyncFlags = 1
	SyncInvalidate SyncFlags = 2 // refused for locked areas
	SyncWait       SyncFlags = 4
)

// Sync has what was written to shared areas be where their objects come from, as
// msync(2) does: with SyncWait it is there when Sync returns (Object.Sync); with
// the others, as in Linux, nothing is begun that would not happen anyway.
//
// Errors: ErrInvalid (flags, start not aligned), ErrNoSpace (ENOMEM: a range that
// wraps, or a hole; the mapped parts are done), ErrBusy (SyncInvalidate of a locked
// area), ErrIO (the sink's error), both with the areas below done; ErrNoMemory;
// ErrClosed. Source: msync(2), mm/msync.c.
func (as *AddressSpace) Sync(start addr.GVA, length uint64, flags SyncFlags) error {
	n := (length + addr.PageSize - 1) &^ (addr.PageSize - 1) // 0 if it wraps, as in Linux
	r := addr.Range{Start: start, End: start + addr.GVA(n)}
	var err error
	switch {
	case flags&^(SyncAsync|SyncInvalidate|SyncWait) != 0, flags&(SyncAsync|SyncWait) == SyncAsync|SyncWait:
		err = fmt.Errorf("flags %#x: %w", int(flags), ErrInvalid)
	case !start.IsAligned():
		err = fmt.Errorf("start is not aligned: %w", ErrInvalid)
	case r.End < r.Start:
		err = fmt.Errorf("length %#x wraps: %w", length, ErrNoSpace)
	case n > 0:
		err = as.syncAreas(r, flags)
	}
	if err != nil {
		return opError("sync", r, err)
	}
	return nil
}

// syncAreas goes through the areas as Linux does: a hole is told at the end, but
// at once if the flags are SyncAsync alone.
func (as *AddressSpace) syncAreas(r addr.Range, flags SyncFlags) error {
	at := r.Start
	var hole, failed error
	var spans []span
	c, err := as.startChange() // which keeps the objects that areas show
	if err != nil {
		return err
	}
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		if a.Start > at {
			hole = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
			if flags == SyncAsync || a.Start >= r.End {
				return false
			}
		}
		if flags&SyncInvalidate != 0 && a.Flags&vmarea.Locked != 0 {
			err = fmt.Errorf("%v is locked: %w", a, ErrBusy)
			return false
		}
		if part := a.Intersect(r); flags&SyncWait != 0 && !part.IsEmpty() && a.Flags&(vmarea.Shared|vmarea.ReadOnly) == vmarea.Shared {
			if o := a.Backing.(*Object); o.dst != nil || o.host != nil {
				o.ref()
				spans = append(spans, span{object: o, first: a.OffsetOf(part.Start), n: part.Len()})
			}
		}
		at = a.End
		return at < r.End
	})
	c.abort()
	for _, s := range spans { // of bytes
		if failed == nil {
			failed = s.object.Sync(context.Background(), s.first, s.n)
		}
		s.object.unref()
	}
	if failed != nil {
		return failed
	}
	if err == nil {
		err = hole
	}
	if err == nil && at < r.End {
		err = fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace)
	}
	return err
}
