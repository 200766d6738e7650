package vmarea

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Some areas are of interest by what they are, not by where they are: a fork has
// to leave some out, and must not look at all areas to find them. They are kept
// in a set by where they start, which every edit keeps exact.

// listedSet are areas with a label of Listed, by start. Nil until there is one.
type listedSet map[addr.GVA]*Area

// relist notes that an area has taken the place of another. Nil is no area.
func (t *Tree) relist(old, now *Area) {
	if old != nil && old.Flags&Listed != 0 {
		delete(t.listed, old.Start)
	}
	if now != nil && now.Flags&Listed != 0 {
		if t.listed == nil {
			t.listed = make(listedSet)
		}
		t.listed[now.Start] = now
	}
}

// Listed returns the areas of the edited tree that have a label of Listed, in
// address order. It takes time for those alone.
func (c *Change) Listed() []*Area {
	c.mustBeActive()
	var out []*Area
	for _, a := range c.t.listed {
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b *Area) int {
		if a.Start < b.Start {
			return -1
		}
		return 1
	})
	return out
}
