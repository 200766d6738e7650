package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A move takes leaves out at one place and puts them in at another, with a grace
// period between the two. The references that the entries are move along, so
// that no count changes, and a leaf that may be written at the one place may be
// at the other: both paths are the space's own.

// Moved is a leaf on its way.
type Moved struct {
	From  addr.GVA
	Entry Entry // with the accessed and dirty bits that it had; Guard for a guard; Huge for 2 MiB
}

// MovePart is the longest part of r, from its start, whose leaves lie in one
// table now and in one where they go, delta further. there is false if it has
// no leaves.
//
// Preconditions: the caller holds the tables mutex; r is not empty.
func (t *Table) MovePart(r addr.Range, delta addr.GVA) (part addr.Range, there bool) {
	part, there = t.NextLeaves(r)
	if !there {
		return part, false
	}
	to := tableRange(part.Start+delta, leafLevel)
	part.End = min(part.End, to.End-delta)
	l := t.walkTo(part)
	return part, l.any(func(e Entry) bool { return leafOf(&t.arena, e) != 0 })
}

// PlanMove tells what moving a part that MovePart returned would need: at its
// source, and where it goes.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanMove(tok Token, part addr.Range, delta addr.GVA) (source, target PathPlan) {
	t.mustOwn(tok)
	if t.movesWhole(part, delta) {
		return t.planHuge(part.Start, delta)
	}
	return t.PlanPath(part.Start, leafLevel, false), t.PlanPath(part.Start+delta, leafLevel, true)
}

// MoveNeeds adds up the table frames that moving several parts needs, in order.
type MoveNeeds struct {
	Tables int
	// Cut says that what is at the targets is zapped before, with tables that are
	// counted as there now.
	Cut  bool
	last [2]addr.GVA // where the last part was, and went
	some bool        // there was one
}

// Add adds a part that MovePart returned. What its path has in common with that
// of the part before is that one's to own, except where each edit makes a fresh
// path.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (n *MoveNeeds) Add(t *Table, tok Token, part addr.Range, delta addr.GVA) {
	source, target := t.PlanMove(tok, part, delta)
	if n.Cut {
		if target.Tables = MaxPathTables - 1; t.fresh {
			target.Tables = MaxPathTables
		}
	}
	at, bottom := [2]addr.GVA{part.Start, part.Start + delta}, leafLevel
	if t.movesWhole(part, delta) {
		bottom = hugeLevel
	}
	for i, tables := range [2]int{source.Tables, target.Tables} {
		for level := rootLevel - 1; n.some && !t.fresh && level >= bottom; level-- {
			if tableRange(at[i], level) == tableRange(n.last[i], level) {
				tables = min(tables, level-bottom)
			}
		}
		n.Tables += tables
	}
	n.last, n.some = at, true
}

// TakeLeaves takes the leaves of a part that MovePart returned out of the table,
// and makes the path to where they go this space's own, so that PutLeaves needs
// nothing. What it took is appended to moved.
//
// Preconditions:
//   - the caller holds the change lock and the tables mutex, and is in a read
//     section that passed the door
//   - lookups can install nothing in the part, nor where it goes
//   - source and target hold what the plans made under the same mutex ask for,
//     gone has room for both
//   - if one of the plans Replaces, every view of the space is stopped
func (t *Table) TakeLeaves(tok Token, part addr.Range, delta addr.GVA, source, target *Spare, gone *[2]Retired, moved []Moved) []Moved {
	t.mustOwn(tok)
	if t.movesWhole(part, delta) {
		return append(moved, t.takeHuge(part.Start, delta, source, target, gone))
	}
	t.OwnPath(part.Start, leafLevel, false, source, &gone[0])
	t.OwnPath(part.Start+delta, leafLevel, true, target, &gone[1])
	entries, owned := t.leavesOf(part)
	if !owned {
		panic("pagetable: TakeLeaves: the path is not this space's own")
	}
	for i := range entries {
		if leafOf(&t.arena, Entry(atomic.LoadUint64(&entries[i]))) == 0 {
			continue
		}
		if e := leafOf(&t.arena, Entry(atomic.SwapUint64(&entries[i], 0))); e != 0 {
			moved = append(moved, Moved{part.Start + addr.GVA(i)*addr.PageSize, e &^ Huge})
		}
	}
	return moved
}

// PutLeaves puts leaves that TakeLeaves took, of one part, in where they go.
//
// Preconditions:
//   - the caller holds the change lock, which it has held since TakeLeaves, and
//     the tables mutex, and is in a read section that passed the door
//   - whoever could have walked to the leaves at their source has ended, and
//     views have forgotten them
func (t *Table) PutLeaves(tok Token, delta addr.GVA, moved []Moved) {
	t.mustOwn(tok)
	if len(moved) == 0 {
		return
	}
	if moved[0].Entry.Has(Present | Huge) {
		t.putHuge(moved[0].From+delta, moved[0].Entry)
		return
	}
	at := addr.Range{Start: moved[0].From + delta, End: moved[len(moved)-1].From + delta + addr.PageSize}
	entries, owned := t.leavesOf(at)
	if !owned {
		panic("pagetable: PutLeaves: the path is not this space's own")
	}
	for _, m := range moved {
		p := &entries[(m.From+delta-at.Start)>>addr.PageShift]
		if invariants.Enabled && bounded(&t.arena, Entry(atomic.LoadUint64(p))) != 0 {
			panic("pagetable: PutLeaves: something is there already")
		}
		atomic.StoreUint64(p, uint64(m.Entry))
	}
}
