package guestmem

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// tableStock is frames for tables that are set aside for what must not fail half-way
// (R13). A nil one is empty, and stays so.
type tableStock struct{ frames []addr.PFN }

// add puts n frames into spare, from the stock as far as that goes.
//
// Errors: ErrNoMemory.
func (s *tableStock) add(m *Memory, spare *pagetable.Spare, n int) error {
	for ; s != nil && n > 0 && len(s.frames) > 0; n-- {
		last := len(s.frames) - 1
		spare.Add(s.frames[last])
		s.frames = s.frames[:last]
	}
	if n == 0 {
		return nil
	}
	return m.addSpare(spare, spare.Len()+n)
}

// put takes back a frame that was not used.
func (s *tableStock) put(m *Memory, f addr.PFN) {
	if s == nil {
		m.returnTables(f)
		return
	}
	s.frames = append(s.frames, f)
}

// reserve sets aside what the sweeps of a span need in the spaces of the moment. Who
// is forked meanwhile is not counted.
//
// Errors: ErrNoMemory.
func (s *span) reserve() error {
	m := s.object.mem
	n := 0
	for _, as := range m.sortedSpaces() {
		c, err := as.startChange()
		if err != nil {
			continue // it is closed
		}
		for _, p := range s.partsIn(c) {
			if p.shared || s.kind == sweepCopies {
				n += c.tablesToZap(p.Range)
			}
		}
		c.abort()
	}
	stock := &tableStock{make([]addr.PFN, n)}
	if err := m.allocateTables(stock.frames); err != nil {
		return err
	}
	s.stock = stock
	return nil
}

// tablesToZap returns how many frames zapping the pages of a range needs at most.
func (c *changeUnderWay) tablesToZap(r addr.Range) (n int) {
	pt := c.as.pt
	pt.LockTables()
	defer pt.UnlockTables()
	var last addr.GVA
	for first := true; !r.IsEmpty(); {
		part, there := pt.NextLeaves(r)
		if there {
			need := pt.PlanZapPages(c.tok, part).Tables
			// The path that it has in common with the one before is owned by then; where a
			// view wants a fresh path for each edit, it is made again.
			if sameGiB := part.Start>>30 == last>>30; !first && sameGiB && c.as.mem.view == nil {
				need = min(need, 1)
			}
			if n += need; need > 0 {
				last, first = part.Start, false
			}
		}
		r.Start = part.End
	}
	return n
}

// release gives back what is left.
func (s *span) release() {
	if s.stock != nil {
		s.object.mem.returnTables(s.stock.frames...)
		s.stock = nil
	}
}
