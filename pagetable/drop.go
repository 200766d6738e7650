package pagetable

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// Drop gives up what an edit took out of a table, down to the frames that
// nothing refers to any more. Its cost is what the reference owned alone.
//
// Preconditions: no reader of any space can still follow the reference, and the
// caller is in no section and holds neither mutex.
func Drop(a *arena.Arena, frames Frames, d Dropped) {
	switch {
	case d.Moved:
		if frames.Drop(d.Frame) {
			frames.FreeTable(d.Frame)
		}
	case d.Level == 0:
		if frames.Drop(d.Frame) {
			frames.FreeData(d.Frame)
		}
	default:
		dropTable(a, frames, d.Frame, d.Level)
	}
}

func dropTable(a *arena.Arena, frames Frames, f addr.PFN, level int) {
	if !frames.Drop(f) {
		return
	}
	n := uint64(arena.EntriesPerTable)
	if level == rootLevel {
		n = firstSupervisor
	}
	for i := range n {
		e := Entry(a.Load(f, i))
		if !e.Has(Present) {
			continue
		}
		if level > leafLevel {
			dropTable(a, frames, e.Frame(), level-1)
		} else if frames.Drop(e.Frame()) {
			frames.FreeData(e.Frame())
		}
	}
	frames.FreeTable(f)
}

// noRoot is the number of no frame: an ended table reads as empty.
const noRoot = ^addr.PFN(0)

// End leaves the table without a root, so that every walk finds nothing, and
// returns the root for DropRoot.
//
// Preconditions: the caller holds the change lock.
func (t *Table) End(tok Token) addr.PFN {
	t.mustOwn(tok)
	t.tables.Lock()
	defer t.tables.Unlock()
	return addr.PFN(t.root.Swap(uint64(noRoot)))
}

// DropRoot gives up the root of an ended table, with all below it.
//
// Preconditions: as Drop.
func (t *Table) DropRoot(root addr.PFN) { dropTable(&t.arena, t.frames, root, rootLevel) }

// EachFrame calls fn for every data frame that subtree d leads to.
//
// Preconditions: the caller has a reference to the subtree.
func EachFrame(a *arena.Arena, d Dropped, fn func(addr.PFN)) {
	if d.Moved {
		return
	}
	if d.Level == 0 {
		fn(d.Frame)
		return
	}
	for i := range uint64(arena.EntriesPerTable) {
		if e := Entry(a.Load(d.Frame, i)); e.Has(Present) {
			EachFrame(a, Dropped{Frame: e.Frame(), Level: d.Level - 1}, fn)
		}
	}
}
