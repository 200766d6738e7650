package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// RemapFlags are the flags of Remap, numerically MREMAP_*.
type RemapFlags uint32

// Flags of Remap.
const (
	RemapMayMove   RemapFlags = 1
	RemapFixed     RemapFlags = 2 // to NewAddr; takes RemapMayMove too
	RemapDontUnmap RemapFlags = 4 // the source stays, without pages; takes RemapMayMove too

	remapKnown = RemapMayMove | RemapFixed | RemapDontUnmap
	remapTo    = RemapFixed | RemapDontUnmap // those with which it always moves
)

// RemapOptions say what Remap moves, shrinks or lets grow.
type RemapOptions struct {
	// Addr and OldLength are what is to be remapped. OldLength 0 makes a second
	// view of the shared area at Addr.
	Addr      addr.GVA
	OldLength uint64
	// NewLength is how long it is afterwards. Lengths are rounded up to pages.
	NewLength uint64
	Flags     RemapFlags
	// NewAddr is where it goes with RemapFixed, and a hint with RemapDontUnmap
	// alone.
	NewAddr addr.GVA
}

// remap is a Remap under way.
type remap struct {
	as       *AddressSpace
	c        *changeUnderWay
	from, to addr.GVA
	old, now uint64 // lengths
	flags    RemapFlags

	mv    moving
	pages map[*Object]uint64 // mapped of each object more than before, modulo 2^64
	done  bool               // something was edited that stays, whatever the error
	locks bool               // a locked area grows
}

// Remap lets a range of areas grow or shrink, or moves it, as mremap(2) does, and
// returns where it begins afterwards. Pages move by their page-table entries:
// nothing is copied, and pins stay with their frames. A move waits for the
// lookups in progress in this address space; who uses the source or the target
// meanwhile waits for it. ctx is for what an area that is locked gains.
//
// With RemapFixed several areas may be moved, with the holes between them, if
// the length does not change, and what was at the target goes; what is there
// under a hole stays.
//
// Errors, in the order in which they are looked for: ErrInvalid (unknown flags,
// addresses not aligned, new length 0 or beyond the bounds, RemapFixed or
// RemapDontUnmap without RemapMayMove, RemapDontUnmap with another length,
// overlap); ErrNoSpace (too many areas); ErrNotMapped (EFAULT: no area at Addr, or
// a part of the range that grows or moves lies beyond its end); ErrInvalid
// (OldLength 0 and private); ErrAgain (more would be locked than may be);
// ErrNoSpace (more than Limits allow, with RemapFixed and RemapDontUnmap with the areas
// below moved);
// ErrNoSpace (it cannot grow in place and may not
// move, or no hole fits); ErrNoMemory; ErrClosed. All with nothing changed, but
// that with RemapFixed the target is unmapped when it turns out that the source
// was in it (ErrNotMapped), that what is to be cut off reaches beyond the bounds
// (ErrInvalid), or that NewAddr lies below them (EPERM). Source: mremap(2),
// mm/mremap.c.
func (as *AddressSpace) Remap(ctx context.Context, o RemapOptions) (addr.GVA, error) {
	old, _ := addr.RoundUpLength(o.OldLength) // as Linux: what wraps is 0
	now, _ := addr.RoundUpLength(o.NewLength)
	r := remap{as: as, from: o.Addr, to: o.NewAddr, old: old, now: now, flags: o.Flags}
	asked := addr.Range{Start: o.Addr, End: o.Addr + addr.GVA(old)}
	if err := r.check(); err != nil {
		return 0, opError("remap", asked, err)
	}
	c, err := as.startChange()
	if err != nil {
		return 0, opError("remap", asked, err)
	}
	r.c, r.mv.c = c, c
	at, err := r.run()
	if told := c.tell(ctx); err == nil {
		err = told // whatever was unmapped is told of, also if the rest has failed
	}
	if err != nil {
		return 0, opError("remap", asked, err)
	}
	if r.locks {
		_ = as.populateLocked(ctx, addr.Range{Start: at + addr.GVA(old), End: at + addr.GVA(now)}, skipErrors)
	}
	return at, nil
}

// check checks the parameters, as far as they can be wrong whatever is mapped.
func (r *remap) check() error {
	end := r.as.bounds.End
	switch {
	case r.flags&^remapKnown != 0:
		return fmt.Errorf("flags %#x: %w", uint32(r.flags), ErrInvalid)
	case !r.from.IsAligned():
		return fmt.Errorf("address is not aligned: %w", ErrInvalid)
	case r.now == 0, r.now > uint64(end):
		return fmt.Errorf("new length %#x: %w", r.now, ErrInvalid)
	case r.flags&remapTo == 0:
		return nil
	case r.to > end-addr.GVA(r.now):
		return fmt.Errorf("new address %v is beyond %v: %w", r.to, end, ErrInvalid)
	case !r.to.IsAligned():
		return fmt.Errorf("new address %v is not aligned: %w", r.to, ErrInvalid)
	case r.flags&RemapMayMove == 0:
		return fmt.Errorf("a new address, and may not move: %w", ErrInvalid)
	case r.flags&RemapDontUnmap != 0 && r.old != r.now:
		return fmt.Errorf("the source is to stay, and lengths are %#x and %#x: %w", r.old, r.now, ErrInvalid)
	case r.from+addr.GVA(r.old) > r.to && r.to+addr.GVA(r.now) > r.from: // wraps as Linux does
		return fmt.Errorf("new address %v lies in the source: %w", r.to, ErrInvalid)
	}
	return nil
}

// run edits the areas, moves the pages, and ends the change.
func (r *remap) run() (addr.GVA, error) {
	as, c := r.as, r.c
	at, failed := r.edit()
	if failed != nil && !r.done {
		c.abort()
		return 0, failed
	}
	s, err := r.mv.run()
	if err != nil {
		c.abort()
		return 0, err
	}
	as.countPages(r.pages, true)
	c.publish()
	as.finishMap(c, s)
	return at, failed
}

// count notes that pages of what is mapped in part of an area are mapped once
// more, or once less.
func (r *remap) count(a *vmarea.Area, length uint64, mapped bool) {
	o, ok := a.Backing.(*Object)
	if !ok {
		return
	}
	if r.pages == nil {
		r.pages = make(map[*Object]uint64)
	}
	if n := length / addr.PageSize; mapped {
		r.pages[o] += n
	} else {
		r.pages[o] -= n
	}
}

// unmap takes areas away, whose pages are to go.
func (r *remap) unmap(gone addr.Range) {
	r.c.areas.Ascend(gone.Start, func(a *vmarea.Area) bool {
		if x := a.Intersect(gone); !x.IsEmpty() {
			r.count(a, x.Len(), false)
		}
		return a.End < gone.End
	})
	r.c.noteUnmap(gone)
	r.c.areas.Remove(gone)
}

// edit edits the areas and notes what is to become of the pages. After an error
// the edits are to be kept if r.done.
func (r *remap) edit() (addr.GVA, error) {
	as, c := r.as, r.c
	// Linux makes sure of room for what a move may split, before it looks for
	// anything.
	n := c.areas.Len()
	if r.flags&remapTo != 0 && n+2 >= as.opts.MaxAreas-3 {
		return 0, fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	if r.flags&RemapFixed != 0 && r.old == r.now {
		return r.moveAll()
	}
	a := c.areas.Find(r.from)
	if a == nil {
		return 0, fmt.Errorf("%v: %w", r.from, ErrNotMapped)
	}
	if r.flags&RemapDontUnmap != 0 && isDevice(a) {
		return 0, fmt.Errorf("%v is a device's: %w", a, ErrInvalid)
	}
	if r.now > r.old || r.flags&remapTo != 0 {
		if r.old == 0 && a.Flags&vmarea.Shared == 0 {
			return 0, fmt.Errorf("a second view of a private area: %w", ErrInvalid)
		}
		if min(r.old, r.now) > uint64(a.End-r.from) {
			return 0, fmt.Errorf("the range ends beyond %v: %w", a.End, ErrNotMapped)
		}
	}
	if r.now > r.old && isDevice(a) {
		return 0, fmt.Errorf("%v is a device's, and does not grow: %w", a, ErrNotMapped)
	}
	if r.now > r.old && a.Flags&vmarea.Locked != 0 {
		r.locks = true
		if err := as.mayLock(c, r.now-r.old); err != nil {
			return 0, err
		}
	}
	if r.now > r.old {
		if err := as.mayExpand(c, r.now-r.old, a.Attr()); err != nil {
			return 0, err
		}
	}
	switch {
	case r.flags&RemapFixed != 0:
		return r.moveFixed()
	case r.flags&RemapDontUnmap != 0:
		if err := as.mayExpand(c, r.old, a.Attr()); err != nil {
			return 0, err
		}
		return r.moveAnywhere(a, r.to)
	case r.now == r.old:
		return r.from, nil
	case r.now < r.old:
		return r.from, r.cutTail()
	case r.growInPlace(a):
		return r.from, nil
	case r.flags&RemapMayMove == 0:
		return 0, fmt.Errorf("no room above %v: %w", a.End, ErrNoSpace)
	}
	return r.moveAnywhere(a, 0)
}

// cutTail unmaps what of the old range is beyond the new length.
func (r *remap) cutTail() error {
	as, c := r.as, r.c
	start := r.from + addr.GVA(r.now)
	end, ok := r.from.Add(r.old)
	if !ok || end > as.bounds.End {
		return fmt.Errorf("the range ends beyond %v: %w", as.bounds.End, ErrInvalid)
	}
	tail := addr.Range{Start: start, End: end}.Intersect(as.bounds)
	if tail.IsEmpty() || c.areas.IsFree(tail) {
		return nil
	}
	told := len(r.c.notices)
	r.unmap(tail)
	for _, n := range r.c.notices[told:] {
		n.late = true
	}
	if n := c.areas.Len(); n > as.opts.MaxAreas {
		return fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	r.mv.zap(tail, as.beyondBounds(c.areas.HoleAround(tail)))
	return nil
}

// growInPlace extends the area that ends with the old range, if it can.
func (r *remap) growInPlace(a *vmarea.Area) bool {
	more, ok := addr.RangeFrom(a.End, r.now-r.old)
	if uint64(a.End-r.from) != r.old || !ok || more.End > r.as.bounds.End || !r.c.areas.IsFree(more) {
		return false
	}
	at := a.Attr()
	at.Offset = a.OffsetOf(a.End)
	r.c.areas.Insert(more, at)
	r.count(a, more.Len(), true)
	return true
}

// moveFixed moves part of one area, whose length changes, to a fixed address.
func (r *remap) moveFixed() (addr.GVA, error) {
	r.unmapTarget(addr.Range{Start: r.to, End: r.to + addr.GVA(r.now)})
	if r.c.areas.Find(r.from) == nil {
		return 0, fmt.Errorf("%v was in the target: %w", r.from, ErrNotMapped)
	}
	if r.now < r.old {
		if err := r.cutTail(); err != nil {
			return 0, err
		}
		r.old = r.now
	}
	a := r.c.areas.Find(r.from) // another, if it was cut
	if r.to < r.as.bounds.Start {
		return 0, fmt.Errorf("below %v: %w", r.as.bounds.Start, errBelowLowest)
	}
	return r.moveArea(a, addr.Range{Start: r.from, End: r.from + addr.GVA(r.old)}, r.to, r.now), nil
}

// moveAnywhere moves part of one area to where there is room.
func (r *remap) moveAnywhere(a *vmarea.Area, hint addr.GVA) (addr.GVA, error) {
	if n := r.c.areas.Len(); n >= r.as.opts.MaxAreas-3 {
		return 0, fmt.Errorf("%d areas: %w", n, ErrNoSpace)
	}
	o := MapOptions{Addr: hint, Flags: MapPrivate}
	if a.Flags&vmarea.Shared != 0 {
		o.Flags = MapShared
	}
	o.Object, _ = a.Backing.(*Object)
	to, err := r.as.place(r.c, o, r.now)
	if err != nil {
		return 0, err
	}
	return r.moveArea(a, addr.Range{Start: r.from, End: r.from + addr.GVA(r.old)}, to.Start, r.now), nil
}

// moveAll moves everything in a range, which keeps its length, to a fixed
// address.
func (r *remap) moveAll() (addr.GVA, error) {
	var areas []*vmarea.Area
	source := addr.Range{Start: r.from, End: r.from + addr.GVA(r.old)}
	if source.IsEmpty() { // it wraps
		return 0, fmt.Errorf("%v: %w", r.from, ErrNotMapped)
	}
	r.c.areas.Ascend(r.from, func(a *vmarea.Area) bool {
		if a.Start < source.End {
			areas = append(areas, a)
		}
		return a.End < source.End
	})
	if len(areas) == 0 || areas[0].Start > r.from {
		return 0, fmt.Errorf("%v: %w", r.from, ErrNotMapped)
	}
	delta := r.to - r.from
	for i, a := range areas {
		if m, _ := monitorOf(a); m != nil && (i > 0 || a.End < source.End) {
			return 0, fmt.Errorf("%v has a monitor, and is moved with others: %w", a, ErrNotMapped)
		}
		if r.flags&RemapDontUnmap != 0 && isDevice(a) {
			return 0, fmt.Errorf("%v is a device's: %w", a, ErrInvalid)
		}
		part := a.Intersect(source)
		target := addr.Range{Start: part.Start + delta, End: part.End + delta}
		r.unmapTarget(target)
		if r.flags&RemapDontUnmap != 0 {
			if err := r.as.mayExpand(r.c, part.Len(), a.Attr()); err != nil {
				return 0, err
			}
		}
		if target.Start < r.as.bounds.Start {
			return 0, fmt.Errorf("below %v: %w", r.as.bounds.Start, errBelowLowest)
		}
		r.moveArea(a, part, target.Start, part.Len())
	}
	return r.to, nil
}

// unmapTarget makes room: what it unmaps stays so, whatever comes next.
func (r *remap) unmapTarget(target addr.Range) {
	r.done = true
	target = target.Intersect(r.as.bounds)
	if target.IsEmpty() || r.c.areas.IsFree(target) {
		return
	}
	r.unmap(target)
	r.mv.zap(target, target)
}

// moveArea moves part of an area to where there is nothing, with another length,
// and returns where. An empty part makes a second view.
func (r *remap) moveArea(a *vmarea.Area, part addr.Range, to addr.GVA, length uint64) addr.GVA {
	at := a.Attr()
	at.Offset = a.OffsetOf(part.Start)
	at.Flags &^= vmarea.Heap | vmarea.Stack // it is neither where it goes
	if at.Watch != nil {
		at.Watch = r.c.noteRemap(a, part.Start, to, part.Len())
	}
	switch {
	case part.IsEmpty():
	case r.flags&RemapDontUnmap != 0:
		if a.Flags&lockFlags != 0 {
			// Of all of it, as Linux does, but for what a target has replaced by now.
			r.c.areas.SetFlags(r.c.areas.Find(part.Start).Range, 0, lockFlags)
		}
		r.mv.move(part, to-part.Start)
	default:
		r.c.noteUnmap(part)
		r.c.areas.Remove(part)
		r.count(a, part.Len(), false)
		r.mv.move(part, to-part.Start)
		r.mv.source = addr.Range{Start: r.from, End: part.End}
	}
	r.c.areas.Insert(addr.Range{Start: to, End: to + addr.GVA(length)}, at)
	r.count(a, length, true)
	return to
}
