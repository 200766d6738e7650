package vmarea

import (
	"maps"

	"github.com/guestmm/guestmm/internal/invariants"
)

// Restore makes the areas what they are in a tree that was forked from this one
// and has not been edited since, in constant time but for the areas that are
// listed. They are published with it: nobody passes StartRead before the change
// ends, so that no separate Publish is needed.
//
// That area objects come back which earlier changes of this tree have marked
// does no harm: each holds the sequence of a change that has ended, and the
// sequence only grows. Objects of other trees are Foreign, as after a fork.
//
// Preconditions:
//   - the tree is marked as a whole (StartWriteAll), and the sections that had
//     begun have ended
//   - no edit is unpublished, and none was published in this change
//   - from has the same bounds, and nobody else forks or edits it meanwhile
func (c *Change) Restore(from *Tree) {
	c.mustBeIn(active, "Restore")
	if c.did != didMark|didWhole || len(c.edits) != 0 {
		panic("vmarea: Restore without StartWriteAll, or after an edit")
	}
	t := c.t
	if t.bounds != from.bounds {
		panic("vmarea: Restore from a tree of other bounds")
	}
	c.did |= didPublish
	t.holes = from.holes.clone()
	t.listed = maps.Clone(from.listed)
	t.totals = from.totals
	v := from.published.Load()
	t.edited.reset(v)
	if invariants.Enabled && v.length <= checkedAreas {
		if err := checkAreas(t, v); err != nil {
			panic("vmarea: Restore: " + err.Error())
		}
	}
	t.published.Store(v)
}

// Same reports whether two snapshots are of the very same areas, without
// looking at any: true where nothing was published between them, or it was undone.
func (s Snapshot) Same(o Snapshot) bool { return s.v == o.v }
