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
// and whether that table is there, or a 2 MiB leaf in its place. What it skips has
// no leaves.
//
// Preconditions: the caller holds the tables mutex, or is in a read section; r is not
// empty.
func (t *Table) NextLeaves(r addr.Range) (addr.Range, bool) {
	f := t.Root()
	for level := rootLevel; level > leafLevel; level-- {
		e := t.entry(f, r.Start, level)
		if e == 0 {
			return r.Intersect(tableRange(r.Start, level-1)), false
		}
		if e.Has(Huge) {
			break
		}
		f = e.Frame()
	}
	return r.Intersect(tableRange(r.Start, leafLevel)), true
}

// Shrinks is NextLeaves for who only asks whether there is something for Protect to do:
// whether a leaf of the part allows what perm does not.
//
// Preconditions: the caller holds the change lock and the tables mutex; r is not empty.
func (t *Table) Shrinks(tok Token, r addr.Range, perm Entry) (part addr.Range, found bool) {
	t.mustOwn(tok)
	part, there := t.NextLeaves(r)
	if !there {
		return part, false
	}
	l := t.walkTo(part)
	return part, l.shrink(perm)
}

// PlanProtect tells what Protect would need for a part that NextLeaves returned.
// A shared leaf table that allows nothing beyond perm needs no copy.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanProtect(tok Token, part addr.Range, perm Entry) PathPlan {
	t.mustOwn(tok)
	l := t.walkTo(part)
	if variant.ProtectSkipsSharedTables || !l.shrink(perm) {
		return PathPlan{}
	}
	return t.PlanPath(part.Start, l.bottom(part), false)
}

// leaves are those of a part that NextLeaves returned.
type leaves struct {
	entries []uint64 // none if the table has gone
	owned   bool     // the way is this space's own
	huge    bool     // it is the one entry of a 2 MiB leaf, of which part may be less
}

func (l *leaves) any(is func(Entry) bool) bool {
	for i := range l.entries {
		if is(Entry(atomic.LoadUint64(&l.entries[i]))) {
			return true
		}
	}
	return false
}

// shrink reports whether some of the leaves allow what perm does not.
func (l *leaves) shrink(perm Entry) bool {
	for i := range l.entries {
		if e := Entry(atomic.LoadUint64(&l.entries[i])); e.Has(Present) && shrinks(e, perm) {
			return true
		}
	}
	return false
}

// bottom is the level of the table that is to be owned in order to edit the leaves
// of a part alone.
func (l *leaves) bottom(part addr.Range) int {
	if l.huge && part.Len() == HugeSpan {
		return hugeLevel
	}
	return leafLevel
}

// walkTo walks once to the leaves of a part that NextLeaves returned.
func (t *Table) walkTo(part addr.Range) (l leaves) {
	f := t.Root()
	l.owned = true
	for level := rootLevel; level > leafLevel; level-- {
		e := t.entry(f, part.Start, level)
		if e == 0 {
			return leaves{}
		}
		if e.Has(Huge) {
			i := indexOf(part.Start, level)
			l.huge, l.entries = true, t.arena.Table(f)[i:i+1]
			return l
		}
		l.owned = l.owned && e.Has(Writable)
		f = e.Frame()
	}
	t.mustBeLive(f)
	first := indexOf(part.Start, leafLevel)
	l.entries = t.arena.Table(f)[first : first+uint64(part.End-part.Start)>>addr.PageShift]
	return l
}

// leavesOf walks to the leaves of a part, none if the table has gone, or is not
// there for a 2 MiB leaf, and reports whether the way is this space's own.
func (t *Table) leavesOf(part addr.Range) (entries []uint64, owned bool) {
	if l := t.walkTo(part); !l.huge {
		return l.entries, l.owned
	}
	return nil, false
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
	l := t.walkTo(part)
	if p.Tables > 0 {
		t.OwnPath(part.Start, l.bottom(part), false, spare, out)
		l = t.walkTo(part)
	}
	if !l.owned {
		return stale // shared, and allows nothing beyond perm
	}
	entries := l.entries
	if n := len(entries); variant.ProtectMissesLastLeaf && n > 1 {
		entries = entries[:n-1]
	}
	for i := range entries {
		p := &entries[i]
		for e := Entry(atomic.LoadUint64(p)); e.Has(Present) && shrinks(e, perm); e = Entry(atomic.LoadUint64(p)) {
			if !atomic.CompareAndSwapUint64(p, uint64(e), uint64(e&(perm|^(Writable|User))|perm&NoExec)) {
				continue
			}
			switch {
			case l.huge:
				stale = appendBlock(stale, e.Frame())
			case taken(&t.arena, e) != 0:
				stale = append(stale, e.Frame())
			}
			break
		}
	}
	return stale
}
