package pagetable_test

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// A move takes the entries along as they are: frame, permissions, accessed and
// dirty; and no count changes.
func TestR6MoveKeepsCountsAndBits(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		for i := range 5 {
			s.write(aPage+addr.GVA(i)*page, byte(1+i))
		}
		s.leaf(aPage).Allow(pagetable.Dirty)
		var before [5]pagetable.Entry
		for i := range before {
			before[i] = s.t.Find(aPage + addr.GVA(i)*page).Entry
		}
		// To where it lies in two tables.
		const delta = leafPT*9 - (aPage+2*page)%leafPT
		s.move(addr.Range{Start: aPage, End: aPage + 5*page}, delta)
		for i, e := range before {
			from := aPage + addr.GVA(i)*page
			if got := s.t.Find(from + delta); got.Entry != e || !got.Owned {
				t.Errorf("page %d: entry %#x, owned %v; was %#x", i, uint64(got.Entry), got.Owned, uint64(e))
			}
			if n := s.pool.Of(e.Frame()); n != 1 {
				t.Errorf("page %d has %d references", i, n)
			}
			if _, ok := s.see(from); ok {
				t.Errorf("page %d is still at its source", i)
			}
		}
		w.check()
	})
}

// Of tables that a relative has too, the mover's are copied, and what it moves
// may not be written in place: the relative has the frames as well.
func TestR6MoveFromSharedTables(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		s.write(aPage, 1)
		s.write(aPage+page, 2)
		c := s.fork()
		s.move(addr.Range{Start: aPage, End: aPage + page}, topPT)
		if e := s.t.Find(aPage + topPT).Entry; e.Has(pagetable.Writable) || s.pool.Of(e.Frame()) != 2 {
			t.Errorf("entry %#x, %d references", uint64(e), s.pool.Of(e.Frame()))
		}
		if v, ok := c.see(aPage); !ok || v != 1 {
			t.Errorf("the relative sees %d, %v", v, ok)
		}
		if v, ok := s.see(aPage + page); !ok || v != 2 {
			t.Errorf("the neighbour that stays is %d, %v", v, ok)
		}
		s.write(aPage+topPT, 9)
		if v, _ := c.see(aPage); v != 1 {
			t.Errorf("the relative sees %d after a write", v)
		}
		w.check()
	})
}

// A dense range costs a table for each 2 MiB, not a path for each.
func TestMoveCountsPathsOnce(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	for i := range 6 {
		s.write(addr.GVA(i)*leafPT, 1)
	}
	if n := s.move(addr.Range{End: 6 * leafPT}, topPT); n != 6+2 {
		t.Errorf("counted %d tables, want 6 and two above them", n)
	}
}
