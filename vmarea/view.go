package vmarea

import (
	"slices"

	"github.com/google/btree"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// indexDegree is the degree of the area B-tree: nodes of 17 to 35 areas. 18 is
// the smallest degree at which the slices of a node grow to a size that a full
// node just fits in (18 entries, the size class of 17, doubled); one lower,
// and nodes that were filled in order keep half as much again unused.
const indexDegree = 18

// spareNodes is how many B-tree nodes a tree keeps for reuse: those that its
// edits drop and that no published tree shares.
const spareNodes = 8

// maxDeltas is how many areas a view may differ from its base in. A search
// looks at all of them, and one publish in about as many pays for a Clone and
// the copies of nodes that follow it. A map and its undoing cancel out, as does
// whatever is done to the same few areas again and again, and pay never.
const maxDeltas = 8

// areaKey is an entry of the area index. It is a value with the key beside the
// pointer, so that a pivot needs no allocation and a comparison no other
// cache line.
type areaKey struct {
	start addr.GVA
	area  *Area
}

func keyLess(a, b areaKey) bool { return a.start < b.start }

type areaIndex = btree.BTreeG[areaKey]

func newAreaIndex() *areaIndex {
	return btree.NewWithFreeListG(indexDegree, keyLess, btree.NewFreeListG[areaKey](spareNodes))
}

// view is the areas as they are published: a tree, and the few areas in which
// they differ from it.
//
//	base     [1,2) A   [4,6) B   [8,9) C        shared by many views
//	deltas             4: gone   [5,6) D        this view's own
//	areas    [1,2) A   [5,6) D   [8,9) C
//
// A Clone of the tree at each publish would do as well, but then each change
// copies the nodes on the way to its edits: 2.0 µs for a map and unmap beside
// 1 000 areas, where this takes 0.8. What it costs: the base keeps up to
// maxDeltas detached areas from the garbage collector until it is replaced.
//
// It is immutable, with all that it leads to, but for the areas' lock
// sequences. Its base is a clone that nobody edits.
type view struct {
	base   *areaIndex
	length int     // areas in the view
	deltas []delta // in address order; at most maxDeltas
}

// delta says that under start there is now, where the base has then; nil is no
// area. They are not the same.
type delta struct {
	start     addr.GVA
	now, then *Area
}

// find returns the area that contains gva, or nil.
func (v *view) find(gva addr.GVA) (found *Area) {
	for i := len(v.deltas) - 1; i >= 0; i-- {
		if d := &v.deltas[i]; d.start <= gva && d.now != nil {
			if d.now.End > gva {
				return d.now
			}
			break
		}
	}
	v.base.DescendLessOrEqual(areaKey{start: gva}, func(k areaKey) bool {
		if v.differsAt(k.start) {
			return true
		}
		found = k.area
		return false
	})
	if found != nil && found.End <= gva {
		return nil
	}
	return found
}

// ascend calls fn for the areas that end above from, in address order, until
// fn returns false.
func (v *view) ascend(from addr.GVA, fn func(*Area) bool) {
	if a := v.find(from); a != nil {
		if !fn(a) {
			return
		}
		from = a.End
	}
	v.ascendFrom(from, fn)
}

// ascendFrom is ascend for the areas that start at or above from.
func (v *view) ascendFrom(from addr.GVA, fn func(*Area) bool) {
	rest := v.deltas
	for len(rest) > 0 && rest[0].start < from {
		rest = rest[1:]
	}
	stopped := false
	// upTo passes the deltas that start at or below gva to fn.
	upTo := func(gva addr.GVA) {
		for !stopped && len(rest) > 0 && rest[0].start <= gva {
			stopped = rest[0].now != nil && !fn(rest[0].now)
			rest = rest[1:]
		}
	}
	v.base.AscendGreaterOrEqual(areaKey{start: from}, func(k areaKey) bool {
		upTo(k.start)
		if !stopped && !v.differsAt(k.start) {
			stopped = !fn(k.area)
		}
		return !stopped
	})
	upTo(^addr.GVA(0))
}

func (v *view) differsAt(start addr.GVA) bool {
	for i := range v.deltas {
		if v.deltas[i].start == start {
			return true
		}
	}
	return false
}

// newView returns a view with room for n differences, in one object that is about as
// large as it has to be: what undoes a Map leaves none, and takes 48 bytes where
// one with room for all would take 240.
func newView(n int) *view {
	const some = maxDeltas / 2
	switch {
	case n == 0:
		return new(view)
	case n <= some:
		w := new(struct {
			view
			room [some]delta
		})
		w.deltas = w.room[:n]
		return &w.view
	}
	w := new(struct {
		view
		room [maxDeltas]delta
	})
	w.deltas = w.room[:n]
	return &w.view
}

// differ makes one edit in deltas, which has room for maxDeltas. It returns false if
// it would take one more.
func differ(deltas []delta, e areaEdit) ([]delta, bool) {
	i := 0
	for i < len(deltas) && deltas[i].start < e.start {
		i++
	}
	if i == len(deltas) || deltas[i].start != e.start {
		if len(deltas) == maxDeltas {
			return deltas, false
		}
		// Nothing differed here: what was there is what base has.
		deltas = append(deltas, delta{})
		copy(deltas[i+1:], deltas[i:])
		deltas[i] = delta{e.start, e.now, e.old}
		return deltas, true
	}
	deltas[i].now = e.now
	if deltas[i].now == deltas[i].then {
		deltas = slices.Delete(deltas, i, i+1)
	}
	return deltas, true
}
