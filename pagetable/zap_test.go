package pagetable_test

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

func whole() addr.Range { return addr.Range{End: pagetable.Limit} }

// cutOff returns the levels of the tables that a zap cut off whole.
func cutOff(z *pagetable.Zapped) (levels []int) {
	for _, d := range z.Tables {
		if !d.Moved {
			levels = append(levels, d.Level)
		}
	}
	return levels
}

// A table goes with the last page in it if no area is left in its span, and
// takes the tables above it along likewise.
func TestZapGivesTablesBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		others []addr.GVA
		hole   addr.Range
		tables int // left on the way to aPage, without the root
	}{
		{"an area beside it", nil, addr.Range{Start: aPage, End: aPage + page}, 3},
		{"the leaf table is empty", nil, addr.Range{Start: aPage &^ (leafPT - 1), End: aPage + dirPT - 4*leafPT - 5*page}, 2},
		{"the directory is empty", nil, addr.Range{Start: aPage &^ (dirPT - 1), End: aPage&^(dirPT-1) + dirPT}, 1},
		{"all is empty", nil, whole(), 0},
		{"all but a page", []addr.GVA{aPage + page}, addr.Range{Start: 0, End: aPage + page}, 3},
		{"all but a table", []addr.GVA{aPage - leafPT}, addr.Range{Start: aPage - leafPT + page, End: pagetable.Limit}, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			both(t, 256, func(w *world) {
				for _, forked := range []bool{false, true} {
					s := w.newSpace()
					s.write(aPage, 1)
					for _, gva := range c.others {
						s.write(gva, 2)
					}
					if forked {
						s.fork()
					}
					s.dropZapped(s.zap(addr.Range{Start: aPage, End: aPage + page}, c.hole))
					path, got := s.pathOf(aPage), 0
					for _, f := range path[1:4] {
						if f != 0 {
							got++
						}
					}
					if path[0] != 0 || got != c.tables {
						t.Errorf("forked %v: %d tables are left, want %d (%v)", forked, got, c.tables, path)
					}
					for _, gva := range c.others {
						if v, ok := s.see(gva); !ok || v != 2 {
							t.Errorf("forked %v: %v is gone", forked, gva)
						}
					}
					w.check()
				}
			})
		})
	}
}

// Where a whole table goes, nothing below it is looked at, and nothing is
// copied for it, however many refer to it.
func TestZapOfSharedTablesCopiesNothing(t *testing.T) {
	w := newWorld(t, 256, false)
	s := w.newSpace()
	s.write(aPage, 1)
	c := s.fork()
	s.change(func(tok pagetable.Token) {
		if p := s.t.PlanZap(tok, whole(), whole()); p.Tables() != 0 {
			t.Errorf("zapping everything wants %d frames", p.Tables())
		}
	})
	z := s.zap(whole(), whole())
	if levels := cutOff(z); len(z.Leaves) != 0 || len(levels) != 1 || levels[0] != 3 {
		t.Errorf("took out %d leaves, tables of levels %v; want one of level 3", len(z.Leaves), levels)
	}
	s.dropZapped(z)
	if v, _ := c.see(aPage); v != 1 {
		t.Errorf("the child sees %d", v)
	}
	// A shared table without a page in the range is not copied either.
	r := addr.Range{Start: aPage + page, End: aPage + 2*page}
	c.change(func(tok pagetable.Token) {
		if p := c.t.PlanZap(tok, r, r); p.Tables() != 0 || p.Replaces() {
			t.Errorf("zapping nothing wants %d frames", p.Tables())
		}
	})
}

// What lookups begun before the mark installed after the first sweep is found
// by the second; it may lie in tables made meanwhile, in place of those that
// the first cut off.
func TestR1RezapFindsLateInstalls(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		s.write(aPage, 1)
		r := addr.Range{Start: aPage, End: aPage + 2*page}
		s.dropZapped(s.zap(r, whole()))
		s.write(aPage+page, 2)
		out := pagetable.NewZapped()
		s.change(func(tok pagetable.Token) { s.t.Rezap(tok, r, out) })
		if len(out.Leaves) != 1 || len(out.Tables) != 0 {
			t.Errorf("the second sweep found %d leaves and %d tables, want 1 and 0", len(out.Leaves), len(out.Tables))
		}
		s.dropZapped(out)
		if _, ok := s.see(aPage + page); ok {
			t.Error("a late install is still there")
		}
	})
}

func TestNextLeavesSkipsWhatIsNotThere(t *testing.T) {
	w := newWorld(t, 256, false)
	s := w.newSpace()
	pages := []addr.GVA{5 * page, leafPT - page, leafPT, 7*leafPT + page, dirPT, topPT + 3*page, pagetable.Limit - page}
	for _, gva := range pages {
		s.write(gva, 1)
	}
	var found []addr.GVA
	steps := 0
	for r := whole(); !r.IsEmpty(); steps++ {
		s.t.LockTables()
		part, there := s.t.NextLeaves(r)
		s.t.UnlockTables()
		if part.Start != r.Start || part.IsEmpty() || part.End > r.End {
			t.Fatalf("NextLeaves(%v) = %v", r, part)
		}
		if there && part.Len() > leafPT {
			t.Fatalf("NextLeaves(%v) = %v, which is more than a table", r, part)
		}
		for _, gva := range pages {
			if part.Contains(gva) {
				if !there {
					t.Errorf("%v skips the page at %v", part, gva)
				}
				found = append(found, gva)
			}
		}
		r.Start = part.End
	}
	if len(found) != len(pages) || steps > 4000 {
		t.Errorf("%d pages of %d found in %d steps", len(found), len(pages), steps)
	}
}

func TestProtectTakesAwayOnly(t *testing.T) {
	perms := []pagetable.Entry{0, pagetable.User, userRW, pagetable.NoExec, pagetable.User | pagetable.NoExec, userRW | pagetable.NoExec}
	both(t, 256, func(w *world) {
		s := w.newSpace()
		for _, have := range perms {
			for _, perm := range perms {
				for _, forked := range []bool{false, true} {
					s.write(page, 1)
					f := s.pathOf(page)[0]
					const keep = pagetable.Accessed | pagetable.Dirty | pagetable.Shared | 1<<10
					before := entryTo(f, present|have|keep)
					*s.raw(page) = uint64(before)
					var c *space
					if forked {
						c = s.fork()
					}
					stale := s.protect(addr.Range{Start: page, End: 2 * page}, perm)
					want := before & (perm | ^userRW)
					want |= perm & pagetable.NoExec
					got := s.t.Find(page).Entry
					if got != want || (len(stale) == 1) != (want != before) {
						t.Errorf("%#x, allowing %#x: %#x, want %#x; stale %v", uint64(before), uint64(perm), uint64(got), uint64(want), stale)
					}
					if forked {
						if e := c.t.Find(page).Entry; e != before {
							t.Errorf("the child's page became %#x", uint64(e))
						}
						c.close()
					}
					s.dropZapped(s.zap(addr.Range{Start: page, End: 2 * page}, whole()))
				}
			}
		}
	})
}

// A shared leaf table that allows nothing beyond is not copied.
func TestProtectCopiesNoTableForNothing(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		s.write(aPage, 1)
		s.write(aPage+page, 1)
		s.protect(addr.Range{Start: aPage, End: aPage + page}, pagetable.User|pagetable.NoExec)
		s.fork()
		before := s.pathOf(aPage)
		if stale := s.protect(addr.Range{Start: aPage, End: aPage + page}, pagetable.User|pagetable.NoExec); len(stale) != 0 || s.pathOf(aPage) != before {
			t.Errorf("protecting what is protected: stale %v, path %v, before %v", stale, s.pathOf(aPage), before)
		}
		if stale := s.protect(addr.Range{Start: aPage, End: aPage + 2*page}, pagetable.User|pagetable.NoExec); len(stale) != 1 || s.pathOf(aPage) == before {
			t.Errorf("protecting what is not: stale %v", stale)
		}
	})
}

// A fork costs what the root has entries, whatever is below them.
func TestForkSharesTheRootOnly(t *testing.T) {
	both(t, 2048, func(w *world) {
		s := w.newSpace()
		for i := range addr.GVA(3) {
			for j := range addr.GVA(100) {
				s.write(i*topPT+j*page, 1)
			}
		}
		counts := func() (n uint64) {
			for i := range w.a.Len() {
				n += uint64(w.pool.Of(firstFrame + addr.PFN(i)))
			}
			return n
		}
		w.a.Table(s.t.Root())[300] = uint64(entryTo(firstFrame+7, present|pagetable.Writable)) // the platform's
		before, old := counts(), s.t.Root()
		oldBytes := string(w.a.Bytes(old))
		w.afterEdit = func() {
			if string(w.a.Bytes(old)) != oldBytes {
				t.Error("the old root was edited")
			}
		}
		c := s.fork()
		w.afterEdit = nil
		// Two roots for one, and one more reference for each of three entries.
		if n := counts() - before; n != 1+3 {
			t.Errorf("a fork added %d references, want 4", n)
		}
		for _, o := range []*space{s, c} {
			if o.t.Root() == old {
				t.Error("the old root is still in use")
			}
			for i := range uint64(512) {
				e, was := w.entry(o.t.Root(), i), pagetable.Entry(w.entryIn(oldBytes, i))
				want := was &^ pagetable.Writable
				if i >= 256 {
					want = was
				}
				if e != want {
					t.Errorf("root entry %d: %#x, want %#x", i, uint64(e), uint64(want))
				}
			}
		}
		w.check()
	})
}

// entryIn returns an entry of a table's bytes.
func (w *world) entryIn(table string, i uint64) (e uint64) {
	for k := range uint64(8) {
		e |= uint64(table[i*8+k]) << (8 * k)
	}
	return e
}

// Dropping a subtree frees what nobody else refers to, and nothing else.
func TestDropFreesWhatIsLeft(t *testing.T) {
	both(t, 4096, func(w *world) {
		s := w.newSpace()
		for i := range addr.GVA(600) {
			s.write(aPage+i*page, 1)
		}
		c := s.fork()
		c.write(aPage+3*page, 2)
		s.close()
		w.check()
		for i := range addr.GVA(600) {
			want := byte(1)
			if i == 3 {
				want = 2
			}
			if v, ok := c.see(aPage + i*page); !ok || v != want {
				t.Fatalf("page %d: %d, %v", i, v, ok)
			}
		}
		c.close()
		w.check()
		if free, unused := w.pool.FreeFrames(); free+unused != w.a.Len()-1 {
			t.Errorf("%d frames are free of %d", free+unused, w.a.Len()-1)
		}
	})
}

func TestEndedTableHasNothing(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	s.write(page, 1)
	tok := s.t.LockChange()
	root := s.t.End(tok)
	s.t.UnlockChange(tok)
	if _, ok := s.t.Translate(page, 0); ok || s.t.Find(page) != (pagetable.Leaf{Bare: true}) {
		t.Error("a page is left")
	}
	w.spaces = nil
	s.t.DropRoot(root)
}

func TestEachFrameTellsOfData(t *testing.T) {
	w := newWorld(t, 256, false)
	s := w.newSpace()
	want := make(map[addr.PFN]bool)
	for _, gva := range []addr.GVA{aPage, aPage + page, aPage + leafPT, aPage + dirPT} {
		s.write(gva, 1)
		want[s.pathOf(gva)[0]] = true
	}
	for _, c := range []struct {
		d pagetable.Dropped
		n int
	}{
		{pagetable.Dropped{Frame: s.pathOf(aPage)[3], Level: 3}, 4},
		{pagetable.Dropped{Frame: s.pathOf(aPage)[1], Level: 1}, 2},
		{pagetable.Dropped{Frame: s.pathOf(aPage)[3], Level: 3, Moved: true}, 0},
		{pagetable.Dropped{Frame: s.pathOf(aPage)[0]}, 1},
	} {
		n := 0
		pagetable.EachFrame(&w.a, c.d, func(f addr.PFN) {
			n++
			if !want[f] {
				t.Errorf("%+v: tells of %v", c.d, f)
			}
		})
		if n != c.n {
			t.Errorf("%+v: %d frames, want %d", c.d, n, c.n)
		}
	}
}
