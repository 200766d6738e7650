package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// SetBreak says where the heap begins that Brk grows: at an address that is
// rounded up to a page. It is called once, before Brk.
func (as *AddressSpace) SetBreak(start addr.GVA) {
	up, ok := start.RoundUp()
	if !ok {
		up = as.bounds.End
	}
	tok, err := as.lockChange()
	if err != nil {
		return
	}
	defer as.pt.UnlockChange(tok)
	as.brk = breakRange{up, up}
}

// Brk moves the end of the heap, as brk(2) does: it returns the break as it is
// afterwards, which is the old one if to is below the start, if something is in
// the way or less than a page above, if nothing is mapped any more of what would
// be given back, or on an error.
//
// Errors: as Map and Unmap. Source: brk(2), mm/mmap.c.
func (as *AddressSpace) Brk(to addr.GVA) (addr.GVA, error) {
	return as.BrkContext(context.Background(), to)
}

// BrkContext is Brk where ctx is for the wait until monitors have read of it, and
// for what is locked.
//
// Errors: as Brk; that of ctx, or ErrKilled, with the break moved.
func (as *AddressSpace) BrkContext(ctx context.Context, to addr.GVA) (addr.GVA, error) {
	c, err := as.startChange()
	if err != nil {
		return 0, opError("brk", addr.Range{}, err)
	}
	was := as.brk.end
	s, err := as.brkLocked(c, to)
	now := as.brk.end
	if err != nil {
		c.abort()
		return now, opError("brk", addr.Range{Start: as.brk.start, End: to}, err)
	}
	c.publish()
	lock := as.lockFuture
	as.finishMap(c, s)
	if err := c.tell(ctx); err != nil {
		return now, opError("brk", addr.Range{Start: as.brk.start, End: to}, err)
	}
	// Only what is new: the page that the old break is in may be absent though its
	// area is locked.
	from, _ := was.RoundUp()
	if up, _ := now.RoundUp(); lock != 0 && from < up {
		_ = as.populateLocked(ctx, addr.Range{Start: from, End: up}, skipErrors)
	}
	return now, nil
}

func (as *AddressSpace) brkLocked(c *changeUnderWay, to addr.GVA) (*swept, error) {
	if as.brk.start == 0 || to < as.brk.start {
		return nil, nil
	}
	up, ok := to.RoundUp()
	if !ok || up > as.bounds.End {
		return nil, ErrNoSpace
	}
	if most := atMost(as.limits.Load().MaxData); uint64(to-as.brk.start) > most {
		return nil, fmt.Errorf("a heap of more than %#x bytes: %w", most, ErrNoSpace)
	}
	was, _ := as.brk.end.RoundUp()
	heap := vmarea.Attr{Prot: ProtRead | ProtWrite, Flags: KindHeap | as.lockFuture}
	var s *swept
	var err error
	// What is to stay free above a heap that grows: a page more than it needs.
	needed := addr.Range{Start: was, End: min(up+addr.PageSize, as.bounds.End)}
	switch r := (addr.Range{Start: was, End: up}); {
	case up < was && c.areas.IsFree(addr.Range{Start: up, End: was}):
		return nil, fmt.Errorf("nothing of the heap is mapped above %v: %w", up, ErrNoSpace)
	case up < was:
		s, err = as.unmapLocked(c, addr.Range{Start: up, End: was})
	case up > was && !(c.areas.IsFree(needed) && as.clearOfStack(c, needed)):
		return nil, fmt.Errorf("%v is in use: %w", needed, ErrNoSpace)
	case up > was && c.areas.Len() >= as.opts.MaxAreas:
		return nil, fmt.Errorf("%d areas: %w", c.areas.Len(), ErrNoSpace)
	case up > was:
		if as.lockFuture != 0 {
			if err := as.mayLock(c, r.Len()); err != nil {
				return nil, err
			}
		}
		if err := as.mayExpand(c, r.Len(), heap); err != nil {
			return nil, err
		}
		c.areas.Insert(r, heap)
	}
	if err == nil {
		as.brk.end = to
	}
	return s, err
}
