package pagetable_test

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// block installs a 2 MiB leaf, whose pages hold what their frames are numbered, and
// returns its entry.
func (s *space) block(gva addr.GVA) pagetable.Entry {
	s.Helper()
	first, _, err := s.pool.AllocBlock()
	if err != nil {
		s.Fatal(err)
	}
	for i := range addr.PFN(pagetable.HugeFrames) {
		s.a.Zero(first + i)
		s.a.Bytes(first + i)[0] = byte(i)
	}
	var spare pagetable.Spare
	var gone pagetable.Retired
	s.t.LockTables()
	for range s.t.PlanPath(gva, 2, true).Tables {
		spare.Add(s.alloc())
	}
	s.t.OwnPath(gva, 2, true, &spare, &gone)
	if !s.t.InstallHuge(gva, pagetable.HugeEntry(first, userRW)) {
		s.Fatalf("something is at %v already", gva)
	}
	s.t.UnlockTables()
	s.drop(gone.All()...)
	return s.t.Find(gva).Entry
}

func hugeRange(gva addr.GVA) addr.Range { return addr.Range{Start: gva, End: gva + leafPT} }

// A 2 MiB leaf moves as the one entry that it is, with no table of leaves at either
// place.
func TestR6MoveTakesHugeLeavesWhole(t *testing.T) {
	both(t, 4096, func(w *world) {
		s := w.newSpace()
		const at, delta = 3 * leafPT, topPT + 9*leafPT
		was := [2]pagetable.Entry{s.block(at), s.block(at + leafPT)}
		s.write(at+2*leafPT, 7) // a page beside them
		s.move(addr.Range{Start: at, End: at + 3*leafPT}, delta)
		for i, e := range was {
			from := addr.GVA(at + i*leafPT)
			if l := s.t.Find(from + delta); l.Entry != e || !l.Huge || !l.Owned {
				t.Errorf("leaf %d: %+v, was %#x", i, l, uint64(e))
			}
			if l := s.t.Find(from); !l.Bare {
				t.Errorf("leaf %d: something is left where it was: %+v", i, l)
			}
			if n, leaves := s.pool.Of(e.Frame()+100), s.pool.BlockOf(e.Frame()); n != 1 || leaves != 1 {
				t.Errorf("leaf %d has %d references, its block %d leaves", i, n, leaves)
			}
		}
		if v, ok := s.see(at + 2*leafPT + delta); !ok || v != 7 {
			t.Errorf("the page beside them is %d, %v", v, ok)
		}
		w.check()
	})
}

// One that a relative has too moves by itself: the relative keeps its own, and the
// frames have the block's one reference.
func TestR6MoveTakesSharedHugeLeavesWhole(t *testing.T) {
	both(t, 4096, func(w *world) {
		s := w.newSpace()
		const at, delta = 3 * leafPT, dirPT
		e := s.block(at)
		c := s.fork()
		s.move(hugeRange(at), delta)
		if l := s.t.Find(at + delta); !l.Huge || l.Entry.Frame() != e.Frame() || l.Entry.Has(pagetable.Writable) {
			t.Errorf("%+v, was %#x", l, uint64(e))
		}
		if n := s.pool.BlockOf(e.Frame()); n != 2 {
			t.Errorf("the block has %d leaves", n)
		}
		if v, ok := c.see(at + 5*page); !ok || v != 5 {
			t.Errorf("the relative sees %d, %v", v, ok)
		}
		if _, ok := c.see(at + 5*page + delta); ok {
			t.Error("the relative sees something where the other has moved it")
		}
		s.write(at+5*page+delta, 99)
		if v, _ := c.see(at + 5*page); v != 5 {
			t.Errorf("the relative sees %d after a write", v)
		}
		w.check()
	})
}

// It is split where a part of it moves, where what is 2 MiB here is not there, and
// where there is a table of leaves already.
func TestMoveSplitsHugeLeaves(t *testing.T) {
	const at = 3 * leafPT
	for name, c := range map[string]struct {
		r     addr.Range
		delta addr.GVA
		table bool
	}{
		"the head":    {addr.Range{Start: at, End: at + leafPT - page}, dirPT, false},
		"the tail":    {addr.Range{Start: at + page, End: at + leafPT}, dirPT, false},
		"by a page":   {hugeRange(at), dirPT + page, false},
		"to a table":  {hugeRange(at), dirPT, true},
		"to the next": {hugeRange(at), leafPT, true},
	} {
		t.Run(name, func(t *testing.T) {
			both(t, 4096, func(w *world) {
				s := w.newSpace()
				e := s.block(at)
				if c.table {
					s.own(at+c.delta, true)
				}
				s.move(c.r, c.delta)
				for i := range addr.GVA(pagetable.HugeFrames) {
					gva := at + i*page
					if c.r.Contains(gva) {
						if _, ok := s.see(gva); ok {
							t.Fatalf("page %d is still where it was", i)
						}
						gva += c.delta
					}
					if v, ok := s.see(gva); !ok || v != byte(i) {
						t.Fatalf("page %d is %d, %v", i, v, ok)
					}
				}
				if n := s.pool.BlockOf(e.Frame()); n != 0 {
					t.Errorf("the block has %d leaves", n)
				}
				w.check()
			})
		})
	}
}

// Leaves of 2 MiB take no table but those above them.
func TestMoveCountsNoTableForHugeLeaves(t *testing.T) {
	w := newWorld(t, 8192, false)
	s := w.newSpace()
	for i := range 6 {
		s.block(addr.GVA(i) * leafPT)
	}
	if n := s.move(addr.Range{End: 6 * leafPT}, topPT); n != 2 {
		t.Errorf("counted %d tables, want two above the leaves", n)
	}
}
