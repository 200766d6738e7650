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
	r.t, r.within, r.own, r.like = nil, nil, nil, nil
	reverters.Put(r)
}

// reverter is a Revert under way. It is pooled for the sake of its arrays, and has
// its edits as fields so that a table costs no allocation.
type reverter struct {
	t      *Table
	within func(func())

	own, like *[arena.EntriesPerTable]uint64 // of the leaf table being reverted
	changed   [arena.EntriesPerTable]uint16  // the first n: entries of it that differ
	n         int
	gained    [arena.EntriesPerTable]addr.PFN
	lost      [arena.EntriesPerTable]addr.PFN
	nLost     int
	edit      func() // putLeaves, made once

	cut [rootLevel + 1][]Dropped // subtrees cut off, at each level
}

var reverters = sync.Pool{New: func() any {
	r := new(reverter)
	r.edit = r.putLeaves
	return r
}}

// table reverts an own table above the leaves. It returns false, with the table
// as good as before or after, if the two differ in a 2 MiB leaf: who leads to it
// then exchanges the table as a whole.
func (r *reverter) table(own, like addr.PFN, level int) bool {
	t := r.t
	n := uint64(arena.EntriesPerTable)
	if level == rootLevel {
		n = firstSupervisor
	}
	t.mustBeLive(like)
	t.mustBeLive(own)
	src, dst := t.arena.Table(like), t.arena.Table(own)
	r.cut[level] = r.cut[level][:0]
	defer r.dropCut(level)
	for i := range n {
		held, wanted := atomic.LoadUint64(&dst[i]), atomic.LoadUint64(&src[i])
		if (held^wanted)&^uint64(Writable|Accessed) == 0 {
			continue // nothing on both sides, or the same table: a shared one
		}
		e, k := bounded(&t.arena, Entry(held)), bounded(&t.arena, Entry(wanted))
		if (e | k).Has(Huge) {
			return false
		}
		if e.Has(Present|Writable) && k != 0 && r.below(e.Frame(), k.Frame(), level-1) {
			continue
		}
		r.within(func() {
			if k != 0 {
				r.gained[0] = k.Frame()
				t.frames.Share(r.gained[:1])
			}
			atomic.StoreUint64(&dst[i], uint64(k&^Writable))
		})
		if e != 0 {
			r.cut[level] = append(r.cut[level], Dropped{Frame: e.Frame(), Level: level - 1})
		}
	}
	return true
}

func (r *reverter) dropCut(level int) {
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

// leaves reverts an own leaf table.
func (r *reverter) leaves(own, like addr.PFN) {
	t := r.t
	t.mustBeLive(like)
	t.mustBeLive(own)
	src, dst := t.arena.Table(like), t.arena.Table(own)
	n := 0
	for i := range dst {
		held, wanted := atomic.LoadUint64(&dst[i]), atomic.LoadUint64(&src[i])
		diff := (held ^ wanted) &^ uint64(Accessed|Dirty)
		if diff == 0 && held&uint64(Writable) == 0 || diff == uint64(Writable) && held&uint64(Writable|Shared) == 0 {
			continue
		}
		r.changed[n] = uint16(i)
		n++
	}
	if n == 0 {
		return
	}
	r.own, r.like, r.n = dst, src, n
	r.within(r.edit)
	if r.nLost > 0 {
		t.frames.DropData(r.lost[:r.nLost])
	}
}

// putLeaves puts the leaves that differ back. A private one is read-only then,
// since the snapshot has its frame too; one of a shared area allows what it did.
func (r *reverter) putLeaves() {
	a := &r.t.arena
	nGained, nLost := 0, 0
	for _, i := range r.changed[:r.n] {
		e, k := leafOf(a, Entry(r.own[i])), leafOf(a, Entry(atomic.LoadUint64(&r.like[i])))
		if k.Has(Present) && !k.Has(Shared) {
			k &^= Writable
		}
		if !e.Has(Present) || !k.Has(Present) || e.Frame() != k.Frame() {
			if k.Has(Present) {
				r.gained[nGained] = k.Frame()
				nGained++
			}
			if e.Has(Present) {
				r.lost[nLost] = e.Frame()
				nLost++
			}
		}
		atomic.StoreUint64(&r.own[i], uint64(k))
	}
	r.t.frames.Share(r.gained[:nGained])
	r.nLost = nLost
}

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
