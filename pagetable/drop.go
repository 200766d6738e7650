package pagetable

import (
	"sync"
	"sync/atomic"

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
	default:
		dr := droppers.Get().(*dropper)
		dr.arena, dr.frames = a, frames
		switch d.Level {
		case 0:
			dr.data[0] = d.Frame
			frames.DropData(dr.data[:1])
		case Block:
			frames.DropBlock(d.Frame)
		default:
			dr.table(d.Frame, d.Level)
		}
		dr.arena, dr.frames = nil, nil
		droppers.Put(dr)
	}
}

// dropper is a drop under way. It is pooled for the sake of data, which is
// handed over a leaf table at a time.
type dropper struct {
	arena  *arena.Arena
	frames Frames
	data   [arena.EntriesPerTable]addr.PFN
}

var droppers = sync.Pool{New: func() any { return new(dropper) }}

func (dr *dropper) table(f addr.PFN, level int) {
	if !dr.frames.Drop(f) {
		return
	}
	entries := dr.arena.Table(f)[:]
	if level == rootLevel {
		entries = entries[:firstSupervisor]
	}
	n := 0
	for i := range entries {
		e := Entry(atomic.LoadUint64(&entries[i]))
		if level > leafLevel {
			switch e = boundedAt(dr.arena, e, level); {
			case e == 0:
			case e.Has(Huge):
				dr.frames.DropBlock(e.Frame())
			default:
				dr.table(e.Frame(), level-1)
			}
			continue
		}
		if e = bounded(dr.arena, e); e != 0 {
			dr.data[n] = e.Frame()
			n++
		}
	}
	if n > 0 {
		dr.frames.DropData(dr.data[:n])
	}
	dr.frames.FreeTable(f)
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
func (t *Table) DropRoot(root addr.PFN) {
	Drop(&t.arena, t.frames, Dropped{Frame: root, Level: rootLevel})
}

// EachFrame calls fn for every data frame that subtree d leads to, counted or not.
//
// Preconditions: the caller has a reference to the subtree.
func EachFrame(a *arena.Arena, d Dropped, fn func(addr.PFN)) {
	if d.Moved {
		return
	}
	switch d.Level {
	case 0:
		fn(d.Frame)
		return
	case Block:
		for i := range addr.PFN(HugeFrames) {
			fn(d.Frame + i)
		}
		return
	}
	for i := range uint64(arena.EntriesPerTable) {
		e := Entry(a.Load(d.Frame, i))
		if d.Level == leafLevel {
			e = taken(a, e) &^ Huge
		} else {
			e = boundedAt(a, e, d.Level)
		}
		if e != 0 {
			EachFrame(a, DroppedBy(e, d.Level), fn)
		}
	}
}

// DroppedBy is what an entry of a table of the level refers to.
func DroppedBy(e Entry, level int) Dropped {
	if e.Has(Huge) && level > leafLevel {
		return Dropped{Frame: e.Frame(), Level: Block}
	}
	return Dropped{Frame: e.Frame(), Level: level - 1}
}
