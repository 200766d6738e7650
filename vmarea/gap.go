package vmarea

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// Direction is where FindGap looks first.
type Direction int

// Where FindGap looks first.
const (
	TopDown  Direction = iota // the top of the highest hole that fits
	BottomUp                  // the bottom of the lowest hole that fits
)

// FindGap returns the start of length free bytes in [lowest, highest), and
// false if there are none. length is in bytes, a multiple of the page size;
// align is a power of two, of at least a page, that divides the result.
// It sees the edited tree.
//
// It does not look at the areas: with page alignment it takes O(log n). With a
// larger one it also looks at holes that are long enough but have no aligned
// start that fits; a hole of length+align-PageSize always has one.
func (c *Change) FindGap(length, align uint64, lowest, highest addr.GVA, dir Direction) (addr.GVA, bool) {
	c.mustBeActive()
	if align < addr.PageSize || align&(align-1) != 0 {
		panic(fmt.Sprintf("vmarea: bad alignment %#x", align))
	}
	if length == 0 || lowest >= highest {
		return 0, false
	}
	w := want{length: length, align: align, within: addr.Range{Start: lowest, End: highest}}
	root := c.t.holes.root
	if root.longest() < length {
		return 0, false
	}
	if dir == BottomUp {
		return w.lowestBelow(root)
	}
	return w.highestBelow(root)
}

// HoleAround returns the hole of the edited tree that contains r, which must
// be free and not empty.
func (c *Change) HoleAround(r addr.Range) addr.Range {
	c.mustBeActive()
	h, ok := c.t.holes.find(r.Start)
	if !ok || r.IsEmpty() || !h.ContainsRange(r) {
		panic(fmt.Sprintf("vmarea: HoleAround(%v): not free", r))
	}
	return h
}

// IsFree reports whether the edited tree has no area in r, and r lies in the
// bounds of the tree.
func (c *Change) IsFree(r addr.Range) bool {
	c.mustBeActive()
	if r.IsEmpty() {
		return true
	}
	h, ok := c.t.holes.find(r.Start)
	return ok && h.ContainsRange(r)
}

// CoversAll reports whether r lies in the bounds of the tree and the edited
// tree has no hole in it.
func (c *Change) CoversAll(r addr.Range) bool {
	c.mustBeActive()
	if r.IsEmpty() {
		return true
	}
	if !c.t.bounds.ContainsRange(r) {
		return false
	}
	h, ok := c.t.holes.firstAbove(r.Start)
	return !ok || h.Start >= r.End
}

// want is what FindGap looks for.
type want struct {
	length uint64
	align  uint64
	within addr.Range
}

// highestBelow searches the holes below n from the top.
func (w *want) highestBelow(n *holeNode) (addr.GVA, bool) {
	for i := n.lastAtOrBelow(w.within.End - 1); i >= 0; i-- {
		if n.gap[i] >= w.length {
			if at, ok := w.try(n, i, TopDown); ok {
				return at, true
			}
		}
		if n.start[i] <= w.within.Start {
			break // what follows ends below
		}
	}
	return 0, false
}

// lowestBelow searches the holes below n from the bottom.
func (w *want) lowestBelow(n *holeNode) (addr.GVA, bool) {
	first := max(n.lastAtOrBelow(w.within.Start), 0) // what is before ends below
	for i := first; i < n.n && n.start[i] < w.within.End; i++ {
		if n.gap[i] >= w.length {
			if at, ok := w.try(n, i, BottomUp); ok {
				return at, true
			}
		}
	}
	return 0, false
}

func (w *want) try(n *holeNode, i int, dir Direction) (addr.GVA, bool) {
	switch {
	case n.kids == nil:
		return w.fit(n.hole(i), dir)
	case dir == BottomUp:
		return w.lowestBelow(n.kids[i])
	}
	return w.highestBelow(n.kids[i])
}

// fit returns where in the hole h the range would go.
func (w *want) fit(h addr.Range, dir Direction) (addr.GVA, bool) {
	h = h.Intersect(w.within)
	if h.Len() < w.length {
		return 0, false
	}
	mask := addr.GVA(w.align - 1)
	if dir == BottomUp {
		at := (h.Start + mask) &^ mask
		return at, at >= h.Start && at <= h.End && uint64(h.End-at) >= w.length
	}
	at := (h.End - addr.GVA(w.length)) &^ mask
	if variant.GapOffByOnePage && at > h.Start {
		at -= addr.PageSize
	}
	return at, at >= h.Start
}
