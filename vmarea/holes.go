package vmarea

import (
	"fmt"
	"math/bits"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The hole index answers "where does this length fit" without looking at the
// areas: a B+tree of the holes, in address order, in which every entry carries
// the longest hole below it.
//
//	             start  0x1000  0x9000            inner: lowest start below,
//	             gap    0x3000  0x5000                   longest hole below
//	              ╱                  ╲
//	start 0x1000 0x6000        start 0x9000 0x20000      leaf: the holes
//	gap   0x2000 0x3000        gap   0x5000 0x1000
//
// Only the holder of the change lock looks at it, so that it is edited in
// place: no copies of the path, nothing for the garbage collector. A change
// that is aborted replays its edits backwards. Nodes carry who may edit them:
// fork gives both sides a new identity, and each then copies the nodes that it
// edits, once.
//
// A B+tree of 16 and not a balanced binary tree: 22 to 26 bytes per hole, where
// a treap's node takes 64, and 4 nodes on the way to one of 30 000, not 15.
type holeIndex struct {
	owner uint64 // who may edit a node in place: nodes that have this owner
	root  *holeNode
}

const (
	holeFan = 16
	// holeMin is the fewest entries of a node other than the root. A quarter,
	// so that a split near either end may leave the node behind it nearly
	// full: mapping downwards, or upwards, does just that.
	holeMin = holeFan / 4
)

// holeNode is 280 bytes, in a size class of 288.
type holeNode struct {
	owner uint64
	n     int
	kids  *[holeFan]*holeNode // nil in a leaf
	start [holeFan]addr.GVA   // of the hole; of the lowest hole below kids[i]
	gap   [holeFan]uint64     // length of the hole; of the longest hole below kids[i]
}

func newHoleIndex(bounds addr.Range) holeIndex {
	x := holeIndex{owner: newID()}
	x.root = x.newNode(true)
	x.root.n = 1
	x.root.start[0], x.root.gap[0] = bounds.Start, bounds.Len()
	return x
}

// clone returns a second index with the same holes, in constant time. Both
// copy what they edit from here on.
func (x *holeIndex) clone() holeIndex {
	x.owner = newID()
	return holeIndex{owner: newID(), root: x.root}
}

// occupy takes r, which lies in one hole, out of it.
func (x *holeIndex) occupy(r addr.Range) {
	h, ok := x.find(r.Start)
	if !ok || !h.ContainsRange(r) {
		panic(fmt.Sprintf("vmarea: %v is not free", r))
	}
	switch {
	case h == r:
		x.remove(h.Start)
	case h.Start == r.Start:
		x.replace(h.Start, addr.Range{Start: r.End, End: h.End})
	default:
		x.replace(h.Start, addr.Range{Start: h.Start, End: r.Start})
		if r.End < h.End {
			x.insert(addr.Range{Start: r.End, End: h.End})
		}
	}
}

// release makes r, in which there is no hole, part of one.
func (x *holeIndex) release(r addr.Range) {
	prev, okPrev := x.find(r.Start)
	next, okNext := x.find(r.End)
	if okPrev && prev.End > r.Start || okNext && next.Start < r.End && next != prev {
		panic(fmt.Sprintf("vmarea: part of %v is free already", r))
	}
	joinsPrev := okPrev && prev.End == r.Start
	joinsNext := okNext && next.Start == r.End
	switch {
	case joinsPrev && joinsNext:
		x.remove(next.Start)
		x.replace(prev.Start, addr.Range{Start: prev.Start, End: next.End})
	case joinsPrev:
		x.replace(prev.Start, addr.Range{Start: prev.Start, End: r.End})
	case joinsNext:
		x.replace(next.Start, addr.Range{Start: r.Start, End: next.End})
	default:
		x.insert(r)
	}
}

// find returns the highest hole that starts at or below gva.
func (x *holeIndex) find(gva addr.GVA) (addr.Range, bool) {
	n := x.root
	i := n.lastAtOrBelow(gva)
	if i < 0 {
		return addr.Range{}, false
	}
	for n.kids != nil {
		n = n.kids[i]
		i = n.lastAtOrBelow(gva) // not -1: start[i] above is this node's lowest
	}
	return n.hole(i), true
}

// firstAbove returns the lowest hole that ends above gva.
func (x *holeIndex) firstAbove(gva addr.GVA) (addr.Range, bool) {
	if h, ok := x.find(gva); ok && h.End > gva {
		return h, true
	}
	var later *holeNode // holds the next hole, if the leaf that gva leads to does not
	n := x.root
	for {
		i := n.lastAtOrBelow(gva) + 1
		if n.kids == nil {
			if i < n.n {
				return n.hole(i), true
			}
			break
		}
		if i < n.n {
			later = n.kids[i]
		}
		n = n.kids[max(i-1, 0)]
	}
	if later == nil {
		return addr.Range{}, false
	}
	for later.kids != nil {
		later = later.kids[0]
	}
	return later.hole(0), true
}

func (n *holeNode) hole(i int) addr.Range {
	return addr.Range{Start: n.start[i], End: n.start[i] + addr.GVA(n.gap[i])}
}

// lastAtOrBelow returns the index of the last entry that starts at or below
// gva, or -1. It counts instead of halving: 16 subtractions without a branch
// take half the time of 4 branches that the processor cannot predict.
func (n *holeNode) lastAtOrBelow(gva addr.GVA) int {
	above := uint64(0)
	for _, s := range n.start[:n.n] {
		_, borrow := bits.Sub64(uint64(gva), uint64(s), 0)
		above += borrow
	}
	return n.n - 1 - int(above)
}

// longest returns the longest gap in the node.
func (n *holeNode) longest() (gap uint64) {
	for _, g := range n.gap[:n.n] {
		gap = max(gap, g)
	}
	return gap
}
