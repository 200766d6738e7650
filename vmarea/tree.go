package vmarea

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// treeID tells trees apart. It is a number and not a pointer to the tree, so
// that an area that a child still shows does not keep the tree of an ancestor,
// with all that hangs on it, alive after the ancestor is gone.
type treeID uint64

var lastID atomic.Uint64

func newID() uint64 { return lastID.Add(1) }

// Tree is the set of areas of one address space.
//
// Readers see a published view, which nobody edits. One change at a time edits
// a tree of its own, in place, and publishes the next view by one store.
type Tree struct {
	bounds addr.Range // immutable after New
	id     treeID     // immutable after New

	// state is the sequence, shifted left by one, and in bit 0 whether the
	// tree is marked as a whole. They share a word so that a reader loads
	// both at once, first of all, and so that unmarking is one store.
	// Atomic; stored under the change lock only.
	state atomic.Uint64

	// published is what readers see. Atomic; stored under the change lock
	// only. What it points to is immutable.
	published atomic.Pointer[view]

	_ [64]byte // readers load the line above; a change writes what follows

	edited editedAreas // guarded by the change lock
	holes  holeIndex   // guarded by the change lock: what the edited areas leave free
	change Change      // guarded by the change lock
	listed listedSet   // guarded by the change lock: the edited areas with a label of Listed
	totals Totals      // guarded by the change lock: of the edited areas
	recent [4]*Traits  // guarded by the change lock: those made last, newest first

	detached detachedAreas // guarded by the change lock
}

const wholeMark = 1 // in Tree.state

// New returns an empty tree for the addresses in bounds, which are page
// boundaries.
func New(bounds addr.Range) *Tree {
	if bounds.IsEmpty() || !bounds.IsAligned() {
		panic(fmt.Sprintf("vmarea: bad bounds %v", bounds))
	}
	return newTree(bounds, &view{base: newAreaIndex()}, newHoleIndex(bounds))
}

// newTree returns a tree with the given areas, which no other goroutine has.
func newTree(bounds addr.Range, published *view, holes holeIndex) *Tree {
	t := &Tree{bounds: bounds, id: treeID(newID()), holes: holes}
	t.state.Store(1 << 1) // lock sequences start at 0: no area is marked
	t.published.Store(published)
	t.edited.reset(published)
	t.change.t = t
	return t
}

// Bounds returns the addresses that areas may have.
func (t *Tree) Bounds() addr.Range { return t.bounds }

// sequence returns the tree's sequence, without the mark beside it.
func (t *Tree) sequence() uint64 { return t.state.Load() >> 1 }

// areaOf returns an area that t owns: one that was detached, if it is the same.
func (t *Tree) areaOf(p *piece) *Area {
	if a := t.detached.take(p, t.id); a != nil {
		return a
	}
	return &Area{Range: p.Range, Traits: p.Traits, Offset: p.Offset, owner: t.id}
}

// share returns an object with the traits want: that of an area, like, if it has
// them, or one of those that were made last. Two objects may hold the same; that
// costs memory and nothing else.
func (t *Tree) share(want Traits, like *Traits) *Traits {
	if like != nil && *like == want {
		return like
	}
	for _, made := range t.recent {
		if made != nil && *made == want {
			return made
		}
	}
	made := new(Traits) // &want would be allocated in any case
	*made = want
	copy(t.recent[1:], t.recent[:])
	t.recent[0] = made
	return made
}
