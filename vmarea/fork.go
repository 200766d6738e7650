package vmarea

import (
	"maps"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// Fork returns a second tree with the same areas, in constant time but for the
// areas that are listed.
//
// The area objects are shared. They stay the parent's: one lock sequence
// cannot serve the sequences of two trees, so that the child's lookups refuse
// them as Foreign, its changes do not mark them, and its first fault in each
// adopts a copy.
//
// Preconditions:
//   - the tree is marked as a whole (StartWriteAll), so that no lookup passes
//     while the entries of the page table become shared
//   - no edit is unpublished
func (c *Change) Fork() *Tree {
	c.mustBeIn(active, "Fork")
	if c.did&didWhole == 0 && !variant.NoWholeMark || len(c.edits) != 0 {
		panic("vmarea: Fork without StartWriteAll, or with unpublished edits")
	}
	t := c.t
	// The view is immutable: both publish it, and the child makes its edited areas
	// of it. Of the holes it gets a clone, and each side copies what it edits.
	child := newTree(t.bounds, t.published.Load(), t.holes.clone())
	child.listed = maps.Clone(t.listed)
	child.totals = t.totals
	return child
}

// Adopt replaces the area at gva, if it belongs to another tree, by a copy of
// it that belongs to this one, and reports whether it did. It adds only: once
// it is published, lookups pass where they were refused; nobody waits.
func (c *Change) Adopt(gva addr.GVA) bool {
	c.mustBeIn(active, "Adopt")
	a := c.Find(gva)
	if a == nil || a.owner == c.t.id {
		return false
	}
	c.put(a.part(a.Range), a)
	return true
}
