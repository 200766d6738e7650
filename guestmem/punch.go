package guestmem

import (
	"slices"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// Taking pages out of an object that many spaces map goes from the top down:
//
//	object's mutex
//	  mark the pages in the object      faults do not find them any more, and wait
//	  for each space: a change (R1)     sweeps them out of its table, twice
//	  take the pages out, drop them
//	unlock                              who has waited finds an empty page
//
// A space that is forked off one which was not swept yet is in the list by the
// time its parent can be swept, since both need the parent's change lock; so the list
// is read again until it has nobody who was not swept. While pages are marked
// nobody installs them anew, so that one change of each space is enough.

// punched marks a page of an object that is being taken out, beside its frame.
const punched = 1 << 63

// span is a run of pages of an object.
type span struct {
	object   *Object
	first, n uint64
}

// removePages takes the pages of shared areas in r out of their objects.
//
// Errors: as advisedHead; ErrNoMemory, for page tables, with the areas below done.
func (as *AddressSpace) removePages(r addr.Range) error {
	c, err := as.startChange()
	if err != nil {
		return err
	}
	head, rest := advisedHead(r, c.areas.Ascend, AdviceRemove)
	var spans []span
	c.areas.Ascend(head.Start, func(a *vmarea.Area) bool {
		part := a.Intersect(head)
		if part.IsEmpty() {
			return false
		}
		o := a.Backing.(*Object)
		o.ref()
		spans = append(spans, span{o, a.OffsetOf(part.Start) / addr.PageSize, part.Len() / addr.PageSize})
		return true
	})
	c.abort()
	for _, s := range spans {
		if err == nil {
			err = s.punch()
		}
		s.object.unref()
	}
	if err != nil {
		return err
	}
	return rest
}

// punch takes the pages out, of the object and of all page tables.
//
// Errors: ErrNoMemory, with no page taken out.
func (s span) punch() error {
	o := s.object
	if s.first >= o.pages() {
		return nil
	}
	s.n = min(s.n, o.pages()-s.first)
	o.punching.Lock()
	defer o.punching.Unlock()
	found := false
	o.eachSlot(s.first, s.n, func(p *atomic.Uint64) {
		if f := p.Load(); f != 0 {
			p.Store(f | punched) // only punching changes what is there
			found = true
		}
	})
	if !found {
		return nil
	}
	if err := s.sweepSpaces(); err != nil {
		o.eachSlot(s.first, s.n, func(p *atomic.Uint64) {
			if f := p.Load(); f&punched != 0 {
				p.Store(f &^ punched)
			}
		})
		return err
	}
	o.eachSlot(s.first, s.n, func(p *atomic.Uint64) {
		f := p.Load()
		if f&punched == 0 {
			return
		}
		p.Store(0)
		o.mem.objectPages.Dec()
		if g := addr.PFN(f &^ punched); o.mem.pool.Drop(g) {
			o.mem.pool.FreeData(g)
		}
	})
	return nil
}

// sweepSpaces sweeps the pages out of the tables of every space.
func (s span) sweepSpaces() error {
	done := map[*AddressSpace]bool{}
	for {
		spaces := slices.DeleteFunc(s.object.mem.sortedSpaces(), func(as *AddressSpace) bool { return done[as] })
		if len(spaces) == 0 {
			return nil
		}
		for _, as := range spaces {
			if err := s.sweep(as); err != nil {
				return err
			}
			done[as] = true
		}
	}
}

// sweep sweeps them out of one space's.
func (s span) sweep(as *AddressSpace) error {
	c, err := as.startChange()
	if err != nil {
		return nil // it is closed, and has none
	}
	if as.objects[s.object] == 0 {
		c.abort()
		return nil
	}
	var parts []addr.Range
	c.areas.Ascend(0, func(a *vmarea.Area) bool {
		if a.Backing == vmarea.Backing(s.object) {
			first := a.Offset / addr.PageSize
			from, to := max(first, s.first), min(first+a.Len()/addr.PageSize, s.first+s.n)
			if from < to {
				start := a.Start + addr.GVA((from-first)*addr.PageSize)
				parts = append(parts, addr.Range{Start: start, End: start + addr.GVA((to-from)*addr.PageSize)})
			}
		}
		return true
	})
	z := sweptPool.Get().(*swept)
	for _, r := range parts {
		c.areas.StartWrite(r)
	}
	sweep := func() {
		for _, r := range parts {
			if err == nil {
				err = c.inParts(r, z, presentTables, as.pt.PlanZapPages, as.pt.ZapPages)
			}
		}
	}
	sweep()
	as.mem.domain.Barrier(as.id)
	if before := len(z.zapped.Leaves); err == nil {
		if sweep(); len(z.zapped.Leaves) > before {
			as.mem.domain.Barrier(as.id)
		}
	}
	c.cleanViews(z)
	c.publish()
	c.drop(z)
	c.end()
	return err
}

// eachSlot calls fn where pages of a run are kept, if there is a place for them.
func (o *Object) eachSlot(first, n uint64, fn func(*atomic.Uint64)) {
	o.root.eachSlot(o.high-1, 0, first, first+n, fn)
}

func (n *pageNode) eachSlot(level int, at, first, end uint64, fn func(*atomic.Uint64)) {
	size := uint64(1) << (nodeBits * level)
	for i := range uint64(nodeSize) {
		from := at + i*size
		if from+size <= first || from >= end {
			continue
		}
		if level == 0 {
			fn(&n.pages[i])
		} else if kid := n.kids[i].Load(); kid != nil {
			kid.eachSlot(level-1, from, first, end, fn)
		}
	}
}
