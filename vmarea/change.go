package vmarea

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
)

// Change is the one change that a tree has at a time. All its methods are
// called under the space's change lock, from StartChange until EndWriteAll or
// Abort ends it; it must not be used after that.
//
//	StartChange ─ edit ─ StartWrite ─ (sweep, grace period, sweep) ─ Publish ─ EndWriteAll
//	                  └─ Abort                                          └─ Downgrade ─ EndWriteAll
//
// Edits are made in the change's own tree, which no reader sees: Find, Ascend,
// FindGap and the other questions answer for that one. A change that only adds
// needs no StartWrite and waits for nobody. A limit on
// the number of areas is kept by editing first: where Len is then too large,
// Abort leaves everything as it was.
type Change struct {
	t *Tree // immutable after New

	// All below is guarded by the change lock.
	edits []areaEdit   // the edited tree's unpublished edits
	undo  []holeEdit   // the hole index's unpublished edits
	marks []*Area      // what StartWrite marked; kept under invariants only
	old   []*Area      // scratch of edits: the areas to be replaced
	new   []piece      // scratch of edits: what replaces them
	near  addr.Range   // what Touching was asked for; empty if old is not its answer
	phase changePhase  // where in its life the change is
	did   changeEvents // what it has done so far
}

type changePhase uint8

const (
	idle       changePhase = iota // no change
	active                        // between StartChange and the end
	downgraded                    // active, and lookups pass again
)

type changeEvents uint8

const (
	didMark    changeEvents = 1 << iota // the sequence is in some areas, or the whole tree is marked
	didWhole                            // the whole tree is marked
	didPublish                          // edits were published
)

// keptScratch is how many entries of scratch space a change leaves to the next
// one; an edit of more areas gives its own back.
const keptScratch = 64

// StartChange begins a change.
//
// Preconditions:
//   - the caller holds the space's change lock, until the change has ended
func (t *Tree) StartChange() *Change {
	c := &t.change
	if c.phase != idle {
		panic("vmarea: StartChange: the tree has a change already")
	}
	c.phase, c.did = active, 0
	return c
}

// Len returns the number of areas of the edited tree.
func (c *Change) Len() int { return c.edited().len() }

// Find returns the area of the edited tree that contains gva, or nil.
func (c *Change) Find(gva addr.GVA) *Area { v := c.edited().view(); return v.find(gva) }

// Ascend calls fn for the areas of the edited tree that end above from, in
// address order, until fn returns false. fn must not edit.
func (c *Change) Ascend(from addr.GVA, fn func(*Area) bool) {
	v := c.edited().view()
	v.ascend(from, fn)
}

// StartWrite marks the published areas that overlap r: from here on, no
// StartRead whose section begins later passes on them, until EndWriteAll,
// Downgrade or Abort. Marking twice is harmless. The caller then waits for the
// sections that have begun; under the invariants tag, EndWriteAll panics if a
// reader is still in an area that the change marked.
//
// Areas that belong to another tree are left alone: StartRead refuses them
// anyway, and their lock sequence is for the other tree's change to store.
// Edits that are not published yet make no difference.
func (c *Change) StartWrite(r addr.Range) {
	c.mustBeIn(active, "StartWrite")
	c.did |= didMark
	seq := c.t.sequence()
	c.t.published.Load().ascend(r.Start, func(a *Area) bool {
		if a.Start >= r.End {
			return false
		}
		if a.owner == c.t.id && !variant.NoMarks {
			// After this store, in the one order of all atomics, a reader
			// that loads seq finds it here too.
			a.lockSeq.Store(seq)
			if invariants.Enabled {
				c.marks = append(c.marks, a)
			}
		}
		return a.End < r.End
	})
}

// StartWriteAll marks the tree as a whole, in constant time: no StartRead
// whose section begins later passes at all, until EndWriteAll, Downgrade or
// Abort. The caller then waits for the sections that have begun.
func (c *Change) StartWriteAll() {
	c.mustBeIn(active, "StartWriteAll")
	c.did |= didMark | didWhole
	c.t.state.Store(c.t.sequence()<<1 | wholeMark)
}

// Publish makes the edited areas those that readers and snapshots see, by one
// store. The change may go on to edit, and publish again; it can no longer be
// aborted.
func (c *Change) Publish() {
	c.mustBeIn(active, "Publish")
	c.did |= didPublish
	if len(c.edits) == 0 {
		return
	}
	next := c.t.edited.publish(c.t.published.Load())
	if invariants.Enabled && next.length <= checkedAreas {
		if err := checkAreas(c.t, next); err != nil {
			panic("vmarea: Publish: " + err.Error())
		}
	}
	// Everything that the view leads to was written before this store, and
	// is not written after it: a reader that loads the pointer sees it whole.
	c.t.published.Store(next)
	c.forgetEdits()
}

// Downgrade lets lookups pass again, on the areas as they are published, while
// the change lock keeps other changes out: for the long rest of a change whose
// layout is settled. Publish must have happened, and the change may neither
// edit nor mark any more.
func (c *Change) Downgrade() {
	c.mustBeIn(active, "Downgrade")
	if c.did&didPublish == 0 || len(c.edits) != 0 {
		panic("vmarea: Downgrade before Publish")
	}
	c.unmark()
	c.phase = downgraded
}

// EndWriteAll unmarks everything that the change marked, at once, by one store
// of the next sequence, unless Downgrade has; and ends the change. All edits
// must have been published.
func (c *Change) EndWriteAll() {
	c.mustBeActive()
	if len(c.edits) != 0 {
		panic("vmarea: EndWriteAll with unpublished edits")
	}
	c.checkNoReaders()
	if c.phase != downgraded {
		// After Publish, never before: a reader that loads the new sequence
		// must not find a marked area any more.
		c.unmark()
	}
	c.end()
}

// Abort forgets the edits, unmarks, and ends the change: as if it had not
// been. It must not be called after Publish.
func (c *Change) Abort() {
	c.mustBeIn(active, "Abort")
	if c.did&didPublish != 0 {
		panic("vmarea: Abort after Publish")
	}
	for i := len(c.edits) - 1; i >= 0; i-- {
		c.t.relist(c.edits[i].now, c.edits[i].old)
	}
	if len(c.edits) > 0 {
		c.t.edited.revert(c.t.published.Load())
	}
	for i := len(c.undo) - 1; i >= 0; i-- {
		c.undo[i].revert(&c.t.holes)
	}
	c.forgetEdits()
	if c.did&didMark != 0 {
		c.unmark()
	}
	c.end()
}

// unmark stores the next sequence, without the mark of the whole tree.
func (c *Change) unmark() { c.t.state.Store((c.t.sequence() + 1) << 1) }

func (c *Change) end() {
	c.forgetTouching()
	clear(c.marks)
	c.marks = c.marks[:0]
	c.phase = idle
}

// checkNoReaders panics, where readers are counted, if one is still in an area
// that the change marked: the grace period was left out, or was not one. After
// a downgrade, readers may be in what is still published.
func (c *Change) checkNoReaders() {
	for _, a := range c.marks {
		if c.phase == downgraded && c.t.published.Load().find(a.Start) == a {
			continue
		}
		if n := a.readers.count(); n != 0 {
			panic(fmt.Sprintf("vmarea: %d readers in %v when the change that marked it ends", n, a))
		}
	}
}

func (c *Change) forgetEdits() {
	c.edits = kept(c.edits)
	c.undo = kept(c.undo)
}

// edited returns the edited areas.
func (c *Change) edited() *editedAreas {
	c.mustBeActive()
	return &c.t.edited
}

func (c *Change) mustBeActive() {
	if c.phase == idle {
		panic("vmarea: the change has ended")
	}
}

func (c *Change) mustBeIn(p changePhase, op string) {
	if c.phase != p {
		panic(fmt.Sprintf("vmarea: %s in a change that has ended or is downgraded", op))
	}
}

// kept returns s empty, or nil if it is too large to keep.
func kept[T any](s []T) []T {
	if cap(s) > keptScratch {
		return nil
	}
	clear(s)
	return s[:0]
}
