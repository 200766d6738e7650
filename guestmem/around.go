package guestmem

import (
	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Fault-around: where a fault costs an exit of a vCPU (37 µs on the test
// machines, against 0.1 µs for the fault itself), neighbours are installed with
// the page that faulted, in the same section.
//
//   - Pages of an object that are there already: the aligned window around.
//     They cost no frame.
//   - Empty pages of private memory: only those ahead, only when the page
//     behind is there too (the guest is going through memory in order), and only
//     as many as the cache has frames for.
//
// Nothing is copied ahead, and nothing that is present is touched.

const (
	defaultAround = 16 // pages; what a view gets, 64 KiB
	maxAround     = 64
)

// faultAround installs neighbours of a page that was just installed.
//
// Preconditions: as faultIn; the fault was resolved.
func (as *AddressSpace) faultAround(area *vmarea.Area, c *cow.Cache, at *attempt) {
	window := addr.GVA(as.mem.around) * addr.PageSize
	r := addr.Range{Start: at.gva &^ (window - 1)}
	r.End = r.Start + window // never over the end of a leaf table: both are powers of two
	if area.Backing == nil {
		if at.gva < area.Start+addr.PageSize || at.gva == r.Start || as.pt.Find(at.gva-addr.PageSize).Entry == 0 {
			return
		}
		r.Start = at.gva + addr.PageSize
	}
	r = r.Intersect(area.Range)
	for gva := r.Start; gva < r.End; gva += addr.PageSize {
		l := as.pt.Find(gva)
		if l.Entry != 0 || !l.Owned {
			continue
		}
		if !as.installNeighbour(area, l, c, gva) {
			return
		}
	}
}

// installNeighbour installs one neighbour as a read would, and reports whether
// to go on.
func (as *AddressSpace) installNeighbour(area *vmarea.Area, l pagetable.Leaf, c *cow.Cache, gva addr.GVA) bool {
	ahead := attempt{gva: gva, access: Read}
	if area.Backing == nil {
		return as.faultZero(area, l, c, &ahead) != lackFrames
	}
	o := area.Backing.(*Object)
	index := area.OffsetOf(gva) / addr.PageSize
	if index >= o.pages() {
		return false
	}
	if _, there := o.page(index); there {
		as.faultObject(area, l, c, &ahead)
	}
	return true
}
