package vmarea

import "github.com/guestmm/guestmm/guestmem/addr"

// replace makes the hole that starts at start into h. They overlap or touch,
// and no other hole is between, so that the order stays.
func (x *holeIndex) replace(start addr.GVA, h addr.Range) {
	x.root = x.own(x.root)
	x.replaceIn(x.root, start, h)
}

func (x *holeIndex) replaceIn(n *holeNode, start addr.GVA, h addr.Range) {
	i := n.lastAtOrBelow(start)
	if n.kids == nil {
		n.start[i], n.gap[i] = h.Start, h.Len()
		return
	}
	x.replaceIn(x.ownKid(n, i), start, h)
	n.refresh(i)
}

// insert adds a hole.
func (x *holeIndex) insert(h addr.Range) {
	x.root = x.own(x.root)
	right := x.insertIn(x.root, h)
	if right == nil {
		return
	}
	left := x.root
	x.root = x.newNode(false)
	x.root.n = 2
	x.root.kids[0], x.root.kids[1] = left, right
	x.root.refresh(0)
	x.root.refresh(1)
}

// insertIn adds h below n. If n overflows, its upper part is returned, for the
// caller to put behind n.
func (x *holeIndex) insertIn(n *holeNode, h addr.Range) (right *holeNode) {
	i := n.lastAtOrBelow(h.Start)
	if n.kids == nil {
		return x.put(n, i+1, h.Start, h.Len(), nil)
	}
	i = max(i, 0)
	split := x.insertIn(x.ownKid(n, i), h)
	n.refresh(i)
	if split == nil {
		return nil
	}
	return x.put(n, i+1, split.start[0], split.longest(), split)
}

// put makes an entry the i-th of n. If n is full it is split first, near the
// end at which entries are being added, or else in the middle; the upper part
// is returned.
func (x *holeIndex) put(n *holeNode, i int, start addr.GVA, gap uint64, kid *holeNode) (right *holeNode) {
	if n.n == holeFan {
		cut := holeFan / 2
		switch {
		case i < holeMin-1: // the lower part has holeMin entries with the new one
			cut = holeMin - 1
		case i > holeFan-holeMin+1:
			cut = holeFan - holeMin + 1
		}
		right = x.newNode(n.kids == nil)
		right.take(0, n, cut, holeFan)
		n.truncate(cut)
		if i > cut {
			n, i = right, i-cut
		}
	}
	n.open(i)
	n.start[i], n.gap[i] = start, gap
	if n.kids != nil {
		n.kids[i] = kid
	}
	return right
}

// remove takes out the hole that starts at start.
func (x *holeIndex) remove(start addr.GVA) {
	x.root = x.own(x.root)
	x.removeIn(x.root, start)
	for x.root.kids != nil && x.root.n == 1 {
		x.root = x.root.kids[0]
	}
}

func (x *holeIndex) removeIn(n *holeNode, start addr.GVA) {
	i := n.lastAtOrBelow(start)
	if n.kids == nil {
		n.close(i)
		return
	}
	kid := x.ownKid(n, i)
	x.removeIn(kid, start)
	if kid.n >= holeMin {
		n.refresh(i)
		return
	}
	x.fill(n, min(i, n.n-2))
}

// fill makes kids i and i+1 of n, of which one has too few entries, into one
// node, or if they have too many for that, into two of the same size.
func (x *holeIndex) fill(n *holeNode, i int) {
	left, right := x.ownKid(n, i), x.ownKid(n, i+1)
	total := left.n + right.n
	half := total / 2
	switch {
	case total <= holeFan-holeMin: // some room, lest the next insert splits it again
		left.take(left.n, right, 0, right.n)
		n.close(i + 1)
		n.refresh(i)
		return
	case left.n < half:
		k := half - left.n
		left.take(left.n, right, 0, k)
		right.closeN(0, k)
	case left.n > half:
		k := left.n - half
		right.openN(0, k)
		right.copyFrom(0, left, half, left.n)
		left.truncate(half)
	}
	n.refresh(i)
	n.refresh(i + 1)
}

func (x *holeIndex) newNode(leaf bool) *holeNode {
	n := &holeNode{owner: x.owner}
	if !leaf {
		n.kids = new([holeFan]*holeNode)
	}
	return n
}

// own returns n if this index may edit it, else a copy.
func (x *holeIndex) own(n *holeNode) *holeNode {
	if n.owner == x.owner {
		return n
	}
	c := *n
	c.owner = x.owner
	if n.kids != nil {
		kids := *n.kids
		c.kids = &kids
	}
	return &c
}

// ownKid makes kid i of n one that this index may edit.
func (x *holeIndex) ownKid(n *holeNode, i int) *holeNode {
	n.kids[i] = x.own(n.kids[i])
	return n.kids[i]
}

// refresh makes entry i of n say what is below it.
func (n *holeNode) refresh(i int) {
	n.start[i], n.gap[i] = n.kids[i].start[0], n.kids[i].longest()
}

// copyFrom copies entries [from, to) of o to where entry at is.
func (n *holeNode) copyFrom(at int, o *holeNode, from, to int) {
	copy(n.start[at:], o.start[from:to])
	copy(n.gap[at:], o.gap[from:to])
	if n.kids != nil {
		copy(n.kids[at:], o.kids[from:to])
	}
}

// take copies entries [from, to) of o behind the last of n, which is at.
func (n *holeNode) take(at int, o *holeNode, from, to int) {
	n.copyFrom(at, o, from, to)
	n.n = at + to - from
}

// open makes room for entry i.
func (n *holeNode) open(i int) { n.openN(i, 1) }

func (n *holeNode) openN(i, k int) {
	n.copyFrom(i+k, n, i, n.n)
	n.n += k
}

// close takes entry i out.
func (n *holeNode) close(i int) { n.closeN(i, 1) }

func (n *holeNode) closeN(i, k int) {
	n.copyFrom(i, n, i+k, n.n)
	n.truncate(n.n - k)
}

// truncate drops the entries from to on.
func (n *holeNode) truncate(to int) {
	if n.kids != nil {
		clear(n.kids[to:n.n])
	}
	n.n = to
}
