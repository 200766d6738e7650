package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A 2 MiB leaf moves as the one entry that it is where all of it moves by a
// multiple of 2 MiB to where not even a table of leaves is. Else it is split, and
// its pages move. The block is counted by its leaves: as one is cleared before the
// other is written, by one token, its count stays.

// movesWhole reports whether a part that MovePart returned is a 2 MiB leaf that can
// move as one entry. One that moves by something else than whole leaves is never
// all in one part.
//
// Between the plans of a change and its edits the answer can turn from no to yes
// alone, as what is at the target goes: what is planned for a no is enough for a yes.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) movesWhole(part addr.Range, delta addr.GVA) bool {
	return part.Len() == HugeSpan && t.walkTo(part).huge && t.Find(part.Start+delta).Bare
}

// planHuge is PlanMove for such a leaf.
func (t *Table) planHuge(gva addr.GVA, delta addr.GVA) (source, target PathPlan) {
	source = t.PlanPath(gva, hugeLevel, false)
	if t.fresh { // for which views keep what they keep for a table
		source = PathPlan{Tables: rootLevel - hugeLevel + 1, Replaces: true}
	}
	return source, t.PlanPath(gva+delta, hugeLevel, true)
}

// takeHuge is TakeLeaves for such a leaf.
func (t *Table) takeHuge(gva, delta addr.GVA, source, target *Spare, gone *[2]Retired) Moved {
	owned := t.PlanPath(gva, hugeLevel, false).Tables == 0
	t.OwnPath(gva, hugeLevel, false, source, &gone[0])
	var path [rootLevel + 1]addr.PFN // as publish has it
	path[rootLevel] = t.Root()
	for level := rootLevel; level > hugeLevel; level-- {
		e := t.entry(path[level], gva, level)
		if !e.Has(Present | Writable) {
			panic("pagetable: TakeLeaves: the path to a 2 MiB leaf is not this space's own")
		}
		path[level-1] = e.Frame()
	}
	p := t.arena.Entry(path[hugeLevel], indexOf(gva, hugeLevel))
	e := boundedAt(&t.arena, Entry(atomic.LoadUint64(p)), hugeLevel)
	if !e.Has(Huge) {
		panic("pagetable: TakeLeaves: a 2 MiB leaf has gone")
	}
	// The entry cannot change between the load and the store: who edits has the
	// mutex, and the CPU finds its bits set ahead.
	if t.fresh && owned {
		t.publish(gva, &path, hugeLevel, 0, source, &gone[0])
	} else { // what OwnPath has just made is a fresh path already
		atomic.StoreUint64(p, 0)
	}
	t.OwnPath(gva+delta, hugeLevel, true, target, &gone[1])
	return Moved{gva, e}
}

// putHuge is PutLeaves for such a leaf.
func (t *Table) putHuge(gva addr.GVA, e Entry) {
	p := t.hugeEntry(gva)
	if p == nil {
		panic("pagetable: PutLeaves: the path to a 2 MiB leaf is not this space's own")
	}
	if invariants.Enabled && boundedAt(&t.arena, Entry(atomic.LoadUint64(p)), hugeLevel) != 0 {
		panic("pagetable: PutLeaves: something is there already")
	}
	atomic.StoreUint64(p, uint64(e))
}
