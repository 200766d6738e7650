package vmarea

// A guest that goes to and fro between two layouts (memory protected and back for a
// collector or a translator, a buffer mapped and unmapped) would have three or four
// areas and two views made for each round, and the Go collector run for them: a third
// of what protecting a page costs. So the areas that were detached last, and the view
// before the published one, are used again where the same is wanted once more.
//
// Why that is no edit of what readers see (R2, R3). Areas and views are immutable but
// for an area's lock sequence, and what comes back is equal to what would be made. Its
// lock sequence is one that the tree has had and, but within the change that stored it,
// has no longer: sequences only grow, so the area is as unlocked as one that was just
// made, with sequence 0. A reader that still has the old sequence may take it for
// marked: false-locked, and it waits for the change. A reader that came to the area
// before it was detached, and is still in it, reads what is true again; the change
// that marks the area next waits for it as for any other.
//
// Within the change that has marked it, the area comes back marked, as one does that a
// change leaves as it is: its lookups wait for the end of the change.

// detachedAreas are the areas that edits of a tree took out last. Only what is
// anonymous and unwatched, so that nothing is kept from the collector but a few
// areas. Guarded by the change lock.
type detachedAreas [4]*Area

// add remembers an area that is taken out, in place of the oldest.
func (d *detachedAreas) add(a *Area) {
	if a.Backing != nil || a.Watch != nil {
		return
	}
	d[3], d[2], d[1], d[0] = d[2], d[1], d[0], a
}

// take returns an area of the tree id that is what p is, or nil, and forgets it.
func (d *detachedAreas) take(p *piece, id treeID) *Area {
	for i, a := range d {
		if a != nil && a.Start == p.Start && a.owner == id && p.is(a) {
			d[i] = nil
			return a
		}
	}
	return nil
}
