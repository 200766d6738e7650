package guestmem

import (
	"context"
	"fmt"
	"math"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/vmarea"
)

// MapFlags are the flags of Map, numerically MAP_*. Bits that are not named
// here are ignored, as Linux ignores those it does not know, but for
// MAP_SHARED_VALIDATE, which is MapShared of a file that refuses unknown ones, and
// MAP_NONBLOCK, which cancels MapPopulate.
type MapFlags uint32

// Flags of Map.
const (
	MapShared         MapFlags = 0x01
	MapPrivate        MapFlags = 0x02
	MapFixed          MapFlags = 0x10
	MapAnonymous      MapFlags = 0x20
	Map32Bit          MapFlags = 0x40  // within the first 2 GiB, if there is no fixed address
	MapGrowsDown      MapFlags = 0x100 // a fault below extends it: private anonymous memory only
	MapLocked         MapFlags = 0x2000
	MapNoReserve      MapFlags = 0x4000
	MapPopulate       MapFlags = 0x8000
	MapStack          MapFlags = 0x20000
	MapFixedNoReplace MapFlags = 0x100000

	mapNonBlock       MapFlags = 0x10000 // with MapPopulate: do not
	mapSharedValidate MapFlags = 0x03    // MapShared of a file, but unknown flags are refused
	// mapValidated are those that it knows: LEGACY_MAP_MASK of Linux's mman.h,
	// in which MapFixedNoReplace is not.
	mapValidated MapFlags = 0x7c07f9f3

	mapType = 0x0f // the bits that say the type, as Linux reserves them
)

// maxOffset is the end of what a file can hold: offsets are signed.
const maxOffset = math.MaxInt64

// Kind labels an area in String.
type Kind = vmarea.Flags

// Kinds of areas.
const (
	KindNone  Kind = 0
	KindHeap       = vmarea.Heap
	KindStack      = vmarea.Stack
	KindVDSO       = vmarea.VDSO
)

// MapOptions say what Map maps.
type MapOptions struct {
	// Addr is where: exactly with MapFixed or MapFixedNoReplace, else a hint
	// that is taken, rounded down, if the range there is free.
	Addr addr.GVA
	// Length in bytes, rounded up to whole pages.
	Length uint64
	// Prot is what the area allows. Other bits are ignored, as Linux ignores
	// them here (and not in Protect).
	Prot  Prot
	Flags MapFlags
	// Object is what to map; nil for anonymous memory.
	Object *Object
	// Offset in the object, a multiple of the page size; without an object it
	// means nothing.
	Offset uint64
	// Access limits a shared area of an object, as a descriptor that is open for
	// reading only does.
	Access ObjectAccess
	// Kind labels the area.
	Kind Kind
}

// hugeAlign is how anonymous private areas of whole 2 MiB are aligned, unless
// there is a hint, which came true or not.
const hugeAlign = 2 << 20

// Map maps anonymous memory or an object, as mmap(2) does, and returns where.
// With MapFixed it replaces what was there; then it waits for the lookups that
// are in progress in this address space, and otherwise for nobody. ctx is for
// MapPopulate, which faults pages in as far as that goes.
//
// Errors, in the order in which they are looked for, with nothing changed:
// ErrInvalid (offset not aligned, length 0, or an object of another Memory),
// ErrNoSpace (length, or a fixed range, beyond the bounds), ErrInvalid (a fixed
// address not aligned), ErrExists, ErrPermission (MapLocked where nothing may be
// locked), ErrAgain (more than may be locked), ErrOverflow (offset), ErrInvalid (neither
// shared nor private), EOPNOTSUPP (flags that MAP_SHARED_VALIDATE does not know), ErrDenied
// (a shared area that may be written, of an object that may not), ErrInvalid
// (MapGrowsDown of anything but private anonymous memory), ErrNoSpace (no
// hole fits, too many areas, or more than Limits allow), ErrInvalid (a private area of a
// device's memory, or one beyond its end), ErrNoMemory, ErrClosed. Source: mmap(2).
func (as *AddressSpace) Map(ctx context.Context, o MapOptions) (addr.GVA, error) {
	o.Prot &= protAll
	length, err := as.checkMap(o)
	asked := addr.Range{Start: o.Addr, End: o.Addr + addr.GVA(length)}
	if err != nil {
		return 0, opError("map", asked, err)
	}
	if o.Object != nil {
		if err := o.Object.hold(); err != nil {
			return 0, opError("map", asked, fmt.Errorf("object %q: %w", o.Object.name, err))
		}
		defer o.Object.unref()
	}
	c, err := as.startChange()
	if err != nil {
		return 0, opError("map", asked, err)
	}
	r, s, err := as.mapLocked(c, o, length)
	if err != nil {
		c.abort()
		return 0, opError("map", asked, err)
	}
	c.publish()
	lock := as.lockFuture
	as.finishMap(c, s)
	if err := c.tell(ctx); err != nil {
		return 0, opError("map", asked, err)
	}
	switch {
	case o.Flags&MapLocked != 0 || lock != 0:
		_ = as.populateLocked(ctx, r, skipErrors)
	case o.Flags&(MapPopulate|mapNonBlock) == MapPopulate && o.Prot != ProtNone && (o.Object == nil || o.Object.device == nil):
		access := Read
		if o.Prot&ProtWrite != 0 && !o.isShared() {
			access = Write
		}
		// As under Linux, what cannot be had ahead is left to the fault.
		_ = as.Populate(ctx, r, access)
	}
	return r.Start, nil
}

// checkMap checks what can be checked without the change lock, and returns the
// length in whole pages.
func (as *AddressSpace) checkMap(o MapOptions) (uint64, error) {
	fixed := o.Flags&(MapFixed|MapFixedNoReplace) != 0
	length, ok := addr.RoundUpLength(o.Length)
	switch {
	case o.Offset%addr.PageSize != 0:
		return length, fmt.Errorf("offset %#x is not aligned: %w", o.Offset, ErrInvalid)
	case o.Length == 0:
		return 0, fmt.Errorf("length is 0: %w", ErrInvalid)
	case o.Object != nil && o.Object.mem != as.mem:
		return length, fmt.Errorf("object %q is of another memory: %w", o.Object.name, ErrInvalid)
	}
	if !ok || length > uint64(as.bounds.End) {
		return length, fmt.Errorf("length %#x: %w", o.Length, ErrNoSpace)
	}
	if fixed {
		r, ok := addr.RangeFrom(o.Addr, length)
		if !ok || r.End > as.bounds.End {
			return length, ErrNoSpace
		}
		if !o.Addr.IsAligned() {
			return length, fmt.Errorf("address is not aligned: %w", ErrInvalid)
		}
		if r.Start < as.bounds.Start {
			return length, fmt.Errorf("below %v: %w", as.bounds.Start, errBelowLowest)
		}
	}
	return length, nil
}

// checkMapType checks what Linux checks after it has looked for a place.
func checkMapType(o MapOptions, length uint64) error {
	if o.Object != nil && (length > maxOffset || o.Offset > maxOffset-length) {
		return fmt.Errorf("offset %#x: %w", o.Offset, ErrOverflow)
	}
	switch o.Flags & mapType {
	case mapSharedValidate:
		switch {
		case o.Object == nil:
			return fmt.Errorf("anonymous memory is not validated: %w", ErrInvalid)
		case o.Flags&^mapValidated != 0:
			return fmt.Errorf("unknown flags %#x: %w", uint32(o.Flags&^mapValidated), errUnknownFlags)
		}
	case MapShared, MapPrivate:
	default:
		return fmt.Errorf("neither shared nor private: %w", ErrInvalid)
	}
	if o.sharedReadOnly() && o.Prot&ProtWrite != 0 {
		return fmt.Errorf("%s may only be read: %w", o.Object.name, ErrDenied)
	}
	if o.Flags&MapGrowsDown != 0 && (o.Object != nil || o.Flags&mapType != MapPrivate) {
		return fmt.Errorf("only private anonymous memory grows down: %w", ErrInvalid)
	}
	return nil
}

// isShared reports whether the area is to be shared.
func (o *MapOptions) isShared() bool {
	return o.Flags&mapType == MapShared || o.Flags&mapType == mapSharedValidate
}

// sharedReadOnly reports whether it is to be one that can never be written.
func (o *MapOptions) sharedReadOnly() bool {
	return o.isShared() && o.Object != nil && (o.Object.readOnly || o.Access == ObjectReadOnly)
}

// mapLocked edits the change. On an error the caller aborts it.
func (as *AddressSpace) mapLocked(c *changeUnderWay, o MapOptions, length uint64) (addr.Range, *swept, error) {
	r, err := as.place(c, o, length)
	if err != nil {
		return r, nil, err
	}
	if o.Flags&MapLocked != 0 && as.limits.Load().MaxLocked < 0 {
		return r, nil, errNoLocks
	}
	lock := as.lockFuture
	if o.Flags&MapLocked != 0 {
		lock |= vmarea.Locked
	}
	if lock != 0 {
		if err := as.mayLock(c, length); err != nil {
			return r, nil, err
		}
	}
	if err := checkMapType(o, length); err != nil {
		return r, nil, err
	}
	if c.areas.Len() >= as.opts.MaxAreas {
		return r, nil, fmt.Errorf("%d areas: %w", c.areas.Len(), ErrNoSpace)
	}
	free := c.areas.IsFree(r)
	gone := as.objectPagesIn(c, r)
	attr := vmarea.Attr{Prot: o.Prot, Flags: o.Kind | lock}
	if o.Flags&MapGrowsDown != 0 {
		attr.Flags |= vmarea.GrowsDown
		as.stacks.Store(true)
	}
	obj, offset := o.Object, o.Offset
	if o.sharedReadOnly() {
		attr.Flags |= vmarea.ReadOnly
	}
	if o.isShared() {
		attr.Flags |= vmarea.Shared
		if obj == nil {
			if obj, err = as.mem.newObject(ObjectOptions{Size: int64(length)}); err != nil {
				return r, nil, err
			}
			offset, obj.anonymous = 0, true
			defer obj.unref()
		}
	}
	if err := as.mayExpand(c, length-c.mapped(r), attr); err != nil {
		return r, nil, err
	}
	if err := o.checkDevice(length); err != nil {
		return r, nil, err
	}
	if obj != nil {
		attr.Backing, attr.Offset = obj, offset
		if obj.device != nil {
			as.devices.Store(true)
			attr.Flags &^= lockFlags
		}
		if obj.tracks() {
			as.tracks.Store(true)
		}
		if !o.isShared() && obj.mayChange() {
			as.overlays.Store(true)
		}
	}
	if !free {
		c.noteUnmap(r)
	}
	c.areas.Insert(r, attr)
	if c.areas.Len() > as.opts.MaxAreas {
		return r, nil, fmt.Errorf("%d areas: %w", c.areas.Len(), ErrNoSpace)
	}
	var s *swept
	if !free && !variant.MapOverKeepsPages {
		if s, err = c.zap(r, r); err != nil {
			return r, nil, err
		}
	}
	as.countPages(gone, false)
	if obj != nil {
		as.countPages(map[*Object]uint64{obj: length / addr.PageSize}, true)
	}
	return r, s, nil
}

// finishMap drops what a map or unmap has taken away, and ends the change.
func (as *AddressSpace) finishMap(c *changeUnderWay, s *swept) {
	if s != nil {
		c.drop(s)
	}
	unused := as.takeUnused()
	c.end()
	c.wakeAll()
	for _, o := range unused {
		o.unref()
	}
}

// place finds where a new area goes.
func (as *AddressSpace) place(c *changeUnderWay, o MapOptions, length uint64) (addr.Range, error) {
	if o.Flags&(MapFixed|MapFixedNoReplace) != 0 {
		r := addr.Range{Start: o.Addr, End: o.Addr + addr.GVA(length)}
		if o.Flags&MapFixedNoReplace != 0 && !c.areas.IsFree(r) {
			return r, ErrExists
		}
		return r, nil
	}
	where := as.whereFor(o)
	hint := o.Addr.RoundDown()
	if hint != 0 {
		r, ok := addr.RangeFrom(max(hint, as.bounds.Start), length)
		if ok && r.End <= where.hintEnd && as.bounds.ContainsRange(r) && c.areas.IsFree(r) && as.clearOfStack(c, r) {
			return r, nil
		}
	}
	if hint == 0 && o.Object == nil && o.Flags&mapType == MapPrivate && length%hugeAlign == 0 {
		if start, ok := as.placeHuge(c, length, where); ok {
			return addr.Range{Start: start, End: start + addr.GVA(length)}, nil
		}
	}
	start, ok := as.findGap(c, length, where)
	if !ok {
		return addr.Range{}, fmt.Errorf("no hole of %#x bytes: %w", length, ErrNoSpace)
	}
	return addr.Range{Start: start, End: start + addr.GVA(length)}, nil
}

// placeHuge places whole 2 MiB at a multiple of 2 MiB, as Linux does for them:
// it looks for a hole with that much room to spare and aligns upwards in it,
// where it would have placed the larger length. Source: mm/huge_memory.c,
// thp_get_unmapped_area.
func (as *AddressSpace) placeHuge(c *changeUnderWay, length uint64, where searched) (addr.GVA, bool) {
	padded := length + hugeAlign
	if padded < length {
		return 0, false
	}
	at, ok := as.findGap(c, padded, where)
	if !ok {
		return 0, false
	}
	if up := -uint64(at) % hugeAlign; up != 0 {
		return at + addr.GVA(up), true
	}
	if as.opts.Placement == TopDown {
		return at + hugeAlign, true
	}
	return at, true
}

// objectPagesIn returns how many pages of each object are mapped in r.
func (as *AddressSpace) objectPagesIn(c *changeUnderWay, r addr.Range) map[*Object]uint64 {
	if len(as.objects) == 0 {
		return nil
	}
	var n map[*Object]uint64
	c.areas.Ascend(r.Start, func(a *vmarea.Area) bool {
		part := a.Intersect(r)
		if o, ok := a.Backing.(*Object); ok && !part.IsEmpty() {
			if n == nil {
				n = make(map[*Object]uint64)
			}
			n[o] += part.Len() / addr.PageSize
		}
		return a.End < r.End
	})
	return n
}

// countPages notes that pages of objects were mapped, or are no more. An object
// that is new to the space gains a reference.
//
// Preconditions: the change can fail no more.
func (as *AddressSpace) countPages(pages map[*Object]uint64, mapped bool) {
	for o, n := range pages {
		if !mapped {
			as.objects[o] -= n
			continue
		}
		if as.objects == nil {
			as.objects = make(map[*Object]uint64)
		}
		if _, known := as.objects[o]; !known {
			o.ref()
		}
		as.objects[o] += n
	}
}

// takeUnused removes the objects of which no page is mapped any more; the caller
// drops the space's reference to each.
func (as *AddressSpace) takeUnused() (unused []*Object) {
	for o, n := range as.objects {
		if n == 0 {
			unused = append(unused, o)
			delete(as.objects, o)
		}
	}
	return unused
}
