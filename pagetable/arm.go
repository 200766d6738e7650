package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// To arm is to take write permission away, and to note why: a fault that finds the
// note tells somebody before it allows the write. The note survives what copies and
// moves tables, and a discard where it is a shared area's.

// Absent says what arming makes of leaves without a page.
type Absent int

// What arming makes of leaves without a page.
const (
	SkipAbsent     Absent = iota // nothing
	MarkAbsent                   // the page that comes is armed
	MarkAbsentKept               // the same in a shared area, where a discard keeps the mark
)

func (a Absent) marker() Entry {
	switch a {
	case MarkAbsent:
		return Armed
	case MarkAbsentKept:
		return Armed | Shared
	}
	return 0
}

// PlanArm tells what Arm needs for a part: of one leaf table, which is there unless
// absent leaves are to be marked.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanArm(tok Token, part addr.Range, absent Absent) PathPlan {
	t.mustOwn(tok)
	if absent != SkipAbsent {
		return t.PlanPath(part.Start, leafLevel, true)
	}
	return t.planLeaves(tok, part, func(e Entry) bool { return e.Has(Present) && e&(Armed|Writable) != Armed })
}

// Arm takes write permission from the pages of a part and marks them as armed. The
// frames whose entries shrank are appended to stale; accessed and dirty bits are
// kept.
//
// Preconditions: as Protect, with the plan of PlanArm.
func (t *Table) Arm(tok Token, part addr.Range, absent Absent, p PathPlan, spare *Spare, out *Zapped, stale []addr.PFN) []addr.PFN {
	t.mustOwn(tok)
	if p.Tables > 0 {
		var gone Retired
		t.OwnPath(part.Start, leafLevel, absent != SkipAbsent, spare, &gone)
		out.Tables = append(out.Tables, gone.All()...)
	}
	entries, owned := t.leavesOf(part)
	if !owned {
		return stale
	}
	for i := range entries {
		for {
			e := Entry(atomic.LoadUint64(&entries[i]))
			next := e
			switch {
			case e.IsSpecial():
			case e.Has(Present):
				next = e&^Writable | Armed
			case e.marker() == 0:
				next = absent.marker()
			}
			if next == e {
				break
			}
			if !atomic.CompareAndSwapUint64(&entries[i], uint64(e), uint64(next)) {
				continue
			}
			if e.Has(Writable) && bounded(&t.arena, e) != 0 {
				stale = append(stale, e.Frame())
			}
			break
		}
	}
	return stale
}

// PlanDisarm tells what Disarm needs for a part that NextLeaves returned.
//
// Preconditions: the caller holds the change lock and the tables mutex.
func (t *Table) PlanDisarm(tok Token, part addr.Range) PathPlan {
	return t.planLeaves(tok, part, isArmed)
}

func isArmed(e Entry) bool { return e.Has(Armed) && !e.isGuard() }

// Disarm takes the mark off the leaves of a part. It gives no permission: the next
// write asks for it.
//
// Preconditions: as Protect, with the plan of PlanDisarm.
func (t *Table) Disarm(tok Token, part addr.Range, p PathPlan, spare *Spare, out *Zapped) {
	entries := t.ownLeaves(tok, part, p, spare, out)
	for i := range entries {
		for e := Entry(atomic.LoadUint64(&entries[i])); isArmed(e); e = Entry(atomic.LoadUint64(&entries[i])) {
			next := e &^ Armed
			if !e.Has(Present) {
				next = 0
			}
			if atomic.CompareAndSwapUint64(&entries[i], uint64(e), uint64(next)) {
				break
			}
		}
	}
}
