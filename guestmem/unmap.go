package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// Unmap removes whatever is mapped in [start, start+length), as munmap(2) does;
// holes, or nothing mapped at all, are no error. When it returns, nobody reads
// or writes those pages any more.
//
// Errors, with nothing changed: ErrInvalid (start not aligned, length 0, beyond
// the bounds); ErrNoSpace (a split would make too many areas); ErrNoMemory (for
// the tables at the ends of a range that a relative shares); ErrClosed.
// Source: munmap(2).
func (as *AddressSpace) Unmap(start addr.GVA, length uint64) error {
	return as.UnmapContext(context.Background(), start, length)
}

// UnmapContext is Unmap where ctx is for the wait until monitors have read of it.
//
// Errors: as Unmap; that of ctx, or ErrKilled, with the range unmapped.
func (as *AddressSpace) UnmapContext(ctx context.Context, start addr.GVA, length uint64) error {
	r, err := as.checkRange(start, length)
	if err != nil {
		return opError("unmap", r, err)
	}
	c, err := as.startChange()
	if err != nil {
		return opError("unmap", r, err)
	}
	s, err := as.unmapLocked(c, r)
	if err != nil {
		c.abort()
		return opError("unmap", r, err)
	}
	c.publish()
	as.finishMap(c, s)
	if err := c.tell(ctx); err != nil {
		return opError("unmap", r, err)
	}
	return nil
}

// checkRange checks a range that must lie in the lower half of the address
// space; what is outside of the bounds in it has no areas.
func (as *AddressSpace) checkRange(start addr.GVA, length uint64) (addr.Range, error) {
	n, ok := addr.RoundUpLength(length)
	r, ok2 := addr.RangeFrom(start, n)
	switch {
	case !start.IsAligned():
		return r, fmt.Errorf("start is not aligned: %w", ErrInvalid)
	case length == 0:
		return r, fmt.Errorf("length is 0: %w", ErrInvalid)
	case !ok, !ok2, r.End > as.bounds.End:
		return r, fmt.Errorf("beyond %v: %w", as.bounds.End, ErrInvalid)
	}
	return r, nil
}

// unmapLocked edits the change and takes the pages away. On an error the caller
// aborts it.
func (as *AddressSpace) unmapLocked(c *changeUnderWay, r addr.Range) (*swept, error) {
	r = r.Intersect(as.bounds)
	if r.IsEmpty() || c.areas.IsFree(r) {
		return nil, nil
	}
	gone := as.objectPagesIn(c, r)
	c.noteUnmap(r)
	c.areas.Remove(r)
	if n := c.areas.Len(); n > as.opts.MaxAreas {
		return nil, fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	s, err := c.zap(r, as.beyondBounds(c.areas.HoleAround(r)))
	if err != nil {
		return nil, err
	}
	as.countPages(gone, false)
	return s, nil
}

// beyondBounds extends a hole that reaches an end of the bounds to where no area
// can lie either, so that the tables there are given back too.
func (as *AddressSpace) beyondBounds(hole addr.Range) addr.Range {
	if hole.Start == as.bounds.Start {
		hole.Start = 0
	}
	if hole.End == as.bounds.End {
		hole.End = pagetable.Limit
	}
	return hole
}

// Discard drops the pages of [start, start+length), as madvise(2) with
// MADV_DONTNEED does: private anonymous pages read as zero after, pages of
// objects are read again. The areas stay.
//
// Errors: ErrInvalid (start not aligned, wraps; an area that is locked, with those
// below it done); ErrNoSpace (ENOMEM: part of the range is a hole; the mapped
// parts are done); ErrNoMemory, with nothing changed but where there have been
// guard pages: then with the pages below discarded; ErrClosed.
func (as *AddressSpace) Discard(start addr.GVA, length uint64) error {
	r, err := checkAdvised(start, length, AdviceDontNeed)
	if err == nil && length > 0 {
		err = as.discard(context.Background(), r, AdviceDontNeed)
	}
	if err != nil {
		return opError("discard", r, err)
	}
	return nil
}

// discard is discardNow once monitors were told.
func (as *AddressSpace) discard(ctx context.Context, r addr.Range, advice Advice) error {
	if as.isMonitored() {
		return as.adviseMonitored(ctx, r, advice)
	}
	return as.discardNow(r, advice)
}

func (as *AddressSpace) discardNow(r addr.Range, advice Advice) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := advisedHead(r, c.areas.Ascend, advice)
	head = head.Intersect(as.bounds)
	var s *swept
	if !head.IsEmpty() && !c.areas.IsFree(head) {
		if s, err = c.empty(head); s == nil {
			c.abort()
			return err
		}
	}
	c.publish()
	as.finishMap(c, s)
	if err != nil {
		return err
	}
	return rest
}
