package pagetable_test

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// aPage has neighbours in every table above it.
const aPage addr.GVA = 2*topPT + 3*dirPT + 4*leafPT + 5*page

func TestOwnPathCreatesWhatIsAbsent(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		root := s.t.Root()
		for _, c := range []struct {
			gva    addr.GVA
			tables int
		}{{aPage, 3}, {aPage + page, 0}, {aPage + leafPT, 1}, {aPage + dirPT, 2}, {aPage + topPT, 3}, {aPage, 0}} {
			if plan, used := s.own(c.gva, false); plan != (pagetable.PathPlan{}) && c.tables > 0 || used != 0 {
				t.Errorf("%v: not creating, planned %+v and used %d", c.gva, plan, used)
			}
			plan, used := s.own(c.gva, true)
			if plan.Tables != c.tables || used != c.tables || plan.Replaces {
				t.Errorf("%v: planned %+v, used %d, want %d", c.gva, plan, used, c.tables)
			}
			if l := s.t.Find(c.gva); !l.Owned || l.Entry != 0 {
				t.Errorf("%v: Find = %+v", c.gva, l)
			}
			w.check()
		}
		if s.t.Root() != root {
			t.Error("creating tables, which takes no entry's place, made a new root")
		}
	})
}

// After a fork the first who edits copies the path, and the other then moves
// it; afterwards each has tables of its own, and every count is exact. No byte
// of a table that somebody else refers to, or that was reached through a
// read-only entry, changes.
func TestR6PathIsCopiedThenMoved(t *testing.T) {
	both(t, 512, func(w *world) {
		s := w.newSpace()
		for i, gva := range []addr.GVA{aPage, aPage + page, aPage + leafPT, aPage + dirPT} {
			s.write(gva, byte(i))
		}
		c := s.fork()
		tables := 3
		if w.fresh {
			tables++
		}
		for _, step := range []struct {
			who, other *space
			what       string
		}{{s, c, "copy"}, {c, s, "move"}} {
			before, theirs := w.tables(1, step.who.t.Root()), w.tables(1, step.other.t.Root())
			oldRoot := step.who.t.Root()
			w.afterEdit = func() {
				for f, b := range theirs {
					if string(w.a.Bytes(f)) != b {
						t.Errorf("%s: table %v of the relative's was edited", step.what, f)
					}
				}
				for f, b := range before {
					if string(w.a.Bytes(f)) != b && !(f == oldRoot && !w.fresh) {
						t.Errorf("%s: table %v was edited, and was reached through a read-only entry", step.what, f)
					}
				}
			}
			plan, used := step.who.own(aPage, true)
			w.afterEdit = nil
			if plan != (pagetable.PathPlan{Tables: tables, Replaces: true}) || used != tables {
				t.Errorf("%s: planned %+v, used %d; want %d", step.what, plan, used, tables)
			}
			if fresh := step.who.t.Root() != oldRoot; fresh != w.fresh {
				t.Errorf("%s: new root: %v", step.what, fresh)
			}
			if l := step.who.t.Find(aPage); !l.Owned {
				t.Errorf("%s: %+v", step.what, l)
			}
			w.check()
		}
		mine, theirs := s.pathOf(aPage), c.pathOf(aPage)
		for level := 1; level <= 4; level++ {
			if mine[level] == theirs[level] {
				t.Errorf("level %d: both lead to table %v", level, mine[level])
			}
		}
		if mine[0] != theirs[0] {
			t.Error("data was copied for the sake of tables")
		}
	})
}

// A table is moved when nobody else refers to it any more. W stays in a leaf
// whose frame has one reference, and in leaves of shared areas, and nowhere else.
func TestR6MoveKeepsWriteWhereExclusive(t *testing.T) {
	both(t, 512, func(w *world) {
		s := w.newSpace()
		s.write(aPage, 1)                                   // will be copied by the parent
		s.write(aPage+page, 2)                              // stays with both
		s.writeAs(aPage+2*page, 3, userRW|pagetable.Shared) // of a shared area
		s.writeAs(aPage+3*page, 4, userRW|pagetable.Shared) // of a shared area, read-only
		s.write(aPage+4*page, 5)                            // exclusive later, read-only
		s.protect(addr.Range{Start: aPage + 3*page, End: aPage + 5*page}, pagetable.User)
		s.write(aPage+leafPT, 6) // another table of the same directory
		s.write(aPage+5*page, 7) // pinned by the child later
		c := s.fork()
		s.write(aPage, 11)
		s.dropZapped(s.zap(addr.Range{Start: aPage + 4*page, End: aPage + 6*page}, addr.Range{Start: aPage + 4*page, End: aPage + 6*page}))
		pinned := c.pathOf(aPage + 5*page)[0]
		w.pool.Pin(pinned)
		w.held[pinned]++
		w.check()

		c.own(aPage, false)
		path := c.pathOf(aPage)
		for _, leaf := range []struct {
			at   addr.GVA
			want bool
			why  string
		}{
			{0, true, "its frame is the child's alone"},
			{page, false, "its frame is the parent's too"},
			{2 * page, true, "it is of a shared area"},
			{3 * page, false, "it was read-only"},
			{4 * page, false, "it was read-only"},
			{5 * page, true, "its frame is the child's alone, pins aside"},
		} {
			if e := c.t.Find(aPage + leaf.at).Entry; e.Has(pagetable.Writable) != leaf.want {
				t.Errorf("leaf +%d: %#x; %s", leaf.at/page, uint64(e), leaf.why)
			}
		}
		// Above the leaves: only the way itself, whose tables are new.
		for level := 3; level > 1; level-- {
			for i := range uint64(512) {
				if e := w.entry(path[level], i); e.Has(present|pagetable.Writable) && e.Frame() != path[level-1] {
					t.Errorf("a moved table of level %d still leads to %v with write permission", level, e.Frame())
				}
			}
		}
		if v, ok := c.see(aPage); !ok || v != 1 {
			t.Errorf("the child sees %d, %v of the parent's page", v, ok)
		}
		w.pool.Unpin(pinned)
		delete(w.held, pinned)
	})
}

// A relative copies a table, with the leaves shared, and drops its reference:
// the table below has one reference then, and leaves that say they are writable
// on frames that are shared. Whoever moves the table above must not trust them.
func TestR6MoveKeepsNoWriteAbove(t *testing.T) {
	both(t, 512, func(w *world) {
		s := w.newSpace()
		s.write(aPage, 1)
		s.write(aPage+leafPT, 2) // the same directory, another leaf table
		c := s.fork()
		s.own(aPage, false)
		s.own(aPage+leafPT, false) // both leaf tables are now the child's alone
		c.own(aPage, false)        // moves the directory
		if l := c.t.Find(aPage + leafPT); l.Owned {
			t.Fatal("the moved directory leads to a table with write permission")
		}
		c.write(aPage+leafPT, 3)
		if v, _ := s.see(aPage + leafPT); v != 2 {
			t.Errorf("the parent sees %d, which the child wrote", v)
		}
	})
}

func TestR6SharedBitKeepsWriteInCopies(t *testing.T) {
	both(t, 256, func(w *world) {
		s := w.newSpace()
		s.writeAs(aPage, 1, userRW|pagetable.Shared)
		s.write(aPage+page, 2)
		c := s.fork()
		s.own(aPage, false)
		if e := s.t.Find(aPage).Entry; !e.Has(pagetable.Writable) {
			t.Errorf("shared leaf in the copy: %#x", uint64(e))
		}
		if e := s.t.Find(aPage + page).Entry; e.Has(pagetable.Writable) {
			t.Errorf("private leaf in the copy: %#x", uint64(e))
		}
		s.write(aPage, 9)
		if v, _ := c.see(aPage); v != 9 {
			t.Errorf("the child sees %d in a shared page", v)
		}
	})
}

// A change of tables never edits an entry above the leaves that led somewhere,
// where a second translator may have it cached: the way up to a fresh root is
// made anew.
func TestR8FreshPathNeverEditsLiveEntries(t *testing.T) {
	w := newWorld(t, 2048, true)
	s := w.newSpace()
	for i, gva := range []addr.GVA{0, page, leafPT, 2*leafPT - page, 2 * leafPT, dirPT, dirPT + leafPT, topPT, aPage, aPage + page, aPage + leafPT} {
		s.write(gva, byte(i))
	}
	all := func() []addr.PFN {
		var roots []addr.PFN
		for _, o := range w.spaces {
			roots = append(roots, o.t.Root())
		}
		return roots
	}
	step := func(what string, edit func()) {
		t.Helper()
		before := w.tables(2, all()...)
		frames := make(map[addr.PFN][]pagetable.Entry)
		for f := range before {
			for i := range uint64(512) {
				frames[f] = append(frames[f], w.entry(f, i))
			}
		}
		w.afterEdit = func() {
			for f, entries := range frames {
				for i, e := range entries {
					if got := w.entry(f, uint64(i)); e.Has(present) && got != e {
						t.Errorf("%s: live entry %d of table %v changed from %#x to %#x", what, i, f, uint64(e), uint64(got))
					}
				}
			}
			frames = nil // what is dropped after the first edit may be used again
		}
		edit()
		w.afterEdit = nil
		w.check()
	}
	rng := func(from, to addr.GVA) addr.Range { return addr.Range{Start: from, End: to} }
	var c *space
	step("create", func() { s.own(3*topPT, true) })
	step("fork", func() { c = s.fork() })
	step("copy", func() { s.own(aPage, false) })
	step("move", func() { c.own(aPage, false) })
	step("create below a copy", func() { s.own(aPage+5*dirPT, true) })
	step("create below a shared table", func() { c.own(dirPT+7*leafPT, true) })
	step("write", func() { s.write(dirPT, 42) })
	step("protect", func() { s.protect(rng(aPage, aPage+page), pagetable.User) })
	step("protect a shared table", func() { c.protect(rng(topPT, topPT+page), pagetable.User) })
	step("zap", func() { s.dropZapped(s.zap(rng(aPage, aPage+page), rng(aPage, aPage+page))) })
	step("zap a shared table's part", func() { c.dropZapped(c.zap(rng(page, 2*page), rng(page, 2*page))) })
	step("zap a leaf table away", func() { s.dropZapped(s.zap(rng(leafPT, 2*leafPT), rng(leafPT, 2*leafPT))) })
	step("zap across a directory", func() { c.dropZapped(c.zap(rng(2*leafPT, dirPT+page), rng(2*leafPT-0, dirPT+leafPT))) })
	step("zap a root entry away", func() { s.dropZapped(s.zap(rng(aPage, aPage+2*leafPT), rng(2*topPT, 3*topPT))) })
	step("zap all", func() { s.dropZapped(s.zap(rng(0, pagetable.Limit), rng(0, pagetable.Limit))) })
}

// Stock that an edit did not need is still there after it.
func TestSpareKeepsWhatIsNotUsed(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	var spare pagetable.Spare
	var gone pagetable.Retired
	for range pagetable.MaxPathTables {
		spare.Add(s.alloc())
	}
	s.t.LockTables()
	s.t.OwnPath(aPage, 1, true, &spare, &gone)
	s.t.UnlockTables()
	if spare.Len() != 1 || len(gone.All()) != 0 {
		t.Errorf("%d frames are left of 4, %d tables were retired; want 1 and 0", spare.Len(), len(gone.All()))
	}
	for spare.Len() > 0 {
		w.free(spare.Take())
	}
}
