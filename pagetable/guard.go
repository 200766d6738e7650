package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// A guard is an absent leaf with one software bit. It has no frame and no count;
// lookups see it and install nothing, tables that are copied or moved keep it, and
// only what takes areas away clears it with all else. Poison is like it, but that
// a discard takes it away. The mark of a page to be armed holds nobody back.

// isGuard reports whether a leaf entry is a guard, or poison.
func (e Entry) isGuard() bool { return e&(Present|Guard) == Guard }

// isPoison reports whether a leaf entry is poison.
func (e Entry) isPoison() bool { return e&(Present|Guard|Armed) == Guard|Armed }

// marker is what a leaf holds that is not counted, 0 if nothing: what an absent one
// holds besides a page, and a special leaf as it is. Tables that are copied or moved
// keep it.
func (e Entry) marker() Entry {
	switch {
	case e.IsSpecial():
		return e
	case e.Has(Present):
	case e.isPoison():
		return Guard | Armed
	case e.isGuard():
		return Guard
	case e.Has(Armed):
		return e & (Armed | Shared)
	}
	return 0
}

// leafOf is bounded for leaves: what is worth keeping of one.
func leafOf(a *arena.Arena, e Entry) Entry {
	if m := e.marker(); m != 0 {
		return m
	}
	return bounded(a, e)
}

// taken is bounded for leaves that have been taken out: views are to forget a
// special one too.
func taken(a *arena.Arena, e Entry) Entry {
	if e.IsSpecial() {
		return e
	}
	return bounded(a, e)
}

// discarded is what a discard leaves of a leaf: guards, and the marks of shared
// areas, which are armed whatever becomes of their pages.
func (e Entry) discarded() Entry {
	switch {
	case e.isPoison():
		return 0
	case e.isGuard():
		return Guard
	case e.Has(Armed | Shared):
		return Armed | Shared
	}
	return 0
}

// PlanGuards tells what PutGuards needs for a part of one leaf table.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanGuards(tok Token, part addr.Range) PathPlan {
	t.mustOwn(tok)
	return t.PlanPath(part.Start, leafLevel, true)
}

// PutGuards makes guards of all leaves of a part of one leaf table. The entries
// that it replaces are appended to out, and the tables.
//
// Preconditions: as Protect, with the plan of PlanGuards; out has room for a
// table's leaves.
func (t *Table) PutGuards(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	t.mustOwn(tok)
	var gone Retired
	if p.Tables > 0 {
		t.OwnPath(part.Start, leafLevel, true, spare, &gone)
		out.Tables = append(out.Tables, gone.All()...)
	}
	entries, owned := t.leavesOf(part)
	if !owned {
		panic("pagetable: PutGuards: the path is not this space's own")
	}
	for i := range entries {
		if e := taken(&t.arena, Entry(atomic.SwapUint64(&entries[i], uint64(Guard)))); e != 0 {
			out.Leaves = append(out.Leaves, e&^Huge)
		}
	}
}

// PlanUnguard tells what ClearGuards needs for a part that NextLeaves returned.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanUnguard(tok Token, part addr.Range) PathPlan {
	return t.planLeaves(tok, part, func(e Entry) bool { return e.marker() == Guard })
}

// ClearGuards makes the guards of a part absent leaves, for lookups to install in.
//
// Preconditions: as Protect, with the plan of PlanUnguard.
func (t *Table) ClearGuards(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	entries := t.ownLeaves(tok, part, p, spare, out)
	for i := range entries {
		if e := Entry(atomic.LoadUint64(&entries[i])); e.marker() == Guard {
			atomic.CompareAndSwapUint64(&entries[i], uint64(e), 0) // or somebody has installed over it
		}
	}
}

// PlanZapPages tells what ZapPages needs for a part that NextLeaves returned.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanZapPages(tok Token, part addr.Range) PathPlan {
	return t.planLeaves(tok, part, func(e Entry) bool { return e.Has(Present) || e != 0 && e.discarded() != e.marker() })
}

// ZapPages zaps the pages of a part, and leaves guards, and the table, where they
// are.
//
// Preconditions: as Protect, with the plan of PlanZapPages; out has room for a
// table's leaves.
func (t *Table) ZapPages(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	t.zapSome(tok, part, p, spare, out, 0)
}

// ZapMapped is ZapPages that leaves poison where it is, too: who takes a page out of
// what is mapped says nothing of memory that is broken.
//
// Preconditions: as ZapPages, with its plan.
func (t *Table) ZapMapped(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	t.zapSome(tok, part, p, spare, out, Present)
}

// zapSome zaps the leaves that have the bits of which.
func (t *Table) zapSome(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped, which Entry) {
	entries := t.ownLeaves(tok, part, p, spare, out)
	for i := range entries {
		for e := Entry(atomic.LoadUint64(&entries[i])); e != 0 && e.Has(which) && e != e.discarded(); e = Entry(atomic.LoadUint64(&entries[i])) {
			// The CPU sets bits meanwhile, and who installs may be faster.
			if !atomic.CompareAndSwapUint64(&entries[i], uint64(e), uint64(e.discarded())) {
				continue
			}
			if e := taken(&t.arena, e); e != 0 {
				out.Leaves = append(out.Leaves, e&^Huge)
			}
			break
		}
	}
}

// planLeaves tells what owning a leaf table needs, nothing if no leaf of the part
// is meant.
func (t *Table) planLeaves(tok Token, part addr.Range, meant func(Entry) bool) PathPlan {
	t.mustOwn(tok)
	if l := t.walkTo(part); l.any(meant) {
		return t.PlanPath(part.Start, leafLevel, false)
	}
	return PathPlan{}
}

// ownLeaves owns a leaf table as planned and returns the leaves of the part; none
// if the table is shared still, since no leaf is meant.
func (t *Table) ownLeaves(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) []uint64 {
	t.mustOwn(tok)
	if p.Tables > 0 {
		var gone Retired
		t.OwnPath(part.Start, leafLevel, false, spare, &gone)
		out.Tables = append(out.Tables, gone.All()...)
	}
	entries, owned := t.leavesOf(part)
	if !owned {
		return nil
	}
	return entries
}

// LeafPart returns the part of r, from its start, that one leaf table covers.
func LeafPart(r addr.Range) addr.Range { return r.Intersect(tableRange(r.Start, leafLevel)) }
