package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// An object over a device's memory shows guest-physical addresses as they are: part of
// a region that is not the frame pool's, such as a framebuffer, the memory of a card,
// or what virtio shares. It has no pages of its own:
//
//	guest's leaf (special) ─► guest-physical address in another region
//
// A special leaf is not counted: who copies, moves, shares or drops tables passes it
// on or forgets it, and no frame, pin or copy on write comes of it. All else is as for
// other areas: it is installed by a fault, goes with the change that takes it away,
// and views are told.
//
// vCPUs reach the memory by the region's slot. Go code never follows a special leaf,
// which is guest memory: it goes by the area to the region, within the section that
// found the area, so that a change waits for the copy (R1).

// NewDeviceObject returns an object over the guest-physical range [gpa, gpa+size), which
// lies in one region. Areas of it are shared; where the region is read-only, so are
// they. ReadAt and WriteAt are those of the memory, from gpa on.
//
// As in Linux for what remap_pfn_range maps: it is never locked, pinned, populated or
// discarded, does not grow, and counts as absent for Resident. A private area of it is
// refused, as many drivers do. The region stays until the last area and the object
// are gone. Go code does not reach regions of private mappings that a fault server
// watches this way (ErrNotSupported).
//
// Errors: ErrInvalid (not whole pages, empty, or the frame pool's region); ErrNoRegion;
// ErrNotSupported for a memory without a frame pool; ErrClosed.
func (m *Memory) NewDeviceObject(gpa addr.GPA, size uint64, name string) (*Object, error) {
	const op = "new device object"
	if m.pool == nil {
		return nil, opError(op, addr.Range{}, errNoPool)
	}
	if size == 0 || size%addr.PageSize != 0 || uint64(gpa)%addr.PageSize != 0 || uint64(gpa)+size < size {
		return nil, regionError(op, gpa, size, fmt.Errorf("not whole pages: %w", ErrInvalid))
	}
	m.layout.Lock() // no region is removed meanwhile
	defer m.layout.Unlock()
	if m.isClosed() {
		return nil, regionError(op, gpa, size, ErrClosed)
	}
	r := m.table().find(gpa)
	switch {
	case r == nil || uint64(r.End()-gpa) < size:
		return nil, regionError(op, gpa, size, ErrNoRegion)
	case r.pooled:
		return nil, regionError(op, gpa, size, fmt.Errorf("frames of %v are handed out: %w", r, ErrInvalid))
	}
	o, err := m.newObject(ObjectOptions{Size: int64(size), Name: name, Released: func() { r.devices.Add(-1) }})
	if err != nil {
		return nil, regionError(op, gpa, size, err)
	}
	r.devices.Add(1)
	o.device, o.deviceAt, o.readOnly = r, gpa, r.readOnly
	return o, nil
}

// isDevice reports whether an area is of a device's memory.
func isDevice(a *vmarea.Area) bool {
	o, ok := a.Backing.(*Object)
	return ok && o.device != nil
}

// isDevice reports whether gva is in an area of a device's memory.
func (as *AddressSpace) isDevice(gva addr.GVA) bool {
	if !as.devices.Load() {
		return false
	}
	a := as.tree.Snapshot().Find(gva)
	return a != nil && isDevice(a)
}

// checkDevice is what a driver would say of a mapping of its device.
func (o *MapOptions) checkDevice(length uint64) error {
	switch d := o.Object; {
	case d == nil || d.device == nil:
	case !o.isShared():
		return fmt.Errorf("%s is a device, and is not copied: %w", d.name, ErrInvalid)
	case o.Offset > d.Size() || length > d.Size()-o.Offset:
		return fmt.Errorf("%#x bytes at %#x of %s, which has %#x: %w", length, o.Offset, d.name, d.Size(), ErrInvalid)
	}
	return nil
}

// faultDevice has a leaf lead to a device's page, with all that the area allows.
//
// Preconditions: as faultIn; the area allows the access; the way is the space's own.
func (as *AddressSpace) faultDevice(area *vmarea.Area, l pagetable.Leaf, at *attempt) outcome {
	o := area.Backing.(*Object)
	off := area.OffsetOf(at.gva)
	if off >= o.Size() {
		return at.fail(ErrBus)
	}
	if !l.PutSpecial(pagetable.SpecialEntry(addr.PFN((uint64(o.deviceAt)+off)/addr.PageSize), permOf(area.Prot))) {
		return again
	}
	return resolved
}

// deviceAt returns what gva shows of a device, in the caller's section; false where
// there is no such area, or it does not allow the access, or a change has it. The area is
// being read if it is not nil, and the caller ends that.
func (as *AddressSpace) deviceAt(gva addr.GVA, access Access) (area *vmarea.Area, gpa addr.GPA) {
	area, status := as.tree.StartRead(gva)
	if status != vmarea.Found {
		return nil, 0
	}
	if o, ok := area.Backing.(*Object); ok && o.device != nil && allows(area, access) {
		if off := area.OffsetOf(gva); off < o.Size() {
			return area, o.deviceAt + addr.GPA(off)
		}
	}
	as.tree.EndRead(area)
	return nil, 0
}

// copyDevice copies what one section may of a device's memory. It returns 0 and no
// error where a fault is to say what is there.
func (a Accessor) copyDevice(p []byte, gva addr.GVA, access Access) (n int, err error) {
	m := a.as.mem
	for {
		var why stop
		var r *Region
		a.h.Enter(a.as.id)
		area, gpa := a.as.deviceAt(gva, access)
		if area == nil {
			a.h.Exit()
			return 0, nil
		}
		part := p[:min(uint64(len(p)), uint64(area.End-gva))]
		if access == Write {
			n, why, r = m.writeSection(part, gpa)
		} else {
			n, why, r = m.readSection(part, gpa)
		}
		a.as.tree.EndRead(area)
		a.h.Exit()
		if n > 0 {
			return n, nil
		}
		if err := m.resolveWord(gpa, why, r, access); err != nil {
			return 0, err
		}
	}
}

// wordOfDevice runs fn on a word of a device's memory. done is false where a fault is to
// say what is there.
func (a Accessor) wordOfDevice(gva addr.GVA, access Access, fn func(wordRef)) (done bool, err error) {
	m := a.as.mem
	for {
		a.h.Enter(a.as.id)
		area, gpa := a.as.deviceAt(gva, access)
		if area == nil {
			a.h.Exit()
			return false, nil
		}
		w, why, r := m.word(gpa, access)
		if why == stopNone {
			ok := true
			if r.isGuarded() {
				ok = guard(func() { fn(w) })
			} else {
				fn(w)
			}
			if !ok {
				why = stopLost
			}
		}
		a.as.tree.EndRead(area)
		a.h.Exit()
		if why == stopNone {
			return true, nil
		}
		if err := m.resolveWord(gpa, why, r, access); err != nil {
			return true, err
		}
	}
}

// device is the memory's side of ReadAt and WriteAt of an object over a device: the
// part of p that lies in it.
func (o *Object) onDevice(p []byte, off int64) ([]byte, addr.GPA) {
	size := o.Size()
	if uint64(off) >= size {
		return nil, 0
	}
	return p[:min(uint64(len(p)), size-uint64(off))], o.deviceAt + addr.GPA(off)
}

// setLocks is setFlags for locks, which areas of devices do not take.
//
// Errors: ErrNoSpace, with the areas below changed.
func (as *AddressSpace) setLocks(c *changeUnderWay, r addr.Range, set vmarea.Flags) error {
	if !as.devices.Load() {
		return as.setFlags(c, r, set, lockFlags)
	}
	for at := r.Start; at < r.End; {
		var a *vmarea.Area
		c.areas.Ascend(at, func(b *vmarea.Area) bool { a = b; return false })
		if a == nil || a.Start >= r.End {
			return nil
		}
		part := a.Intersect(addr.Range{Start: at, End: r.End})
		if at = part.End; !isDevice(a) {
			if err := as.setFlags(c, part, set, lockFlags); err != nil {
				return err
			}
		}
	}
	return nil
}
