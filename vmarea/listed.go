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

// Totals are how much is mapped, in bytes.
type Totals struct {
	Mapped uint64
	Data   uint64 // what is private and may be written, and does not grow down
}

func (n *Totals) add(a *Area, sign uint64) {
	n.Mapped += sign * a.Len()
	if a.IsData() {
		n.Data += sign * a.Len()
	}
}

// IsData reports whether an area counts as Totals.Data.
func (t *Traits) IsData() bool { return t.Prot&Write != 0 && t.Flags&(Shared|GrowsDown) == 0 }

// IsData reports whether an area would count as Totals.Data.
func (at *Attr) IsData() bool { t := at.traits(); return t.IsData() }

// Totals returns how much the edited tree has mapped. It takes no time: every
// edit keeps them.
func (c *Change) Totals() Totals {
	c.mustBeActive()
	return c.t.totals
}

// relist notes that an area has taken the place of another. Nil is no area.
func (t *Tree) relist(old, now *Area) {
	if old != nil {
		t.totals.add(old, ^uint64(0))
	}
	if now != nil {
		t.totals.add(now, 1)
	}
	if old.isListed() {
		delete(t.listed, old.Start)
	}
	if now.isListed() {
		if t.listed == nil {
			t.listed = make(listedSet)
		}
		t.listed[now.Start] = now
	}
}

// isListed reports whether an area, if there is one, is listed.
func (a *Area) isListed() bool { return a != nil && (a.Flags&Listed != 0 || a.Watch != nil) }

// Listed returns the areas of the edited tree that have a label of Listed, or a
// watch, in address order. It takes time for those alone.
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
