package guestmem

import (
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
)

// Moving pages is a change that takes away at one place and puts in at another
// (R1), and that must not fail once it has begun to take away (R13). So it waits
// first:
//
//	mark both places          lookups begun from now on are refused (R2)
//	grace period              lookups begun before have ended: nothing is installed any more
//	count and allocate        tables stand still but for what neighbours make their own
//	zap what goes, take       out of the source, by atomic exchange
//	grace period              who has walked to an entry has ended: a copier, too
//	views clean (R8)
//	put                       in at the target
//	publish the areas, unmark
//
// The sweep is the one after a grace period, as R1 has it; there is none before,
// since a failure to allocate could not put back what others may by then have
// found missing. A copier that walked to the source before the sweep has stored
// before the entry can be found at the target: who reads there reads it.

// moving is what is to become of pages when the areas are edited.
type moving struct {
	c      *changeUnderWay
	zaps   []zapping
	moves  []shift
	source addr.Range // unmapped when the moves are done; empty if not
	disarm bool       // what moves is not armed any more

	stock []addr.PFN // table frames for all of it
	taken []pagetable.Moved
	parts []int // where in taken each part ends, and
	by    []addr.GVA
}

// zapping is a range whose pages go, and the hole that it is part of.
type zapping struct{ r, hole addr.Range }

// shift is a range whose pages move by delta.
type shift struct {
	r     addr.Range
	delta addr.GVA // modulo 2^64
}

func (m *moving) zap(r, hole addr.Range) { m.zaps = append(m.zaps, zapping{r, hole}) }

func (m *moving) move(r addr.Range, delta addr.GVA) { m.moves = append(m.moves, shift{r, delta}) }

// run does it, and returns what is to be dropped once the areas are published;
// nil for nothing. On an error nothing was taken away.
//
// Preconditions: the areas are edited and not yet published; nothing is left of
// them in the zaps, nor in the source; the targets of the moves were free, or are
// among the zaps.
//
// Errors: ErrNoMemory.
func (m *moving) run() (*swept, error) {
	if len(m.zaps) == 0 && len(m.moves) == 0 {
		return nil, nil
	}
	as, c := m.c.as, m.c
	for _, z := range m.zaps {
		c.areas.StartWrite(z.r)
	}
	for _, s := range m.moves {
		c.areas.StartWrite(s.r)
	}
	if !variant.MoveSweepsAtOnce {
		as.mem.domain.Barrier(as.id)
	}
	defer func() { as.mem.returnTables(m.stock...) }()
	if err := m.allocate(); err != nil {
		return nil, err
	}
	if takeHook != nil {
		takeHook()
	}
	s := sweptPool.Get().(*swept)
	for _, z := range m.zaps {
		m.mustZap(z, s)
	}
	for _, sh := range m.moves {
		m.takeAll(sh, s)
	}
	if !m.source.IsEmpty() {
		m.mustZap(m.emptied(), s)
	}
	if invariants.Enabled {
		invariants.MayYield()
	}
	if !variant.MoveDoesNotWait {
		as.mem.domain.Barrier(as.id)
	}
	for i := range m.taken {
		e := &m.taken[i]
		if m.disarm {
			e.Entry &^= pagetable.Armed
		}
		if e.Entry.Has(pagetable.Present) {
			s.frames = pagetable.AppendFrames(s.frames, e.Entry)
		}
	}
	c.cleanViews(s)
	m.putAll()
	m.movePins()
	return s, nil
}

// takeHook is called between the first grace period of a move and its sweep. Only
// tests set it.
var takeHook func()

// emptied is the source, with the tables around it that nothing needs any more.
func (m *moving) emptied() zapping {
	return zapping{m.source, m.c.as.beyondBounds(m.c.areas.HoleAround(m.source))}
}

// allocate takes every table frame that could be needed. None is needed that
// is not counted: what is marked stands still, and others who edit the same
// tables meanwhile only make more of them the space's own.
func (m *moving) allocate() error {
	as := m.c.as
	as.pt.LockTables()
	n := 0
	zaps := m.zaps
	if !m.source.IsEmpty() {
		zaps = append(slices.Clip(zaps), m.emptied())
	}
	for _, z := range zaps {
		n += as.pt.PlanZap(m.c.tok, z.r, z.hole).Tables()
	}
	needs := pagetable.MoveNeeds{Cut: len(m.zaps) > 0}
	for _, s := range m.moves {
		for r := s.r; !r.IsEmpty(); {
			part, there := as.pt.MovePart(r, s.delta)
			if there {
				needs.Add(as.pt, m.c.tok, part, s.delta)
			}
			r.Start = part.End
		}
	}
	as.pt.UnlockTables()
	if n += needs.Tables; n == 0 {
		return nil
	}
	stock := make([]addr.PFN, n)
	if err := as.mem.allocateTables(stock); err != nil {
		return err
	}
	m.stock = stock
	return nil
}

func (m *moving) mustZap(z zapping, s *swept) {
	if err := m.c.zapFrom(&m.stock, z.r, z.hole, s); err != nil {
		panic("guestmem: a move lacks tables that it had counted: " + err.Error())
	}
}

// takeAll takes the entries of a range out of the tables, a part at a time.
func (m *moving) takeAll(sh shift, s *swept) {
	as := m.c.as
	a := as.borrow()
	defer a.giveBack()
	for r := sh.r; !r.IsEmpty(); {
		s.reserve() // nothing is allocated in the section
		m.taken = slices.Grow(m.taken, arena.EntriesPerTable)
		a.h.Hold()
		as.pt.LockTables()
		part, there := as.pt.MovePart(r, sh.delta)
		done := !there || m.takePart(a, part, sh.delta, s)
		as.pt.UnlockTables()
		a.h.Free()
		if !done {
			as.mem.door.wait()
			continue
		}
		if n := len(m.taken); there {
			m.parts, m.by = append(m.parts, n), append(m.by, sh.delta)
		}
		r.Start = part.End
	}
}

// takePart reports false, with nothing done, if the door is shut.
func (m *moving) takePart(a Accessor, part addr.Range, delta addr.GVA, s *swept) bool {
	as, c := m.c.as, m.c
	from, to := as.pt.PlanMove(c.tok, part, delta)
	var source, target pagetable.Spare
	m.fill(&source, from.Tables)
	m.fill(&target, to.Tables)
	var gone [2]pagetable.Retired
	done := c.editTables(a, from.Replaces || to.Replaces, func() {
		m.taken = as.pt.TakeLeaves(c.tok, part, delta, &source, &target, &gone, m.taken)
	})
	for i := range gone {
		s.zapped.Tables = append(s.zapped.Tables, gone[i].All()...)
	}
	for _, spare := range []*pagetable.Spare{&source, &target} {
		for spare.Len() > 0 {
			m.stock = append(m.stock, spare.Take())
		}
	}
	return done
}

func (m *moving) fill(spare *pagetable.Spare, n int) {
	if n > len(m.stock) {
		panic("guestmem: a move lacks tables that it had counted")
	}
	for range n {
		spare.Add(m.stock[len(m.stock)-1])
		m.stock = m.stock[:len(m.stock)-1]
	}
}

// putAll puts what was taken in where it goes.
func (m *moving) putAll() {
	as := m.c.as
	a := as.borrow()
	defer a.giveBack()
	first := 0
	for i, end := range m.parts {
		for {
			a.h.Hold()
			as.pt.LockTables()
			done := m.c.editTables(a, false, func() { as.pt.PutLeaves(m.c.tok, m.by[i], m.taken[first:end]) })
			as.pt.UnlockTables()
			a.h.Free()
			if done {
				break
			}
			as.mem.door.wait()
		}
		first = end
	}
}

// movePins notes where pinned frames are now, for the next fork to find them
// (R7). Who was pinning in the source has ended; its record is made under the
// mutex of the set.
func (m *moving) movePins() {
	if variant.MoveForgetsPins {
		return
	}
	pins := &m.c.as.pins
	pins.mu.Lock()
	defer pins.mu.Unlock()
	if len(pins.frames) == 0 {
		return
	}
	for i, e := range m.taken {
		if p := pins.frames[e.Entry.Frame()]; p != nil && p.gva.RoundDown() == e.From {
			part, _ := slices.BinarySearch(m.parts, i+1)
			p.gva += m.by[part]
		}
	}
}
