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
//     as many as the cache has frames for. Where a whole window behind is there,
//     the window ahead is four times as large.
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
	if area.Backing == nil {
		if !as.isBehind(area, at.gva, addr.PageSize) {
			return
		}
		if as.isBehind(area, at.gva, window) {
			window = min(4*window, maxAround*addr.PageSize)
		}
	}
	r := addr.Range{Start: at.gva &^ (window - 1)}
	r.End = r.Start + window // never over the end of a leaf table: both are powers of two
	if area.Backing == nil {
		r.Start = at.gva + addr.PageSize
	}
	r = r.Intersect(area.Range)
	for gva := r.Start; gva < r.End; gva += addr.PageSize {
		l := as.pt.Find(gva)
		if l.Entry != 0 || l.Guarded || !l.Owned {
			continue
		}
		if !as.installNeighbour(area, l, c, gva) {
			return
		}
	}
}

// isBehind reports whether the page that lies back bytes behind gva in the area
// is there.
func (as *AddressSpace) isBehind(area *vmarea.Area, gva, back addr.GVA) bool {
	return gva-area.Start >= back && as.pt.Find(gva-back).Entry != 0
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
