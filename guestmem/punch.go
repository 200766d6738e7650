package guestmem

import (
	"fmt"
	"iter"
	"slices"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
	"github.com/guestmm/guestmm/pagetable"
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
// is read again until it has nobody who was not swept. So is a space that was rolled
// back since to a snapshot that had not been. While pages are marked
// nobody installs them anew, so that one change of each space is enough.

// span is a run of pages of an object, and what is to become of them.
type span struct {
	object   *Object
	first, n uint64
	kind     sweepKind
	stock    *tableStock // nil, or of frames for the tables that the sweeps need
}

// sweepKind is what a sweep takes away.
type sweepKind int

const (
	sweepPages  sweepKind = iota // the object's pages; private copies stay
	sweepCopies                  // private copies too
	sweepWrites                  // the permission to write to the object's pages, and nothing else
)

// removePages takes the pages of shared areas in r out of their objects.
//
// Errors: as advisedHead; ErrNoMemory, for page tables, and as checkHole, with the areas
// below done.
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
		if e := checkHole(a.OffsetOf(part.Start), part.Len()); e != nil {
			rest = e
			return false
		}
		o := a.Backing.(*Object)
		o.ref()
		spans = append(spans, span{object: o, first: a.OffsetOf(part.Start) / addr.PageSize, n: part.Len() / addr.PageSize})
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

// checkHole checks a hole as fallocate(2) does: offsets are signed, and an area that has
// grown may show what lies beyond them all.
func checkHole(off, length uint64) error {
	switch {
	case off > maxOffset:
		return fmt.Errorf("offset %#x: %w", off, ErrInvalid)
	case length > maxOffset-off:
		return fmt.Errorf("a hole of %#x bytes at %#x: %w", length, off, errTooBig)
	}
	return nil
}

// punch takes the pages out, of the object and of all page tables, and writes zeroes
// to the source where it has them.
//
// Errors: ErrNoMemory, ErrIO, with no page taken out.
func (s span) punch() error {
	o := s.object
	o.syncing.Lock()
	defer o.syncing.Unlock()
	o.punching.Lock()
	defer o.punching.Unlock()
	if s.first >= o.pages() {
		return nil
	}
	s.n = min(s.n, o.pages()-s.first)
	o.startRemoving(s)
	defer o.startRemoving(span{})
	found := s.mark()
	var err error
	if found {
		err = s.sweepSpaces()
	}
	if err == nil {
		err = s.zeroSource()
	}
	if err != nil {
		s.unmark()
		return err
	}
	o.noteEmptied(s)
	s.remove()
	return nil
}

// startRemoving has fills of the span wait, and those under way start over.
func (o *Object) startRemoving(s span) {
	o.mu.Lock()
	o.cuts++
	o.removing = s
	o.mu.Unlock()
}

var zeroRun [fillPages * addr.PageSize]byte

// zeroSource writes zeroes where the sink has something.
func (s span) zeroSource() error {
	o := s.object
	if o.host != nil {
		if err := sys.PunchHole(o.host, s.first*addr.PageSize, s.n*addr.PageSize); err != nil {
			return o.ioError("punch a hole in", s.first*addr.PageSize, err)
		}
	}
	if o.dst == nil {
		return nil
	}
	_, err := o.putZeroes(s.first*addr.PageSize, min((s.first+s.n)*addr.PageSize, o.reached))
	if err != nil {
		s.markChanged() // what was written is not what the pages hold, which stay
	}
	return err
}

// markChanged marks the pages of the span that are there as changed.
func (s span) markChanged() {
	s.object.eachSlot(s.first, s.n, func(_ uint64, p *atomic.Uint64) {
		for f := p.Load(); f != 0 && f&changed == 0 && !p.CompareAndSwap(f, f|changed); {
			f = p.Load()
		}
	})
}

// sweepSpaces sweeps the pages out of the tables of every space.
func (s span) sweepSpaces() error {
	type swept struct{ rollbacks uint64 }
	done := map[*AddressSpace]swept{}
	for {
		spaces := slices.DeleteFunc(s.object.mem.sortedSpaces(), func(as *AddressSpace) bool {
			d, ok := done[as]
			return ok && d.rollbacks == as.rollbacks.Load()
		})
		if len(spaces) == 0 {
			return nil
		}
		for _, as := range spaces {
			// Counted before: a rollback beside the sweep has it done again.
			before := swept{as.rollbacks.Load()}
			if punchHook != nil {
				punchHook(as)
			}
			if err := s.sweep(as); err != nil {
				return err
			}
			done[as] = before
		}
	}
}

// punchHook is called before a space is swept. Only tests set it.
var punchHook func(*AddressSpace)

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
	c.stock = s.stock
	parts := s.partsIn(c)
	if s.kind == sweepWrites {
		return s.withhold(as, c, parts)
	}
	z := sweptPool.Get().(*swept)
	private := false
	for _, p := range parts {
		c.areas.StartWrite(p.Range)
		private = private || !p.shared
	}
	if private && s.kind == sweepPages {
		// A copy that replaces a page beside the first sweep must not be swept for it.
		as.mem.domain.Barrier(as.id)
	}
	zap := as.pt.ZapPages
	if s.kind == sweepPages {
		zap = as.pt.ZapMapped
	}
	sweep := func() {
		for _, p := range parts {
			for r := range s.swept(as, p) {
				if sweepHook != nil {
					sweepHook()
				}
				if err == nil {
					err = c.inParts(r, z, presentTables, as.pt.PlanZapPages, zap)
				}
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

// partsIn returns where a space maps the span.
func (s span) partsIn(c *changeUnderWay) (parts []mappedPart) {
	c.areas.Ascend(0, func(a *vmarea.Area) bool {
		if a.Backing == vmarea.Backing(s.object) {
			first := a.Offset / addr.PageSize
			from, to := max(first, s.first), min(first+a.Len()/addr.PageSize, s.first+s.n)
			if from < to {
				start := a.Start + addr.GVA((from-first)*addr.PageSize)
				end := start + addr.GVA((to-from)*addr.PageSize)
				parts = append(parts, mappedPart{addr.Range{Start: start, End: end}, from, a.Flags&vmarea.Shared != 0})
			}
		}
		return true
	})
	return parts
}

// sweepHook is called before pages are swept that were looked at. Only tests set it.
var sweepHook func()

// mappedPart is where a space maps part of a span.
type mappedPart struct {
	addr.Range
	first  uint64 // page of the object at its start
	shared bool
}

// swept yields what is to be swept of a part: all of it, or, where private copies
// stay, the runs that show the object's own pages. Nobody installs anything there.
func (s span) swept(as *AddressSpace, p mappedPart) iter.Seq[addr.Range] {
	return func(yield func(addr.Range) bool) {
		if p.shared || s.kind == sweepCopies {
			yield(p.Range)
			return
		}
		var run addr.Range
		for at := p.Start; at < p.End; at += addr.PageSize {
			f, _ := as.frameAt(at)
			slot := s.object.find(p.first + uint64(at-p.Start)/addr.PageSize)
			if f == 0 || slot == nil || addr.PFN(slot.Load()&^pageMarks) != f {
				continue
			}
			if run.End != at {
				if !run.IsEmpty() && !yield(run) {
					return
				}
				run.Start = at
			}
			run.End = at + addr.PageSize
		}
		if !run.IsEmpty() {
			yield(run)
		}
	}
}

// frameAt returns the frame of a page, if it is there.
func (as *AddressSpace) frameAt(gva addr.GVA) (f addr.PFN, ok bool) {
	a := as.borrow()
	defer a.giveBack()
	a.h.Enter(as.id)
	defer a.h.Exit()
	if e := as.pt.Find(gva).Entry; e.Has(pagetable.Present) {
		return e.Frame(), true
	}
	return 0, false
}

// withhold takes the permission to write from the leaves of shared areas: the next
// store is a fault, and notes that the page has changed.
func (s span) withhold(as *AddressSpace, c *changeUnderWay, parts []mappedPart) (err error) {
	z := sweptPool.Get().(*swept)
	parts = slices.DeleteFunc(parts, func(p mappedPart) bool { return !p.shared })
	for _, p := range parts {
		c.areas.StartWrite(p.Range)
	}
	sweep := func() {
		for _, p := range parts {
			if err == nil {
				err = as.sweepPermissions(c, p.Range, pagetable.User, z)
			}
		}
	}
	sweep()
	as.mem.domain.Barrier(as.id)
	if before := len(z.frames); err == nil {
		if sweep(); len(z.frames) > before {
			as.mem.domain.Barrier(as.id)
		}
	}
	c.cleanViews(z)
	c.publish()
	for _, d := range z.zapped.Tables {
		as.mem.drop(d)
	}
	c.recycle(z)
	c.end()
	return err
}
