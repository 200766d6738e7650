package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// A guard is an absent leaf with one software bit. It has no frame and no count;
// lookups see it and install nothing, tables that are copied or moved keep it, and
// only what takes areas away clears it with all else.

// isGuard reports whether a leaf entry is a guard.
func (e Entry) isGuard() bool { return e&(Present|Guard) == Guard }

// leafOf is bounded for leaves: what is worth keeping of one.
func leafOf(a *arena.Arena, e Entry) Entry {
	if e.isGuard() {
		return Guard
	}
	return bounded(a, e)
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
		if e := bounded(&t.arena, Entry(atomic.SwapUint64(&entries[i], uint64(Guard)))); e != 0 {
			out.Leaves = append(out.Leaves, e)
		}
	}
}

// PlanUnguard tells what ClearGuards needs for a part that NextLeaves returned.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanUnguard(tok Token, part addr.Range) PathPlan {
	return t.planLeaves(tok, part, func(e Entry) bool { return e.isGuard() })
}

// ClearGuards makes the guards of a part absent leaves, for lookups to install in.
//
// Preconditions: as Protect, with the plan of PlanUnguard.
func (t *Table) ClearGuards(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	entries := t.ownLeaves(tok, part, p, spare, out)
	for i := range entries {
		if e := Entry(atomic.LoadUint64(&entries[i])); e.isGuard() {
			atomic.StoreUint64(&entries[i], 0) // lookups leave guards alone: nobody else stores here
		}
	}
}

// PlanZapPages tells what ZapPages needs for a part that NextLeaves returned.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanZapPages(tok Token, part addr.Range) PathPlan {
	return t.planLeaves(tok, part, func(e Entry) bool { return e.Has(Present) })
}

// ZapPages zaps the pages of a part, and leaves guards, and the table, where they
// are.
//
// Preconditions: as Protect, with the plan of PlanZapPages; out has room for a
// table's leaves.
func (t *Table) ZapPages(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	entries := t.ownLeaves(tok, part, p, spare, out)
	for i := range entries {
		if e := Entry(atomic.LoadUint64(&entries[i])); e == 0 || e.isGuard() {
			continue
		}
		if e := bounded(&t.arena, Entry(atomic.SwapUint64(&entries[i], 0))); e != 0 {
			out.Leaves = append(out.Leaves, e)
		}
	}
}

// planLeaves tells what owning a leaf table needs, nothing if no leaf of the part
// is meant.
func (t *Table) planLeaves(tok Token, part addr.Range, meant func(Entry) bool) PathPlan {
	t.mustOwn(tok)
	entries, _ := t.leavesOf(part)
	for i := range entries {
		if meant(Entry(atomic.LoadUint64(&entries[i]))) {
			return t.PlanPath(part.Start, leafLevel, false)
		}
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
