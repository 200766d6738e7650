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
	p := piece{r, at}
	if p.Backing == nil {
		p.Offset = 0
	}
	if h, ok := c.t.holes.find(r.Start); ok && h.Start < r.Start && r.End < h.End {
		// Nothing overlaps or touches: there is no need to look at areas.
		c.occupy(r)
		c.put(p)
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
	c.alter(r, "SetProt", func(at Attr) Attr { at.Prot = p; return at })
}

// SetFlags gives the mapped parts of r the labels set, and takes the labels clear
// from them first, as SetProt does with permissions.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) SetFlags(r addr.Range, set, clear Flags) {
	c.alter(r, "SetFlags", func(at Attr) Attr { at.Flags = at.Flags&^clear | set; return at })
}

// SetWatch gives the mapped parts of r a watch, or none, as SetProt does with
// permissions.
//
// Preconditions:
//   - the ends of r are page boundaries
func (c *Change) SetWatch(r addr.Range, w *Watch) {
	c.alter(r, "SetWatch", func(at Attr) Attr { at.Watch = w; return at })
}

// alter changes the attributes of what is mapped in r. fn is given copies, so
// that nothing escapes.
func (c *Change) alter(r addr.Range, op string, fn func(Attr) Attr) {
	c.mustEdit(r, op)
	if r.IsEmpty() {
		return
	}
	c.gather(r)
	for _, a := range c.old {
		c.emitBelow(a, r.Start)
		if x := a.Intersect(r); !x.IsEmpty() {
			inside := a.part(x)
			inside.Attr = fn(inside.Attr)
			c.emit(inside)
		}
		c.emitAbove(a, r.End)
	}
	c.splice()
}

// gather fills c.old with the areas that overlap or touch r, in order.
func (c *Change) gather(r addr.Range) {
	work := view{base: c.edited()}
	add := func(a *Area) bool {
		if a.Start > r.End {
			return false
		}
		c.old = append(c.old, a)
		return true
	}
	if h, ok := c.t.holes.find(r.Start); ok && h.Start < r.Start && r.Start <= h.End {
		// The page below r is free: nothing ends at r's start or reaches
		// into r, so that there is no need to look for what starts below.
		work.ascendFrom(r.Start, add)
		return
	}
	work.ascend(max(r.Start, 1)-1, add)
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
			c.put(pieces[0])
			pieces = pieces[1:]
		default:
			if pieces[0] != old[0].part(old[0].Range) {
				c.put(pieces[0])
			}
			old, pieces = old[1:], pieces[1:]
		}
	}
	c.old, c.new = kept(c.old), kept(c.new)
}

// put makes p an area of the edited tree, in place of one that starts there.
func (c *Change) put(p piece) {
	a := c.t.newArea(p)
	old, _ := c.t.work.ReplaceOrInsert(areaKey{p.Start, a})
	c.edits = append(c.edits, areaEdit{p.Start, old.area, a})
	c.t.relist(old.area, a)
}

// drop takes a out of the edited tree.
func (c *Change) drop(a *Area) {
	c.t.work.Delete(areaKey{start: a.Start})
	c.edits = append(c.edits, areaEdit{a.Start, a, nil})
	c.t.relist(a, nil)
}

func (c *Change) mustEdit(r addr.Range, op string) {
	c.mustBeIn(active, op)
	if !r.IsAligned() {
		panic(fmt.Sprintf("vmarea: %s(%v): not page boundaries", op, r))
	}
}

// areaEdit is an edit of the edited tree: for Publish to make in the view, or
// for Abort to revert. Nil is no area.
type areaEdit struct {
	start    addr.GVA
	old, now *Area
}

func (e areaEdit) revert(t *Tree) {
	if e.old == nil {
		t.work.Delete(areaKey{start: e.start})
	} else {
		t.work.ReplaceOrInsert(areaKey{e.start, e.old})
	}
	t.relist(e.now, e.old)
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
