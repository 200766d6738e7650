package pagetable

import (
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// A table of the space's own that was written in a few places is cheaper to set
// right than to drop: dropping a leaf table takes away the 512 references that
// copying it added, and the next write below copies it again. So a space without
// a view puts back, in the tables that it owns, what the snapshot has there.

// Revert makes what root leads to equal to what like leads to, in the tables that
// the space has made its own behind root, leaf for leaf; what is not its own there
// is given up for like's. What it takes out is dropped. Its cost is a look at each
// table that is the space's own and at each entry on the way to one.
//
// Within is given each edit, to run in a section that has passed the door.
//
// Preconditions:
//   - the caller holds the change lock
//   - nobody can reach root's own tables: it is no current root, and lookups and
//     copiers that walked it have ended; no view has cached any of them
//   - like's tables do not change: its entries are read-only
//   - the caller is in no section and does not hold the tables mutex
func (t *Table) Revert(tok Token, root, like addr.PFN, within func(edit func())) {
	t.mustOwn(tok)
	r := reverters.Get().(*reverter)
	r.t, r.within = t, within
	r.table(root, like, rootLevel)
	r.flush()
	r.t, r.within = nil, nil
	reverters.Put(r)
}

// reverter is a Revert under way. It is pooled for the sake of its arrays, and has
// its edits as fields so that a table costs no allocation.
//
// Leaves are gathered and put back some hundred at a time, from as many tables as
// they are in: a section and the pool's lock for each table would cost more than
// looking at it.
type reverter struct {
	t      *Table
	within func(func())

	put    []leafEdit // gathered
	gained []addr.PFN // by them
	lost   []addr.PFN
	edit   func() // putLeaves, made once

	cut [rootLevel + 1][]Dropped // subtrees cut off, at each level
}

// leafEdit is an own leaf and what becomes of it.
type leafEdit struct {
	own *uint64
	to  Entry
}

var reverters = sync.Pool{New: func() any {
	r := new(reverter)
	r.edit = r.putLeaves
	return r
}}

const (
	entriesPerLook = 8
	// leafEdits are gathered before they are made: a table's worth at most is added.
	leafEdits = 512
)

// mayDiffer reports whether one of eight entries may not be what Revert leaves
// there. Most are, whatever a table is reverted for: so it is told without a
// branch for each.
func mayDiffer(own, like *[entriesPerLook]uint64) bool {
	differ, held := uint64(0), uint64(0)
	for i := range own {
		e := atomic.LoadUint64(&own[i])
		held |= e
		differ |= e ^ atomic.LoadUint64(&like[i])
	}
	return differ&^uint64(Writable|Accessed|Dirty)|held&uint64(Writable|Shared|Huge) != 0
}

func look(table *[arena.EntriesPerTable]uint64, i int) *[entriesPerLook]uint64 {
	return (*[entriesPerLook]uint64)(table[i : i+entriesPerLook])
}

// table reverts an own table above the leaves. It returns false, with the table
// as good as before or after, if the two differ in a 2 MiB leaf: who leads to it
// then exchanges the table as a whole.
func (r *reverter) table(own, like addr.PFN, level int) bool {
	n := arena.EntriesPerTable
	if level == rootLevel {
		n = firstSupervisor
	}
	r.t.mustBeLive(like)
	r.t.mustBeLive(own)
	src, dst := r.t.arena.Table(like), r.t.arena.Table(own)
	r.cut[level] = r.cut[level][:0]
	defer r.dropCut(level)
	for first := 0; first < n; first += entriesPerLook {
		a, b := look(dst, first), look(src, first)
		if !mayDiffer(a, b) {
			continue
		}
		for i := range a {
			if !r.entry(&a[i], atomic.LoadUint64(&b[i]), level) {
				return false
			}
		}
	}
	return true
}

// entry reverts an entry above the leaves. It returns false for table to.
func (r *reverter) entry(own *uint64, wanted uint64, level int) bool {
	t := r.t
	held := atomic.LoadUint64(own)
	if (held^wanted)&^uint64(Writable|Accessed) == 0 {
		return true // nothing on both sides, or the same table: a shared one
	}
	e, k := bounded(&t.arena, Entry(held)), bounded(&t.arena, Entry(wanted))
	if (e | k).Has(Huge) {
		return false
	}
	if e.Has(Present|Writable) && k != 0 && r.below(e.Frame(), k.Frame(), level-1) {
		return true
	}
	r.within(func() {
		if k != 0 {
			frame := [1]addr.PFN{k.Frame()}
			t.frames.Share(frame[:])
		}
		atomic.StoreUint64(own, uint64(k&^Writable))
	})
	if e != 0 {
		r.cut[level] = append(r.cut[level], Dropped{Frame: e.Frame(), Level: level - 1})
	}
	return true
}

// dropCut drops the subtrees cut off. Leaves in them may have been gathered, and
// are put back first, or a frame would be dropped twice.
func (r *reverter) dropCut(level int) {
	if len(r.cut[level]) == 0 {
		return
	}
	r.flush()
	for _, d := range r.cut[level] {
		Drop(&r.t.arena, r.t.frames, d)
	}
}

func (r *reverter) below(own, like addr.PFN, level int) bool {
	if level > leafLevel {
		return r.table(own, like, level)
	}
	r.leaves(own, like)
	return true
}

// leaves gathers what is to be put back in an own leaf table.
func (r *reverter) leaves(own, like addr.PFN) {
	t := r.t
	t.mustBeLive(like)
	t.mustBeLive(own)
	src, dst := t.arena.Table(like), t.arena.Table(own)
	for first := 0; first < arena.EntriesPerTable; first += entriesPerLook {
		a, b := look(dst, first), look(src, first)
		if !mayDiffer(a, b) {
			continue
		}
		for i := range a {
			r.leaf(&a[i], atomic.LoadUint64(&b[i]))
		}
	}
	if len(r.put) >= leafEdits {
		r.flush()
	}
}

// leaf gathers a leaf if it differs. A private one is read-only then, since the
// snapshot has its frame too; one of a shared area allows what it did.
func (r *reverter) leaf(own *uint64, wanted uint64) {
	held := atomic.LoadUint64(own)
	diff := (held ^ wanted) &^ uint64(Accessed|Dirty)
	if diff == 0 && held&uint64(Writable) == 0 || diff == uint64(Writable) && held&uint64(Writable|Shared) == 0 {
		return
	}
	a := &r.t.arena
	e, k := leafOf(a, Entry(held)), leafOf(a, Entry(wanted))
	if k.Has(Present) && !k.Has(Shared) {
		k &^= Writable
	}
	if !e.isCounted() || !k.isCounted() || e.Frame() != k.Frame() {
		if k.isCounted() {
			r.gained = append(r.gained, k.Frame())
		}
		if e.isCounted() {
			r.lost = append(r.lost, e.Frame())
		}
	}
	r.put = append(r.put, leafEdit{own, k})
}

// flush puts back what was gathered, and drops what that takes out.
func (r *reverter) flush() {
	if len(r.put) == 0 {
		return
	}
	r.within(r.edit)
	r.t.frames.DropData(r.lost)
	r.put, r.gained, r.lost = r.put[:0], r.gained[:0], r.lost[:0]
}

func (r *reverter) putLeaves() {
	r.t.frames.Share(r.gained)
	for _, l := range r.put {
		atomic.StoreUint64(l.own, uint64(l.to))
	}
}

// isCounted reports whether a leaf, bounded, owns a reference.
func (e Entry) isCounted() bool { return e&(Present|Special) == Present }

// Exchange makes root current and returns the one that was.
//
// Preconditions: the caller holds the change lock and the tables mutex, and is in
// a read section; both lead to the same leaves; the space has no view.
func (t *Table) Exchange(tok Token, root addr.PFN) (old addr.PFN) {
	t.mustOwn(tok)
	return addr.PFN(t.root.Swap(uint64(root)))
}

// EmptyRoot gives up what a root leads to and keeps the frame.
//
// Preconditions: as Drop; the root is no current one.
func (t *Table) EmptyRoot(root addr.PFN) {
	for i := range uint64(firstSupervisor) {
		if e := bounded(&t.arena, Entry(t.arena.Load(root, i))); e != 0 {
			Drop(&t.arena, t.frames, Dropped{Frame: e.Frame(), Level: rootLevel - 1})
		}
	}
}
