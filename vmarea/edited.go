package vmarea

import (
	"fmt"
	"slices"
	"sync"
)

// editedAreas are what a change edits: the published areas, but for its edits. As long
// as they differ from the base of the published view in few areas, they are that base
// and the differences, as a view is, and neither an edit nor its undoing looks at a
// B-tree. The edit for which there is no room folds the differences into a tree of
// their own, and the next Publish makes a clone of that the base.
//
//	         edited                      published
//	few      base + deltas       ──►     base + a copy of deltas
//	folded   work                ──►     a clone of work, and work is kept
//
// No reader ever sees work. It is Clone's receiver and never its result, and Clone
// writes to its receiver.
type editedAreas struct {
	base   *areaIndex // of the published view
	deltas []delta    // the published view's own until owned
	owned  bool       // deltas is not shared, and has room for maxDeltas

	// work has the areas if folded, and otherwise those of base, or is nil.
	work   *areaIndex
	folded bool

	// before is the view before the published one, to be published again if it has
	// the same base and differences; or nil.
	before *view
}

// reset makes the edited areas those of v.
func (x *editedAreas) reset(v *view) { *x = editedAreas{base: v.base, deltas: v.deltas} }

// revert takes all edits back that are not in v, which is published.
func (x *editedAreas) revert(v *view) {
	if x.folded || !x.owned {
		x.reset(v)
		return
	}
	clear(x.deltas)
	x.deltas = append(x.deltas[:0], v.deltas...)
}

// view returns the edited areas as a view; it ends with the next edit.
func (x *editedAreas) view() view {
	if x.folded {
		return view{base: x.work}
	}
	return view{base: x.base, deltas: x.deltas}
}

func (x *editedAreas) len() int {
	if x.folded {
		return x.work.Len()
	}
	n := x.base.Len()
	for i := range x.deltas {
		switch d := &x.deltas[i]; {
		case d.now == nil:
			n--
		case d.then == nil:
			n++
		}
	}
	return n
}

// edit makes one edit.
func (x *editedAreas) edit(e areaEdit) {
	if !x.folded {
		if !x.owned {
			x.deltas, x.owned = append(make([]delta, 0, maxDeltas), x.deltas...), true
		}
		var fits bool
		if x.deltas, fits = differ(x.deltas, e); fits {
			return
		}
		x.fold()
	}
	x.store(areaKey{e.start, e.now})
}

// cloning orders Clones of a published base: it may be that of several trees, which
// descend from one another by fork. Readers of the base load nothing that Clone stores.
var cloning sync.Mutex

func (x *editedAreas) fold() {
	if x.work == nil {
		cloning.Lock()
		x.work = x.base.Clone()
		cloning.Unlock()
	}
	for _, d := range x.deltas {
		x.store(areaKey{d.start, d.now})
	}
	clear(x.deltas)
	x.deltas, x.folded = x.deltas[:0], true
}

func (x *editedAreas) store(k areaKey) {
	if k.area == nil {
		x.work.Delete(k)
	} else {
		x.work.ReplaceOrInsert(k)
	}
}

// check compares work with what it should hold.
func (x *editedAreas) check() error {
	if x.folded || x.work == nil {
		return nil
	}
	var want []areaKey
	x.base.Ascend(func(k areaKey) bool { want = append(want, k); return true })
	if n := x.work.Len(); n != len(want) {
		return fmt.Errorf("%d areas in the tree that folding begins with, %d in the base", n, len(want))
	}
	i := 0
	x.work.Ascend(func(k areaKey) bool {
		if k != want[i] {
			return false
		}
		i++
		return true
	})
	if i < len(want) {
		return fmt.Errorf("the tree that folding begins with differs from the base at %v", want[i].start)
	}
	return nil
}

// publish returns the edited areas as a view for readers, in place of published.
func (x *editedAreas) publish(published *view) *view {
	if x.folded {
		x.base, x.folded, x.before = x.work.Clone(), false, nil
		return &view{base: x.base, length: x.base.Len()}
	}
	v := x.before
	if v == nil || !slices.Equal(v.deltas, x.deltas) {
		v = newView(len(x.deltas))
		v.base, v.length = x.base, x.len()
		copy(v.deltas, x.deltas)
	}
	x.before = published
	if published.base != x.base {
		x.before = nil // its base would be kept from the collector
	}
	return v
}
