package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// MaxZapTables is how many table frames Zap can use: at each end of the
// range a path to own, and a fresh one above it.
const MaxZapTables = 2 * (MaxPathTables + 3)

// ZapSpare is the stock of table frames for a zap.
type ZapSpare struct{ ends [2]Spare }

// Put adds a frame where one of the plan's ends still lacks it.
func (z *ZapSpare) Put(f addr.PFN, p ZapPlan) {
	if z.ends[0].Len() < p.ends[0].Tables {
		z.ends[0].Add(f)
		return
	}
	z.ends[1].Add(f)
}

// Take returns a frame that was not used, and false if there is none.
func (z *ZapSpare) Take() (addr.PFN, bool) {
	for i := range z.ends {
		if z.ends[i].Len() > 0 {
			return z.ends[i].Take(), true
		}
	}
	return 0, false
}

// ZapPlan is what it would take to zap a range.
type ZapPlan struct {
	ends     [2]PathPlan
	bottoms  [2]int // down to which level each end's path is owned
	detaches bool
}

// Tables returns the number of frames needed, at most.
func (p ZapPlan) Tables() int { return p.ends[0].Tables + p.ends[1].Tables }

// Replaces reports whether live entries above the leaves change, so that views
// must be stopped.
func (p ZapPlan) Replaces() bool { return p.ends[0].Replaces || p.ends[1].Replaces || p.detaches }

// Zapped is what a zap has taken out of the tables.
type Zapped struct {
	// Leaves are the entries cleared one by one, with the accessed and dirty
	// bits that they had, 2 MiB leaves among them, and special ones, which own no
	// reference.
	Leaves []Entry
	// Tables are the subtrees cut off whole, and tables that were replaced.
	Tables []Dropped
}

// Reset empties z and keeps its memory.
func (z *Zapped) Reset() { z.Leaves, z.Tables = z.Leaves[:0], z.Tables[:0] }

// NewZapped returns one with room for what a single zap can cut off at the two
// ends of a range, so that it allocates nothing inside a section; a Rezap finds
// no more than lookups in progress have left.
func NewZapped() *Zapped {
	return &Zapped{
		Leaves: make([]Entry, 0, 4*512), // of 4 KiB and of 2 MiB, at both ends
		Tables: make([]Dropped, 0, 6*512+MaxZapTables),
	}
}

// bottomAt returns the lowest level at which the table that covers gva has to
// stay because hole does not cover all of its span.
func bottomAt(gva addr.GVA, hole addr.Range) int {
	level := leafLevel
	for level < rootLevel && hole.ContainsRange(tableRange(gva, level)) {
		level++
	}
	return level
}

// PlanZap tells what zapping r would need, where no area is left in hole.
//
// Preconditions: the caller holds the change lock and the tables mutex; hole
// contains r; r is not empty and below Limit.
func (t *Table) PlanZap(tok Token, r, hole addr.Range) ZapPlan {
	t.mustOwn(tok)
	var p ZapPlan
	p.detaches = t.fresh && t.detaches(t.Root(), rootLevel, r, hole)
	first, last := r.Start, r.End-1
	p.ends[0], p.bottoms[0] = t.planEnd(first, r, hole, p.detaches)
	if tableRange(first, leafLevel) != tableRange(last, leafLevel) {
		p.ends[1], p.bottoms[1] = t.planEnd(last, r, hole, p.detaches)
	}
	return p
}

func (t *Table) planEnd(gva addr.GVA, r, hole addr.Range, detaches bool) (p PathPlan, bottom int) {
	bottom = bottomAt(gva, hole)
	switch {
	case t.cutsHuge(gva, r):
		bottom = leafLevel
		p = t.PlanPath(gva, bottom, false)
	case !variant.ZapSkipsSharedTables && t.reachesSharedIn(gva, r):
		p = t.PlanPath(gva, bottom, false)
	}
	if detaches {
		p.Tables += rootLevel - max(bottom, leafLevel+1) + 1
		p.Replaces = true
	}
	return p, bottom
}

// cutsHuge reports whether there is a 2 MiB leaf at gva of which r has a part.
func (t *Table) cutsHuge(gva addr.GVA, r addr.Range) bool {
	f := t.Root()
	for level := rootLevel; level > leafLevel; level-- {
		e := t.entry(f, gva, level)
		if e == 0 {
			return false
		}
		if e.Has(Huge) {
			return !r.ContainsRange(tableRange(gva, leafLevel))
		}
		f = e.Frame()
	}
	return false
}

// reachesSharedIn reports whether the way to gva leads through a read-only
// entry, below which there is something in r.
func (t *Table) reachesSharedIn(gva addr.GVA, r addr.Range) bool {
	f := t.Root()
	for level := rootLevel; level > leafLevel; level-- {
		e := t.entry(f, gva, level)
		if !e.Has(Present) || e.Has(Huge) {
			return false
		}
		if !e.Has(Writable) {
			return t.holdsAny(e.Frame(), level-1, r.Intersect(tableRange(gva, level-1)))
		}
		f = e.Frame()
	}
	return false
}

// holdsAny reports whether a table leads to a leaf in r, or a guard.
func (t *Table) holdsAny(f addr.PFN, level int, r addr.Range) bool {
	size := addr.GVA(entrySpan(level))
	for start := r.Start &^ (size - 1); start < r.End; start += size {
		if level == leafLevel {
			t.mustBeLive(f)
			if leafOf(&t.arena, Entry(t.arena.Load(f, indexOf(start, level)))) != 0 {
				return true
			}
			continue
		}
		e := t.entry(f, start, level)
		if !e.Has(Present) {
			continue
		}
		if e.Has(Huge) {
			return true
		}
		span := addr.Range{Start: start, End: start + size}
		if t.holdsAny(e.Frame(), level-1, r.Intersect(span)) {
			return true
		}
	}
	return false
}

// detaches reports whether some subtree would be cut off, or a 2 MiB leaf
// cleared, for which a view that caches tables keeps what it keeps for a table.
func (t *Table) detaches(f addr.PFN, level int, r, hole addr.Range) bool {
	if level == leafLevel {
		return false
	}
	found := false
	t.eachIn(f, level, r, func(_ uint64, e Entry, span addr.Range) {
		if e.Has(Huge) {
			found = found || r.ContainsRange(span)
			return
		}
		found = found || hole.ContainsRange(span) || t.detaches(e.Frame(), level-1, r.Intersect(span), hole)
	})
	return found
}

// eachIn calls fn for the present entries of a table above the leaves that
// overlap r.
//
// Preconditions: r is not empty and lies in the span of the table.
func (t *Table) eachIn(f addr.PFN, level int, r addr.Range, fn func(i uint64, e Entry, span addr.Range)) {
	size := addr.GVA(entrySpan(level))
	for start := r.Start &^ (size - 1); start < r.End; start += size {
		if e := t.entry(f, start, level); e.Has(Present) {
			fn(indexOf(start, level), e, addr.Range{Start: start, End: start + size})
		}
	}
}

// Zap takes away every leaf in r, and cuts off the tables whose whole span
// lies in hole. What it took out is appended to out; nothing is dropped yet.
// Accessed and dirty bits that the CPU sets until the very moment are kept,
// since each entry is exchanged atomically.
//
// Preconditions:
//   - the caller holds the change lock and the tables mutex, and is in a read
//     section that passed the door
//   - spare holds what p, made under the same mutex, asks for
//   - if p.Replaces, every view of the space is stopped
func (t *Table) Zap(tok Token, r, hole addr.Range, p ZapPlan, spare *ZapSpare, out *Zapped) {
	t.mustOwn(tok)
	for i, gva := range [2]addr.GVA{r.Start, r.End - 1} {
		t.ownEnd(gva, p.bottoms[i], p.ends[i], p.detaches, &spare.ends[i], out)
	}
	t.zapTable(t.Root(), rootLevel, r, hole, out)
}

func (t *Table) ownEnd(gva addr.GVA, bottom int, p PathPlan, detaches bool, spare *Spare, out *Zapped) {
	if p.Tables == 0 {
		return
	}
	var gone Retired
	if n := rootLevel - max(bottom, leafLevel+1) + 1; !detaches || p.Tables > n {
		t.OwnPath(gva, bottom, false, spare, &gone)
		out.Tables = append(out.Tables, gone.All()...)
	}
	if detaches {
		t.freshPath(gva, max(bottom, leafLevel+1), spare, out)
	}
}

// freshPath makes the owned tables from the root down to bottom anew.
func (t *Table) freshPath(gva addr.GVA, bottom int, spare *Spare, out *Zapped) {
	var path [rootLevel + 1]addr.PFN
	path[rootLevel] = t.Root()
	level := rootLevel
	for level > bottom {
		e := t.entry(path[level], gva, level)
		if !e.Has(Present|Writable) || e.Has(Huge) {
			break
		}
		level--
		path[level] = e.Frame()
	}
	i := indexOf(gva, level)
	e := t.load(path[level], i)
	for ; level <= rootLevel; level++ {
		child := t.freshCopy(path[level], indexOf(gva, level), e, spare)
		out.Tables = append(out.Tables, Dropped{Frame: path[level], Level: level, Moved: true})
		e = upperEntry(child)
	}
	t.root.Store(uint64(e.Frame()))
}

// zapTable zaps r in an owned table.
func (t *Table) zapTable(f addr.PFN, level int, r, hole addr.Range, out *Zapped) {
	if level == leafLevel {
		t.zapLeaves(f, r, out)
		return
	}
	t.eachIn(f, level, r, func(i uint64, e Entry, span addr.Range) {
		switch {
		case e.Has(Huge):
			t.zapHuge(f, i, r.ContainsRange(span), out)
		case hole.ContainsRange(span):
			atomic.StoreUint64(t.arena.Entry(f, i), 0)
			out.Tables = append(out.Tables, Dropped{Frame: e.Frame(), Level: level - 1})
		case e.Has(Writable):
			t.zapTable(e.Frame(), level-1, r.Intersect(span), hole, out)
		}
		// A read-only entry that is only partly covered leads to nothing in r:
		// otherwise the path at that end had been made this space's own.
	})
}

func (t *Table) zapLeaves(f addr.PFN, r addr.Range, out *Zapped) {
	t.mustBeLive(f)
	first := indexOf(r.Start, leafLevel)
	entries := t.arena.Table(f)[first : first+uint64(r.End-r.Start)>>addr.PageShift]
	if n := len(entries); variant.ZapMissesLastLeaf && n > 1 {
		entries = entries[:n-1]
	}
	for i := range entries {
		if atomic.LoadUint64(&entries[i]) == 0 {
			continue
		}
		if e := taken(&t.arena, Entry(atomic.SwapUint64(&entries[i], 0))); e != 0 {
			out.Leaves = append(out.Leaves, e&^Huge)
		}
	}
}

// Rezap zaps once more, after the grace period, what lookups begun before the
// mark installed meanwhile. It cuts no table off, and finds no 2 MiB leaf: those
// are installed under the tables mutex, in a section that begins under it, so that
// none passes once the change, which marks first, has had the mutex.
//
// Preconditions: as Zap; no views need be stopped.
func (t *Table) Rezap(tok Token, r addr.Range, out *Zapped) {
	t.mustOwn(tok)
	t.zapTable(t.Root(), rootLevel, r, addr.Range{}, out)
}
