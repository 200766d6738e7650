package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// residentPages is how many pages are looked at in one read section.
const residentPages = 512

// Resident says of the pages of [start, start+length) whether an access would find
// them in memory, as mincore(2) does: those that are mapped, and those that their
// object has. It fills vec, a page each, and returns how many it has filled: all
// pages of the range, or as many as vec has room for, or those below a hole. It
// faults nothing in, and waits for nobody but a window (see Memory).
//
// Errors: ErrInvalid (start not aligned), ErrNoSpace (ENOMEM: beyond the bounds,
// with nothing filled, or a hole). Source: mincore(2), mm/mincore.c.
func (as *AddressSpace) Resident(start addr.GVA, length uint64, vec []bool) (int, error) {
	n := length / addr.PageSize
	if length%addr.PageSize != 0 {
		n++
	}
	r := addr.Range{Start: start, End: start + addr.GVA(length)}
	switch end, ok := start.Add(length); {
	case !start.IsAligned():
		return 0, opError("resident", r, fmt.Errorf("start is not aligned: %w", ErrInvalid))
	case !ok, end > as.bounds.End:
		return 0, opError("resident", r, fmt.Errorf("beyond %v: %w", as.bounds.End, ErrNoSpace))
	}
	n = min(n, uint64(len(vec)))
	a := as.borrow()
	defer a.giveBack()
	for done := uint64(0); done < n; {
		part := vec[done:min(done+residentPages, n)]
		k, shut := a.residentSection(start+addr.GVA(done*addr.PageSize), part)
		done += uint64(k)
		switch {
		case shut:
			as.mem.door.wait()
		case k < len(part):
			at := start + addr.GVA(done*addr.PageSize)
			return int(done), opError("resident", r, fmt.Errorf("%v is not mapped: %w", at, ErrNoSpace))
		}
	}
	return int(n), nil
}

// residentSection fills vec in one read section, up to a hole. The areas that are
// published when it begins keep their objects until it ends.
func (a Accessor) residentSection(gva addr.GVA, vec []bool) (n int, shut bool) {
	as := a.as
	a.h.Enter(as.id)
	defer a.h.Exit()
	if !as.mem.door.passes() {
		return 0, true
	}
	var area *vmarea.Area
	areas := as.tree.Snapshot()
	for i := range vec {
		if area == nil || gva >= area.End {
			if area = areas.Find(gva); area == nil {
				return i, false
			}
		}
		vec[i] = as.isResident(area, gva)
		gva += addr.PageSize
	}
	return len(vec), false
}

// isResident says it of one page.
//
// Preconditions: the caller is in a section in which area was published.
func (as *AddressSpace) isResident(area *vmarea.Area, gva addr.GVA) bool {
	if as.pt.Find(gva).Entry.Has(pagetable.Present) {
		return true
	}
	o, ok := area.Backing.(*Object)
	if !ok {
		return false
	}
	index := area.OffsetOf(gva) / addr.PageSize
	if index >= o.pages() {
		return false
	}
	_, there := o.page(index)
	return there
}
