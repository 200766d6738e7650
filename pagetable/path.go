package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
)

// MaxPathTables is how many table frames one OwnPath can use: a fresh root and
// three tables below it.
const MaxPathTables = 4

// Spare is a small stock of frames for tables, taken before the tables mutex
// and never inside a section.
type Spare struct {
	frames [2 * MaxPathTables]addr.PFN
	n      int
}

// Add puts a frame in stock. Its bytes may be anything.
func (s *Spare) Add(f addr.PFN) { s.frames[s.n] = f; s.n++ }

// Len returns how many frames are in stock.
func (s *Spare) Len() int { return s.n }

// Take returns a frame of the stock.
func (s *Spare) Take() addr.PFN {
	s.n--
	return s.frames[s.n]
}

// Retired is what an edit of tables has made unreachable and not yet dropped.
type Retired struct {
	items [2 * MaxPathTables]Dropped
	n     int
}

// Dropped is a reference that an edit has removed from the tables, to be given
// up once no reader can be following it.
type Dropped struct {
	Frame addr.PFN
	// Level is the level of the table that Frame is (3, 2, 1), 0 for data, or
	// Block where Frame is the first of a 2 MiB leaf's.
	Level int
	// Moved says that what the table referred to has gone to another one: only
	// the frame itself is left to free.
	Moved bool
}

func (r *Retired) add(d Dropped) { r.items[r.n] = d; r.n++ }

// All returns what was retired.
func (r *Retired) All() []Dropped { return r.items[:r.n] }

// PathPlan is what it would take to own a path.
type PathPlan struct {
	// Tables is the number of frames needed, at most.
	Tables int
	// Replaces says that live entries above the leaves change, so that views
	// must be stopped meanwhile.
	Replaces bool
}

// PlanPath tells what OwnPath would need.
//
// Preconditions: the caller holds the tables mutex.
func (t *Table) PlanPath(gva addr.GVA, bottom int, create bool) PathPlan {
	f := t.Root()
	for level := rootLevel; level > bottom; level-- {
		e := t.entry(f, gva, level)
		switch {
		case !e.Has(Present) && !create:
			return PathPlan{}
		case !e.Has(Present):
			return PathPlan{Tables: level - bottom}
		case e.Has(Huge), !e.Has(Writable):
			n := level - bottom
			if t.fresh {
				n += rootLevel - level + 1
			}
			return PathPlan{Tables: n, Replaces: true}
		}
		f = e.Frame()
	}
	return PathPlan{}
}

// OwnPath makes every table on the way to gva, down to the level bottom, this
// space's own: it creates what is absent (if create), copies what others refer
// to as well, and moves what only this space refers to but is reached through
// a read-only entry. Down to the leaves, it splits a 2 MiB leaf. It publishes by
// one store and reports what that made unreachable.
//
// Why a table reached through a read-only entry is never edited in place: a
// reader, a vCPU's shadow of it, or a relative that is about to copy it may
// rely on its content. Why the mutex: two path copies of one parent at a time
// would lose each other's tables, and a fork that copied the root beside a move
// would lead to a table that is gone (models/fork.pml, BREAK_4, 5, 8, 9).
//
// Preconditions:
//   - the caller holds the tables mutex and is in a read section that passed
//     the door
//   - spare holds what PlanPath said
//   - if the plan replaces, every view of the space is stopped
func (t *Table) OwnPath(gva addr.GVA, bottom int, create bool, spare *Spare, out *Retired) {
	var path [rootLevel + 1]addr.PFN // path[l] is the owned table of level l
	path[rootLevel] = t.Root()
	for level := rootLevel; level > bottom; level-- {
		e := t.entry(path[level], gva, level)
		switch {
		case !e.Has(Present) && !create:
			return
		case !e.Has(Present):
			child := t.create(gva, level-1, bottom, spare)
			atomic.StoreUint64(t.arena.Entry(path[level], indexOf(gva, level)), uint64(upperEntry(child)))
			return
		case e.Has(Huge):
			t.publish(gva, &path, level, upperEntry(t.split(e, spare)), spare, out)
			return
		case !e.Has(Writable):
			child := t.take(gva, e, level-1, bottom, create, spare, out, true)
			t.publish(gva, &path, level, upperEntry(child), spare, out)
			return
		}
		path[level-1] = e.Frame()
	}
}

// publish puts e into the owned table of the level: in place, or, where views
// cache tables by frame, by a fresh path up to a fresh root.
func (t *Table) publish(gva addr.GVA, path *[rootLevel + 1]addr.PFN, level int, e Entry, spare *Spare, out *Retired) {
	if !t.fresh {
		atomic.StoreUint64(t.arena.Entry(path[level], indexOf(gva, level)), uint64(e))
		return
	}
	for ; level <= rootLevel; level++ {
		e = upperEntry(t.freshCopy(path[level], indexOf(gva, level), e, spare))
		out.add(Dropped{Frame: path[level], Level: level, Moved: true})
	}
	t.root.Store(uint64(e.Frame()))
}

// freshCopy copies an owned table above the leaves with one entry replaced. No
// count changes: its references move along. Such tables are only edited under
// the mutex, and the CPU has no reason to write to them (Accessed is set, and in
// 2 MiB leaves that may be written Dirty).
func (t *Table) freshCopy(from addr.PFN, i uint64, e Entry, spare *Spare) addr.PFN {
	to := spare.Take()
	dst := t.arena.Table(to)
	for k := range dst {
		dst[k] = t.arena.Load(from, uint64(k))
	}
	dst[i] = uint64(e)
	return to
}

// create makes a chain of empty tables from the level down to bottom and
// returns the topmost.
func (t *Table) create(gva addr.GVA, level, bottom int, spare *Spare) addr.PFN {
	f := spare.Take()
	t.arena.Zero(f)
	if level > bottom {
		child := t.create(gva, level-1, bottom, spare)
		t.arena.Table(f)[indexOf(gva, level)] = uint64(upperEntry(child))
	}
	return f
}

// take makes an own table out of the one that e leads to, and goes on below
// it. published says that readers can reach e; a reference that a copy took in
// an unpublished table can be dropped at once.
func (t *Table) take(gva addr.GVA, e Entry, level, bottom int, create bool, spare *Spare, out *Retired, published bool) addr.PFN {
	from, to := e.Frame(), spare.Take()
	copied := !t.frames.Exclusive(from)
	if invariants.Enabled {
		invariants.MayYield()
	}
	if copied {
		t.copyTable(to, from, level)
	} else {
		t.moveTable(to, from, level)
	}
	if published || !copied {
		// A moved table was reachable even where the entry that led to it
		// here is in an unpublished table: readers come by the old one.
		out.add(Dropped{Frame: from, Level: level, Moved: !copied})
	} else {
		t.frames.Drop(from) // the reference that the copy of its parent had taken
	}
	if level == bottom {
		return to
	}
	i := indexOf(gva, level)
	dst := t.arena.Table(to)
	switch next := boundedAt(&t.arena, Entry(dst[i]), level); {
	case next.Has(Huge):
		dst[i] = uint64(upperEntry(t.split(next, spare)))
	case !next.Has(Present) && !create:
	case !next.Has(Present):
		dst[i] = uint64(upperEntry(t.create(gva, level-1, bottom, spare)))
	default:
		dst[i] = uint64(upperEntry(t.take(gva, next, level-1, bottom, create, spare, out, !copied)))
	}
	return to
}

// copyTable fills to with what from leads to, for one more owner: each of it
// gains a reference, and the copy has write permission off on every private
// entry. The original is left alone: clearing it there would race the CPU's
// accessed bits and a copier, and its path is read-only anyway.
func (t *Table) copyTable(to, from addr.PFN, level int) {
	t.mustBeLive(from)
	if level == leafLevel {
		t.copyLeaves(t.arena.Table(to), t.arena.Table(from))
		return
	}
	shared, n := t.frameList(), 0
	src, dst := t.arena.Table(from), t.arena.Table(to)
	for i := range src {
		e := boundedAt(&t.arena, Entry(atomic.LoadUint64(&src[i])), level)
		switch {
		case e == 0:
		case e.Has(Huge):
			if !variant.BlockForgotten {
				t.frames.ShareBlock(e.Frame())
			}
		default:
			shared[n] = e.Frame()
			n++
		}
		dst[i] = uint64(e &^ Writable)
	}
	t.frames.Share(shared[:forgotten(n)])
}

// copyLeaves is copyTable for leaves. Memory that was touched in order has frames
// that follow each other: four such leaves are copied at a time and counted as part of
// a run, which needs no list; that takes a third off, and nearly all that is left is
// the 128 locked additions of the run. Written as loops over the four, it gains half as
// much, and scattered frames pay for it.
//
// Four leaves are part of a run if they are the same but for the step from frame to
// frame, and for what the CPU and faults set one by one, and are private and counted.
// The step is above the bits that may differ, so that taking it off disturbs none of
// them. Above the address it could: but then the first and the last frame would be at
// both ends of the 52-bit addresses, and no arena contains both.
func (t *Table) copyLeaves(dst, src *[arena.EntriesPerTable]uint64) {
	const (
		step = addr.PageSize
		free = Writable | Accessed | Dirty
	)
	shared, n := t.frameList(), 0
	var first, next addr.PFN // the run [first, next), not counted yet
	for i := 0; i < len(src); i += 4 {
		from, to := (*[4]uint64)(src[i:i+4]), (*[4]uint64)(dst[i:i+4])
		e0, e1 := Entry(atomic.LoadUint64(&from[0])), Entry(atomic.LoadUint64(&from[1]))
		e2, e3 := Entry(atomic.LoadUint64(&from[2])), Entry(atomic.LoadUint64(&from[3]))
		odd := ((e1 - step) ^ e0) | ((e2 - 2*step) ^ e0) | ((e3 - 3*step) ^ e0) // ^ binds no closer than |
		if odd&^free == 0 && e0&(Present|Special|Shared) == Present &&
			t.arena.ContainsAt(e0.address()) && t.arena.ContainsAt(e3.address()) && !variant.CopiedLeafKeepsWrite {
			if f := e0.Frame(); f != next {
				t.frames.ShareRun(first, uint64(next-first))
				first, next = f, f
			}
			next += 4
			to[0], to[1] = uint64(e0&^Writable), uint64(e1&^Writable)
			to[2], to[3] = uint64(e2&^Writable), uint64(e3&^Writable)
			continue
		}
		for k := range from {
			held := Entry(atomic.LoadUint64(&from[k]))
			e := bounded(&t.arena, held)
			if e == 0 {
				to[k] = uint64(held.marker())
				continue
			}
			shared[n] = e.Frame()
			n++
			if !variant.CopiedLeafKeepsWrite && !e.Has(Shared) {
				e &^= Writable
			}
			to[k] = uint64(e)
		}
	}
	t.frames.ShareRun(first, uint64(forgotten(int(next-first))))
	t.frames.Share(shared[:forgotten(n)])
}

// forgotten is n, which a broken variant counts one less.
func forgotten(n int) int {
	if variant.CountForgotten && n > 0 {
		n--
	}
	return n
}

// moveTable fills to with the entries of from, whose only owner this space is;
// no count changes.
//
// A leaf keeps write permission only where its frame has one reference: it may
// have been shared through another copy of the table since (models/fork.pml,
// BREAK_1). An entry above the leaves never keeps it, even where the table below
// has one reference: a relative may have copied that table, and so shared what
// it leads to, and dropped its reference again, while the original kept its
// writable leaves. It has to be moved in turn before it is edited
// (TestR6MovedTableDoesNotTrustTheTablesBelow). Nor does a 2 MiB leaf, for the
// same reason, until somebody asks of its 512 frames.
func (t *Table) moveTable(to, from addr.PFN, level int) {
	t.mustBeLive(from)
	src, dst := t.arena.Table(from), t.arena.Table(to)
	for i := range src {
		held := Entry(atomic.LoadUint64(&src[i]))
		e := bounded(&t.arena, held)
		switch {
		case level > leafLevel && e.Has(Huge):
			e = boundedAt(&t.arena, e, level)
		case e == 0 && level == leafLevel:
			e = held.marker()
		}
		// Asking for each frame by itself: asking for all of them at once, in a
		// second pass, took a third longer.
		// A special leaf has no count; one that no area made, without Shared, is a guest's.
		if e.Has(Writable) && !(level == leafLevel && (e.Has(Shared) || !e.IsSpecial() && t.frames.Exclusive(e.Frame()))) {
			e &^= Writable
		}
		if level == leafLevel && variant.MovedLeafKeepsWrite && held.marker() == 0 || level > leafLevel && variant.MovedTableKeepsWrite {
			e = bounded(&t.arena, Entry(atomic.LoadUint64(&src[i])))
		}
		dst[i] = uint64(e)
	}
}
