package vmarea

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Every edit replaces the areas that overlap or touch a range by a list of
// pieces: gather, emit, splice. Areas that come out as they went in stay the
// same objects.
//
//	gathered   [2,6) rw  [6,9) r-           SetProt [4,7) r-
//	emitted    [2,4) rw  [4,7) r-  [7,9) r- the last two merge as they are emitted
//	spliced    [2,4) rw  [4,9) r-           two new areas; both old ones are detached

// Insert maps r with the given attributes, and replaces what overlaps it. The
// new area merges with neighbours that it continues: same permissions, flags
// and backing, and offsets that follow one another.
//
// Preconditions:
//   - r is not empty, its ends are page boundaries, and it lies in the bounds
func (c *Change) Insert(r addr.Range, at Attr) {
	c.mustEdit(r, "Insert")
	if r.IsEmpty() || !c.t.bounds.ContainsRange(r) {
		panic(fmt.Sprintf("vmarea: Insert(%v) in %v", r, c.t.bounds))
	}
	p := piece{r, c.t.share(at.traits(), nil), at.Offset}
	if p.Backing == nil {
		p.Offset = 0
	}
	if h, ok := c.t.holes.find(r.Start); ok && h.Start < r.Start && r.End < h.End {
		// Nothing overlaps or touches: there is no need to look at areas.
		c.occupy(r)
		c.put(p, nil)
		return
	}
	c.gather(r)
	c.occupyHoles(r)
	for _, a := range c.old {
		c.emitBelow(a, r.Start)
	}
	c.emit(p)
	for _, a := range c.old {
		c.emitAbove(a, r.End)
	}
	c.splice()
}

// Remove unmaps what is mapped of r, and trims or splits what overlaps it. An
// empty r removes nothing; parts of r that lie outside the bounds hold nothing.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) Remove(r addr.Range) {
	c.mustEdit(r, "Remove")
	if r.IsEmpty() {
		return
	}
	c.gather(r)
	for _, a := range c.old {
		if x := a.Intersect(r); !x.IsEmpty() {
			c.release(x)
		}
		c.emitBelow(a, r.Start)
		c.emitAbove(a, r.End)
	}
	c.splice()
}

// SetProt gives the mapped parts of r the permissions p: it splits areas where
// r starts and ends inside one, and merges what has become equal. Holes in r
// stay holes.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) SetProt(r addr.Range, p Prot) {
	c.alter(r, "SetProt", func(t Traits) Traits { t.Prot = p; return t })
}

// SetFlags gives the mapped parts of r the labels set, and takes the labels clear
// from them first, as SetProt does with permissions.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) SetFlags(r addr.Range, set, clear Flags) {
	c.alter(r, "SetFlags", func(t Traits) Traits { t.Flags = t.Flags&^clear | set; return t })
}

// SetWatch gives the mapped parts of r a watch, or none, as SetProt does with
// permissions.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) SetWatch(r addr.Range, w *Watch) {
	c.alter(r, "SetWatch", func(t Traits) Traits { t.Watch = w; return t })
}

// alter changes the traits of what is mapped in r. fn is given copies, so that
// nothing escapes.
func (c *Change) alter(r addr.Range, op string, fn func(Traits) Traits) {
	c.mustEdit(r, op)
	if r.IsEmpty() {
		return
	}
	c.gatherFrom(r)
	for _, a := range c.old {
		c.emitBelow(a, r.Start)
		if x := a.Intersect(r); !x.IsEmpty() {
			inside := a.part(x)
			inside.Traits = c.t.share(fn(*inside.Traits), inside.Traits)
			c.emit(inside)
		}
		c.emitAbove(a, r.End)
	}
	c.splice()
}

// Touching returns the areas of the edited tree that overlap r, or end or start where
// it starts or ends, in address order. They are the caller's to look at until the next
// edit or the next call of Touching. A SetProt, SetFlags or SetWatch of the same r that
// comes next does not search again.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) Touching(r addr.Range) []*Area {
	c.mustEdit(r, "Touching")
	c.gatherFrom(r)
	c.near = r
	return c.old
}

// forgetTouching drops the answer of Touching, if there is one.
func (c *Change) forgetTouching() {
	if !c.near.IsEmpty() {
		c.old, c.near = kept(c.old), addr.Range{}
	}
}

// gather fills c.old with the areas that overlap or touch r, in order.
func (c *Change) gather(r addr.Range) {
	h, ok := c.t.holes.find(r.Start)
	if !ok || h.Start == r.Start || r.Start > h.End {
		c.gatherFrom(r)
		return
	}
	// The page below r is free: nothing ends at r's start or reaches
	// into r, so that there is no need to look for what starts below.
	c.forgetTouching()
	v := c.edited().view()
	v.ascendFrom(r.Start, c.gatherUpTo(r.End))
}

// gatherFrom is gather where something is likely to end at r's start or to reach into
// r, or where it has been asked before.
func (c *Change) gatherFrom(r addr.Range) {
	if c.near == r && !r.IsEmpty() {
		c.near = addr.Range{}
		return
	}
	c.forgetTouching()
	v := c.edited().view()
	v.ascend(max(r.Start, 1)-1, c.gatherUpTo(r.End))
}

func (c *Change) gatherUpTo(end addr.GVA) func(*Area) bool {
	return func(a *Area) bool {
		if a.Start > end {
			return false
		}
		c.old = append(c.old, a)
		return a.End <= end
	}
}

// emitBelow emits the part of a below gva.
func (c *Change) emitBelow(a *Area, gva addr.GVA) {
	if a.Start < gva {
		c.emit(a.part(addr.Range{Start: a.Start, End: min(a.End, gva)}))
	}
}

// emitAbove emits the part of a from gva on.
func (c *Change) emitAbove(a *Area, gva addr.GVA) {
	if a.End > gva {
		c.emit(a.part(addr.Range{Start: max(a.Start, gva), End: a.End}))
	}
}

// emit adds p to what replaces the gathered areas, and merges it with the one
// before where it can.
func (c *Change) emit(p piece) {
	if n := len(c.new); n > 0 && c.new[n-1].continues(&p) {
		c.new[n-1].End = p.End
		return
	}
	c.new = append(c.new, p)
}

// splice replaces the gathered areas by the emitted pieces.
func (c *Change) splice() {
	old, pieces := c.old, c.new
	for len(old) > 0 || len(pieces) > 0 {
		switch {
		case len(pieces) == 0 || len(old) > 0 && old[0].Start < pieces[0].Start:
			c.drop(old[0])
			old = old[1:]
		case len(old) == 0 || pieces[0].Start < old[0].Start:
			c.put(pieces[0], nil)
			pieces = pieces[1:]
		default:
			if !pieces[0].is(old[0]) {
				c.put(pieces[0], old[0])
			}
			old, pieces = old[1:], pieces[1:]
		}
	}
	c.old, c.new = kept(c.old), kept(c.new)
}

// put makes p an area of the edited tree, in place of the one that starts there, if
// there is one.
func (c *Change) put(p piece, old *Area) {
	c.forgetTouching() // which Insert and Adopt may come without
	c.edit(areaEdit{p.Start, old, c.t.areaOf(&p)})
}

// drop takes a out of the edited tree.
func (c *Change) drop(a *Area) { c.edit(areaEdit{a.Start, a, nil}) }

func (c *Change) edit(e areaEdit) {
	c.t.edited.edit(e)
	if e.old != nil {
		c.t.detached.add(e.old)
	}
	c.edits = append(c.edits, e)
	c.t.relist(e.old, e.now)
}

func (c *Change) mustEdit(r addr.Range, op string) {
	c.mustBeIn(active, op)
	if !r.IsAligned() {
		panic(fmt.Sprintf("vmarea: %s(%v): not page boundaries", op, r))
	}
}

// areaEdit is an edit of the edited tree. Nil is no area.
type areaEdit struct {
	start    addr.GVA
	old, now *Area
}

// holeEdit is an edit of the hole index, for Abort to revert.
type holeEdit struct {
	r    addr.Range
	kind holeEditKind
}

type holeEditKind uint8

const (
	occupied holeEditKind = iota
	released
)

func (e holeEdit) revert(x *holeIndex) {
	if e.kind == occupied {
		x.release(e.r)
	} else {
		x.occupy(e.r)
	}
}

// occupyHoles takes out of the hole index what is free of r.
func (c *Change) occupyHoles(r addr.Range) {
	for {
		h, ok := c.t.holes.firstAbove(r.Start)
		if !ok || h.Start >= r.End {
			return
		}
		c.occupy(h.Intersect(r))
	}
}

func (c *Change) occupy(r addr.Range) {
	c.t.holes.occupy(r)
	c.undo = append(c.undo, holeEdit{r, occupied})
}

func (c *Change) release(r addr.Range) {
	c.t.holes.release(r)
	c.undo = append(c.undo, holeEdit{r, released})
}
