package vmarea

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// checkedAreas is how many areas a tree may have for Publish to check it all
// under the invariants tag: O(n) at every change.
const checkedAreas = 256

// CheckInvariants checks the published tree and its hole index, and returns
// the first thing that is wrong. It takes O(n). The caller holds the change
// lock, and no change has unpublished edits.
func (t *Tree) CheckInvariants() error { return checkAreas(t, t.published.Load()) }

// CheckInvariants checks the edited tree as Tree.CheckInvariants does.
func (c *Change) CheckInvariants() error {
	v := c.edited().view()
	v.length = c.edited().len()
	return checkAreas(c.t, &v)
}

// checkAreas checks the areas of v, which is what t's edited tree should hold:
// that
//   - the areas are disjoint, in order, in the bounds, of whole pages, not
//     empty, and have an owner
//   - no two neighbours could be one area
//   - an anonymous area has offset 0
//   - those with a label of Listed, or a watch, are listed, and no others
//   - the totals are the sum of all
//   - the holes are what is between the areas, and nothing else
//   - each is found by its addresses, is what the edited tree has there, and
//     none is found in a hole
func checkAreas(t *Tree, v *view) (err error) {
	fail := func(format string, args ...any) bool {
		err = fmt.Errorf(format, args...)
		return false
	}
	holes, err := t.holes.check()
	if err != nil {
		return err
	}
	for _, h := range holes {
		if a := v.find(h.Start); a != nil {
			return fmt.Errorf("area %v is found in the hole %v", a, h)
		}
	}
	edited := t.edited.view()
	n, listed := 0, 0
	var totals Totals
	prev := piece{Range: addr.Range{Start: t.bounds.Start, End: t.bounds.Start}}
	v.ascend(0, func(a *Area) bool {
		n++
		totals.add(a, 1)
		filed := edited.find(a.Start)
		switch {
		case filed != a:
			return fail("area %v: the edited tree has %v", a, filed)
		case v.find(a.Start) != a || v.find(a.End-1) != a:
			return fail("area %v is not found", a)
		case a.IsEmpty() || !a.IsAligned() || !t.bounds.ContainsRange(a.Range):
			return fail("area %v in %v", a, t.bounds)
		case a.Start < prev.End:
			return fail("area %v overlaps %v", a, prev.Range)
		case a.owner == 0 || a.owner == t.id && a.lockSeq.Load() > t.sequence():
			return fail("area %v: owner %d, lock sequence %d of %d", a, a.owner, a.lockSeq.Load(), t.sequence())
		case a.Backing == nil && a.Offset != 0:
			return fail("anonymous area %v has offset %#x", a, a.Offset)
		}
		if _, is := t.listed[a.Start]; is != a.isListed() {
			return fail("area %v with flags %#x: listed %v", a, a.Flags, is)
		} else if is {
			listed++
		}
		this := a.part(a.Range)
		if n > 1 && prev.continues(&this) {
			return fail("area %v continues %v", a, prev.Range)
		}
		if holes, err = skipHole(holes, prev.End, a.Start); err != nil {
			return false
		}
		prev = this
		return true
	})
	if err != nil {
		return err
	}
	if n != v.length || n != t.edited.len() {
		return fmt.Errorf("%d areas, the view says %d, the edited tree %d", n, v.length, t.edited.len())
	}
	if err := t.edited.check(); err != nil {
		return err
	}
	if listed != len(t.listed) {
		return fmt.Errorf("%d areas are listed, of %d that should be", len(t.listed), listed)
	}
	if totals != t.totals {
		return fmt.Errorf("totals are %+v, kept as %+v", totals, t.totals)
	}
	if holes, err = skipHole(holes, prev.End, t.bounds.End); err != nil {
		return err
	}
	if len(holes) != 0 {
		return fmt.Errorf("hole %v in or behind the areas", holes[0])
	}
	return nil
}

// skipHole checks that [start, end), if it is not empty, is the next hole.
func skipHole(holes []addr.Range, start, end addr.GVA) ([]addr.Range, error) {
	if start == end {
		return holes, nil
	}
	want := addr.Range{Start: start, End: end}
	if len(holes) == 0 || holes[0] != want {
		return holes, fmt.Errorf("no hole %v; next holes: %v", want, holes[:min(len(holes), 2)])
	}
	return holes[1:], nil
}

// check checks the shape of the hole index and returns its holes.
func (x *holeIndex) check() (holes []addr.Range, err error) {
	depth := -1
	var walk func(n *holeNode, level int) error
	walk = func(n *holeNode, level int) error {
		if n.n > holeFan || n != x.root && n.n < holeMin || n.kids != nil && n.n < 2 {
			return fmt.Errorf("hole node at level %d has %d entries", level, n.n)
		}
		if n.kids == nil {
			if depth < 0 {
				depth = level
			}
			if level != depth {
				return fmt.Errorf("hole leaves at levels %d and %d", depth, level)
			}
			for i := range n.n {
				holes = append(holes, n.hole(i))
			}
			return nil
		}
		for i, kid := range n.kids {
			if (i < n.n) != (kid != nil) {
				return fmt.Errorf("hole node with %d entries: kid %d is %p", n.n, i, kid)
			}
			if kid == nil {
				continue
			}
			if err := walk(kid, level+1); err != nil {
				return err
			}
			if n.start[i] != kid.start[0] || n.gap[i] != kid.longest() {
				return fmt.Errorf("hole entry says start %v, longest %#x; below it: %v, %#x",
					n.start[i], n.gap[i], kid.start[0], kid.longest())
			}
		}
		return nil
	}
	if err := walk(x.root, 0); err != nil {
		return nil, err
	}
	for i, h := range holes {
		if h.IsEmpty() || i > 0 && holes[i-1].End >= h.Start {
			return nil, fmt.Errorf("holes %v: %d is out of order or touches", holes, i)
		}
	}
	return holes, nil
}
