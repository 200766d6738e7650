package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// shrinks reports whether a leaf allows something that perm does not.
func shrinks(e, perm Entry) bool {
	return e&^perm&(Writable|User) != 0 || perm&^e&NoExec != 0
}

// NextLeaves returns the part of r, from its start, that one leaf table covers,
// and whether that table is there. What it skips has no leaves.
//
// Preconditions: the caller holds the tables mutex; r is not empty.
func (t *Table) NextLeaves(r addr.Range) (addr.Range, bool) {
	f := t.Root()
	for level := rootLevel; level > leafLevel; level-- {
		e := t.load(f, indexOf(r.Start, level))
		if e == 0 || e.Has(Huge) {
			return r.Intersect(tableRange(r.Start, level-1)), false
		}
		f = e.Frame()
	}
	return r.Intersect(tableRange(r.Start, leafLevel)), true
}

// PlanProtect tells what Protect would need for a part that NextLeaves returned.
// A shared leaf table that allows nothing beyond perm needs no copy.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanProtect(tok Token, part addr.Range, perm Entry) PathPlan {
	t.mustOwn(tok)
	if variant.ProtectSkipsSharedTables || !t.anyShrinks(part, perm) {
		return PathPlan{}
	}
	return t.PlanPath(part.Start, leafLevel, false)
}

func (t *Table) anyShrinks(part addr.Range, perm Entry) bool {
	entries, _ := t.leavesOf(part)
	for i := range entries {
		if e := Entry(atomic.LoadUint64(&entries[i])); e.Has(Present) && shrinks(e, perm) {
			return true
		}
	}
	return false
}

// leavesOf walks once to the leaves of a part that NextLeaves returned, and
// reports whether the way is this space's own. There are none if the table has
// gone.
func (t *Table) leavesOf(part addr.Range) (entries []uint64, owned bool) {
	f, owned := t.Root(), true
	for level := rootLevel; level > leafLevel; level-- {
		e := t.load(f, indexOf(part.Start, level))
		if e == 0 || e.Has(Huge) {
			return nil, false
		}
		owned = owned && e.Has(Writable)
		f = e.Frame()
	}
	t.mustBeLive(f)
	first := indexOf(part.Start, leafLevel)
	return t.arena.Table(f)[first : first+uint64(part.End-part.Start)>>addr.PageShift], owned
}

// Protect takes away, from the leaves of a part that NextLeaves returned, what
// perm (a set of Writable, User and NoExec) does not allow. The frames whose
// entries shrank are appended to stale. Accessed and dirty bits are kept.
//
// Preconditions:
//   - the caller holds the change lock and the tables mutex, and is in a read
//     section that passed the door
//   - spare holds what p, which PlanProtect made under the same mutex, asks for
//   - if p.Replaces, every view of the space is stopped
func (t *Table) Protect(tok Token, part addr.Range, perm Entry, p PathPlan, spare *Spare, out *Retired, stale []addr.PFN) []addr.PFN {
	t.mustOwn(tok)
	if p.Tables > 0 {
		t.OwnPath(part.Start, leafLevel, false, spare, out)
	}
	entries, owned := t.leavesOf(part)
	if !owned {
		return stale // shared, and allows nothing beyond perm
	}
	if n := len(entries); variant.ProtectMissesLastLeaf && n > 1 {
		entries = entries[:n-1]
	}
	for i := range entries {
		p := &entries[i]
		for e := Entry(atomic.LoadUint64(p)); e.Has(Present) && shrinks(e, perm); e = Entry(atomic.LoadUint64(p)) {
			if !atomic.CompareAndSwapUint64(p, uint64(e), uint64(e&(perm|^(Writable|User))|perm&NoExec)) {
				continue
			}
			if bounded(&t.arena, e) != 0 {
				stale = append(stale, e.Frame())
			}
			break
		}
	}
	return stale
}
