package guestmem

import (
	"slices"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// A change that takes away goes through R1's steps, of which this file has the
// middle: mark, sweep, grace period, sweep again, views clean. Why in that
// order: a lookup whose section began before the mark may still install after
// the first sweep, but it has ended when the grace period ends, so that the
// second sweep finds what it left; a lookup whose section begins after the mark
// is refused. A copier that walked to an entry before it was swept has ended
// too. What only the second sweep found may have been walked to since, by a
// copier, so it costs one more grace period (models/change.pml).

// swept is what a change has taken out of the tables so far.
type swept struct {
	zapped *pagetable.Zapped
	frames []addr.PFN // scratch: whose translations views may hold
}

// reserve makes room for what sweeping one leaf table can find.
func (s *swept) reserve() {
	s.frames = slices.Grow(s.frames, arena.EntriesPerTable)
	s.zapped.Tables = slices.Grow(s.zapped.Tables, 2*pagetable.MaxPathTables)
}

var sweptPool = sync.Pool{New: func() any { return &swept{zapped: pagetable.NewZapped()} }}

// changeUnderWay is a change of areas together with the token that it holds.
type changeUnderWay struct {
	as    *AddressSpace
	tok   pagetable.Token
	areas *vmarea.Change

	stock *tableStock // nil, or where frames for tables are taken from first

	notices []*notice // whom it tells, and
	wakes   []waking  // who may go on, when it has ended
}

// startChange begins a change.
//
// Errors: ErrClosed.
func (as *AddressSpace) startChange() (*changeUnderWay, error) {
	// So short that it is inlined, and the change lies on its caller's stack.
	c := &changeUnderWay{as: as}
	return c, c.start()
}

func (c *changeUnderWay) start() error {
	tok, err := c.as.lockChange()
	if err != nil {
		return err
	}
	c.tok, c.areas = tok, c.as.tree.StartChange()
	return nil
}

// abort ends the change with nothing changed.
func (c *changeUnderWay) abort() {
	c.withdraw()
	c.wakes = nil
	c.areas.Abort()
	c.as.pt.UnlockChange(c.tok)
}

// publish makes the edited areas the areas, and lets lookups pass again.
func (c *changeUnderWay) publish() {
	c.areas.Publish()
	c.areas.EndWriteAll()
}

// end ends a change that was published.
func (c *changeUnderWay) end() { c.as.pt.UnlockChange(c.tok) }

// zap takes away all pages in r, and the tables in hole, and returns once
// nobody can reach any of it: no lookup, no copier, no view. What it took out
// is to be dropped by the caller, after publishing. On an error nothing was
// taken away.
//
// Preconditions: r is not empty; the areas in r are what the caller has edited
// away, replaced or is keeping empty; none is left in hole but in r.
func (c *changeUnderWay) zap(r, hole addr.Range) (*swept, error) {
	as := c.as
	c.areas.StartWrite(r)
	s := sweptPool.Get().(*swept)
	if err := c.firstZap(r, hole, s); err != nil {
		c.recycle(s)
		return nil, err
	}
	if invariants.Enabled {
		invariants.MayYield()
	}
	as.mem.domain.Barrier(as.id)
	if invariants.Enabled {
		invariants.MayYield()
	}
	found := !variant.NoSecondSweep && c.secondZap(r, s)
	if found && !variant.NoSecondGracePeriod {
		as.mem.domain.Barrier(as.id)
	}
	c.cleanViews(s)
	return s, nil
}

// empty is zap for areas that stay as they are. It sweeps once: what a lookup
// installs after the sweep is a page as it is after the discard, and belongs
// there. Swept a second time, a store that somebody has made to it would be lost
// though others had seen the page empty before it
// (TestR1HistoriesHaveAnExplanation).
//
// Preconditions: r is not empty.
func (c *changeUnderWay) empty(r addr.Range) (*swept, error) {
	c.areas.StartWrite(r)
	s := sweptPool.Get().(*swept)
	var err error
	if c.as.guarded {
		// Leaf by leaf, since guards stay. What an error leaves undone is above what
		// is done.
		err = c.inParts(r, s, presentTables, c.as.pt.PlanZapPages, c.as.pt.ZapPages)
	} else if err = c.firstZap(r, r, s); err != nil {
		c.recycle(s)
		return nil, err
	}
	c.as.mem.domain.Barrier(c.as.id)
	c.cleanViews(s)
	return s, err
}

// firstZap gets the table frames that the zap needs, and does it.
func (c *changeUnderWay) firstZap(r, hole addr.Range, s *swept) error {
	var stock []addr.PFN
	err := c.zapFrom(&stock, r, hole, s)
	c.as.mem.returnTables(stock...)
	return err
}

// zapFrom is firstZap with a stock of table frames, to which it adds what it
// lacks, and in which it leaves what it did not use.
func (c *changeUnderWay) zapFrom(kept *[]addr.PFN, r, hole addr.Range, s *swept) error {
	as, m := c.as, c.as.mem
	var spare pagetable.ZapSpare
	stock := *kept
	defer func() {
		for f, ok := spare.Take(); ok; f, ok = spare.Take() {
			stock = append(stock, f)
		}
		*kept = stock
	}()
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		as.pt.LockTables()
		plan := as.pt.PlanZap(c.tok, r, hole)
		if lack := plan.Tables() - len(stock); lack > 0 {
			as.pt.UnlockTables()
			a.h.Free()
			more := make([]addr.PFN, lack)
			if err := m.allocateTables(more); err != nil {
				return err
			}
			stock = append(stock, more...)
			continue
		}
		for n := plan.Tables(); n > 0; n-- {
			spare.Put(stock[len(stock)-1], plan)
			stock = stock[:len(stock)-1]
		}
		done := c.editTables(a, plan.Replaces(), func() {
			as.pt.Zap(c.tok, r, hole, plan, &spare, s.zapped)
		})
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return nil
		}
		for f, ok := spare.Take(); ok; f, ok = spare.Take() {
			stock = append(stock, f)
		}
		m.door.wait()
	}
}

// editTables runs edit in a section that has passed the door, with views
// stopped if need be; it reports false, with nothing done, if the door is shut.
//
// Preconditions: the slot is held, and the tables mutex.
func (c *changeUnderWay) editTables(a Accessor, stop bool, edit func()) bool {
	if v := c.as.mem.view; v != nil && stop {
		v.Stop(c.as)
		defer v.Resume(c.as)
	}
	a.h.Return(c.as.id)
	defer a.h.Leave()
	if !c.as.mem.door.passes() {
		return false
	}
	edit()
	return true
}

// secondZap zaps what was installed meanwhile and reports whether there was
// something.
func (c *changeUnderWay) secondZap(r addr.Range, s *swept) bool {
	as := c.as
	before := len(s.zapped.Leaves)
	a := as.borrow()
	defer a.giveBack()
	for {
		a.h.Hold()
		as.pt.LockTables()
		done := c.editTables(a, false, func() { as.pt.Rezap(c.tok, r, s.zapped) })
		as.pt.UnlockTables()
		a.h.Free()
		if done {
			return len(s.zapped.Leaves) > before
		}
		as.mem.door.wait()
	}
}

// cleanViews has the views forget what was swept.
func (c *changeUnderWay) cleanViews(s *swept) {
	v := c.as.mem.view
	if v == nil {
		return
	}
	for _, e := range s.zapped.Leaves {
		s.frames = pagetable.AppendFrames(s.frames, e)
	}
	for _, d := range s.zapped.Tables {
		pagetable.EachFrame(&c.as.mem.arena, d, func(f addr.PFN) { s.frames = append(s.frames, f) })
	}
	if len(s.frames) > 0 {
		v.Invalidate(c.as, s.frames)
	}
}

// drop gives up what was swept. The change has waited, so it may do so itself.
func (c *changeUnderWay) drop(s *swept) {
	s.frames = s.frames[:0]
	for _, e := range s.zapped.Leaves {
		switch {
		case e.IsSpecial():
		case e.Has(pagetable.Huge):
			c.as.mem.pool.DropBlock(e.Frame())
		default:
			s.frames = append(s.frames, e.Frame())
		}
	}
	c.as.mem.pool.DropData(s.frames)
	for _, d := range s.zapped.Tables {
		c.as.mem.drop(d)
	}
	c.recycle(s)
}

func (c *changeUnderWay) recycle(s *swept) {
	s.zapped.Reset()
	s.frames = s.frames[:0]
	sweptPool.Put(s)
}
