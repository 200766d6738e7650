package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A 2 MiB leaf is an entry of a table of level 2 that leads to a block of 512
// frames, and stands for a table of 512 leaves with its permissions. As that table
// would, the block has a count of the entries that lead to it, and holds one
// reference to each frame (cow.Counts): a copy of the table above counts the block
// once more, and to own the path down to the leaves writes the table down. What is
// done to the whole of a 2 MiB leaf is done to the one entry; what is done to a
// part of it splits it first.
//
// Lookups edit 2 MiB leaves too, and with the tables mutex held, so that nothing
// above the leaves is ever edited by two at a time; they begin their section under
// it. Since a change marks its areas before it takes the mutex, no lookup's
// StartRead passes there that comes after the change's first sweep: no 2 MiB leaf
// appears in what is being taken away, and none is split or made a table of.
//
// Where a second translator caches tables by frame, it keeps for a 2 MiB leaf what
// it keeps for a table. So one is installed and has its permissions changed in
// place, and what clears or replaces it makes a fresh path.

// Block is the Level of a Dropped that is a 2 MiB leaf.
const Block = rootLevel + 1

// split makes a table of a 2 MiB leaf, which this space has in an own table, or in
// one that nobody sees yet. The leaves may do what it may: where it may be written,
// nobody else has any of the frames.
func (t *Table) split(e Entry, spare *Spare) addr.PFN {
	to, first := spare.Take(), e.Frame()
	t.frames.SplitBlock(first)
	bits := uint64(e &^ (Huge | frameMask))
	dst := t.arena.Table(to)
	for i := range dst {
		dst[i] = uint64(first+addr.PFN(i))<<addr.PageShift | bits
	}
	return to
}

// hugeEntry returns the entry for gva of the table of 2 MiB leaves, nil if the path
// there is absent or not this space's own.
func (t *Table) hugeEntry(gva addr.GVA) *uint64 {
	f := t.Root()
	for level := rootLevel; level > hugeLevel; level-- {
		e := t.entry(f, gva, level)
		if !e.Has(Present | Writable) {
			return nil
		}
		f = e.Frame()
	}
	t.mustBeLive(f)
	return t.arena.Entry(f, indexOf(gva, hugeLevel))
}

// InstallHuge installs a 2 MiB leaf where neither a table nor a leaf is, and reports
// whether it did. The caller has the block, of which one leaf counts.
//
// Preconditions:
//   - the caller holds the tables mutex, and is in a read section that began under
//     it, passed the door and StartRead
//   - OwnPath made the way down to level 2 this space's own
func (t *Table) InstallHuge(gva addr.GVA, e Entry) bool {
	p := t.hugeEntry(gva)
	if p == nil || boundedAt(&t.arena, Entry(atomic.LoadUint64(p)), hugeLevel) != 0 {
		return false
	}
	if invariants.Enabled && boundedAt(&t.arena, e, hugeLevel) == 0 {
		panic("pagetable: InstallHuge of what is no block")
	}
	atomic.StoreUint64(p, uint64(e))
	return true
}

// AllowHuge adds permissions to a 2 MiB leaf, as Leaf.Allow does to others.
//
// Preconditions: as InstallHuge.
func (t *Table) AllowHuge(gva addr.GVA, grant Entry) {
	p := t.hugeEntry(gva)
	if p == nil {
		return
	}
	e := boundedAt(&t.arena, Entry(atomic.LoadUint64(p)), hugeLevel)
	if !e.Has(Huge) {
		return
	}
	e |= grant & (Writable | User)
	if e.Has(Writable) {
		e |= Dirty // see HugeEntry
	}
	if grant.Has(NoExec) {
		e &^= NoExec
	}
	atomic.StoreUint64(p, uint64(e)) // nobody else stores here: not even the CPU
}

// WouldCopy reports whether making the way down to gva's 2 MiB leaf this space's
// own would copy a table, so that the leaf would have a second owner.
//
// Preconditions: the caller holds the tables mutex.
func (t *Table) WouldCopy(gva addr.GVA) bool {
	f, owned := t.Root(), true
	for level := rootLevel; level > hugeLevel; level-- {
		e := t.entry(f, gva, level)
		if e == 0 {
			return false
		}
		f = e.Frame()
		if owned = owned && e.Has(Writable); !owned && !t.frames.Exclusive(f) {
			return true
		}
	}
	return false
}

// zapHuge clears a 2 MiB leaf all of which is to go.
func (t *Table) zapHuge(f addr.PFN, i uint64, whole bool, out *Zapped) {
	if !whole {
		panic("pagetable: a 2 MiB leaf is to go in part, and was not split")
	}
	out.Leaves = append(out.Leaves, Entry(atomic.SwapUint64(t.arena.Entry(f, i), 0)))
}

// PlanHuge tells what PutHuge needs.
//
// Preconditions: as PlanProtect.
func (t *Table) PlanHuge(tok Token, gva addr.GVA) PathPlan {
	t.mustOwn(tok)
	p := PathPlan{Replaces: true}
	if t.fresh {
		p.Tables = rootLevel - hugeLevel + 1
	}
	return p
}

// PutHuge puts a 2 MiB leaf in the place of the table of leaves at gva, which is to
// be dropped.
//
// Preconditions: as Protect, with the plan of PlanHuge; the way down to the leaves is
// this space's own; nobody can install in the table.
func (t *Table) PutHuge(tok Token, gva addr.GVA, e Entry, spare *Spare, out *Retired) {
	t.mustOwn(tok)
	var path [rootLevel + 1]addr.PFN
	path[rootLevel] = t.Root()
	for level := rootLevel; level >= hugeLevel; level-- {
		at := t.entry(path[level], gva, level)
		if !at.Has(Present|Writable) || at.Has(Huge) {
			panic("pagetable: PutHuge: the path is not this space's own")
		}
		path[level-1] = at.Frame()
	}
	t.publish(gva, &path, hugeLevel, e, spare, out)
	out.add(Dropped{Frame: path[leafLevel], Level: leafLevel})
}

// appendBlock appends the frames of a block.
func appendBlock(list []addr.PFN, first addr.PFN) []addr.PFN {
	for i := range addr.PFN(HugeFrames) {
		list = append(list, first+i)
	}
	return list
}

// AppendFrames appends the frames that a leaf leads to.
func AppendFrames(list []addr.PFN, e Entry) []addr.PFN {
	if e.Has(Huge) {
		return appendBlock(list, e.Frame())
	}
	return append(list, e.Frame())
}

// LeavesAt calls fn for the leaves of the table at gva, those that hold something,
// and reports whether there is such a table.
//
// Preconditions: the caller holds the tables mutex.
func (t *Table) LeavesAt(gva addr.GVA, fn func(e Entry, marked bool)) bool {
	entries, _ := t.leavesOf(tableRange(gva, leafLevel))
	for i := range entries {
		e := Entry(atomic.LoadUint64(&entries[i]))
		if m := e.marker(); m != 0 {
			fn(m, true)
		} else if e = bounded(&t.arena, e); e != 0 {
			fn(e&^Huge, false)
		}
	}
	return entries != nil
}

// TakeTable takes all leaves out of the table at gva, for PutHuge to take its place.
// What it took is appended to moved.
//
// Preconditions: as TakeLeaves, for a plan of PlanPath down to the leaves; the table
// is there and holds no markers.
func (t *Table) TakeTable(tok Token, gva addr.GVA, spare *Spare, gone *Retired, moved []Moved) []Moved {
	t.mustOwn(tok)
	t.OwnPath(gva, leafLevel, false, spare, gone)
	r := tableRange(gva, leafLevel)
	entries, owned := t.leavesOf(r)
	if !owned {
		panic("pagetable: TakeTable: the path is not this space's own")
	}
	for i := range entries {
		if e := bounded(&t.arena, Entry(atomic.SwapUint64(&entries[i], 0))); e != 0 {
			moved = append(moved, Moved{r.Start + addr.GVA(i)*addr.PageSize, e &^ Huge})
		}
	}
	return moved
}
