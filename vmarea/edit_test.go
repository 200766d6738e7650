package vmarea_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/vmarea"
)

const (
	rw = vmarea.Read | vmarea.Write
	ro = vmarea.Read
)

var (
	fileA, fileB = newFile("a"), newFile("b")
	byPointer    = cmp.Comparer(func(a, b vmarea.Backing) bool { return a == b })
)

func anon(from, to uint64, p vmarea.Prot) entry {
	return entry{pages(from, to), vmarea.Attr{Prot: p}}
}

func backed(from, to uint64, p vmarea.Prot, f *file, offset uint64) entry {
	return entry{pages(from, to), vmarea.Attr{Prot: p, Backing: f, Offset: offset * page}}
}

func flagged(from, to uint64, p vmarea.Prot, fl vmarea.Flags) entry {
	return entry{pages(from, to), vmarea.Attr{Prot: p, Flags: fl}}
}

func TestEdits(t *testing.T) {
	insert := func(e entry) func(*vmarea.Change) {
		return func(c *vmarea.Change) { c.Insert(e.Range, e.Attr) }
	}
	remove := func(from, to uint64) func(*vmarea.Change) {
		return func(c *vmarea.Change) { c.Remove(pages(from, to)) }
	}
	protect := func(from, to uint64, p vmarea.Prot) func(*vmarea.Change) {
		return func(c *vmarea.Change) { c.SetProt(pages(from, to), p) }
	}
	for _, tt := range []struct {
		name   string
		before []entry
		edit   func(*vmarea.Change)
		want   []entry
	}{
		{"insert into nothing", nil, insert(anon(4, 6, rw)), []entry{anon(4, 6, rw)}},
		{"insert all there is", nil, insert(anon(0, 64, rw)), []entry{anon(0, 64, rw)}},
		{"insert merges below", []entry{anon(2, 4, rw)}, insert(anon(4, 6, rw)), []entry{anon(2, 6, rw)}},
		{"insert merges above", []entry{anon(6, 8, rw)}, insert(anon(4, 6, rw)), []entry{anon(4, 8, rw)}},
		{"insert merges both", []entry{anon(2, 4, rw), anon(6, 8, rw)}, insert(anon(4, 6, rw)), []entry{anon(2, 8, rw)}},
		{"another permission does not merge", []entry{anon(2, 4, rw)}, insert(anon(4, 6, ro)), []entry{anon(2, 4, rw), anon(4, 6, ro)}},
		{"another flag does not merge", []entry{anon(2, 4, rw)}, insert(flagged(4, 6, rw, vmarea.Heap)), []entry{anon(2, 4, rw), flagged(4, 6, rw, vmarea.Heap)}},
		{"file merges where offsets follow", []entry{backed(2, 4, rw, fileA, 10)}, insert(backed(4, 6, rw, fileA, 12)), []entry{backed(2, 6, rw, fileA, 10)}},
		{"file merges below another", []entry{backed(4, 6, rw, fileA, 12)}, insert(backed(2, 4, rw, fileA, 10)), []entry{backed(2, 6, rw, fileA, 10)}},
		{"offsets with a gap do not merge", []entry{backed(2, 4, rw, fileA, 10)}, insert(backed(4, 6, rw, fileA, 13)), []entry{backed(2, 4, rw, fileA, 10), backed(4, 6, rw, fileA, 13)}},
		{"another file does not merge", []entry{backed(2, 4, rw, fileA, 10)}, insert(backed(4, 6, rw, fileB, 12)), []entry{backed(2, 4, rw, fileA, 10), backed(4, 6, rw, fileB, 12)}},
		{"file and anonymous do not merge", []entry{backed(2, 4, rw, fileA, 0)}, insert(anon(4, 6, rw)), []entry{backed(2, 4, rw, fileA, 0), anon(4, 6, rw)}},
		{"insert in the middle splits", []entry{backed(2, 10, rw, fileA, 100)}, insert(anon(4, 6, rw)),
			[]entry{backed(2, 4, rw, fileA, 100), anon(4, 6, rw), backed(6, 10, rw, fileA, 104)}},
		{"insert trims both and swallows", []entry{anon(2, 6, ro), anon(7, 8, rw), backed(8, 12, rw, fileB, 1)}, insert(backed(4, 10, ro, fileA, 0)),
			[]entry{anon(2, 4, ro), backed(4, 10, ro, fileA, 0), backed(10, 12, rw, fileB, 3)}},
		{"insert the same again", []entry{anon(2, 6, rw)}, insert(anon(3, 5, rw)), []entry{anon(2, 6, rw)}},
		{"insert over a file with the page it shows", []entry{backed(2, 6, rw, fileA, 0)}, insert(backed(3, 5, rw, fileA, 1)), []entry{backed(2, 6, rw, fileA, 0)}},
		{"insert over a file with another page", []entry{backed(2, 6, rw, fileA, 0)}, insert(backed(3, 5, rw, fileA, 0)),
			[]entry{backed(2, 3, rw, fileA, 0), backed(3, 5, rw, fileA, 0), backed(5, 6, rw, fileA, 3)}},
		{"insert at both bounds", []entry{anon(0, 1, ro), anon(63, 64, ro)}, insert(anon(1, 63, ro)), []entry{anon(0, 64, ro)}},

		{"remove nothing", []entry{anon(2, 6, rw)}, remove(6, 9), []entry{anon(2, 6, rw)}},
		{"remove an empty range", []entry{anon(2, 6, rw)}, remove(3, 3), []entry{anon(2, 6, rw)}},
		{"remove one exactly", []entry{anon(2, 6, rw), anon(6, 8, ro)}, remove(2, 6), []entry{anon(6, 8, ro)}},
		{"remove the start", []entry{backed(2, 6, rw, fileA, 0)}, remove(0, 3), []entry{backed(3, 6, rw, fileA, 1)}},
		{"remove the end", []entry{backed(2, 6, rw, fileA, 0)}, remove(5, 9), []entry{backed(2, 5, rw, fileA, 0)}},
		{"remove the middle", []entry{backed(2, 8, rw, fileA, 0)}, remove(4, 5), []entry{backed(2, 4, rw, fileA, 0), backed(5, 8, rw, fileA, 3)}},
		{"remove across holes", []entry{anon(2, 4, rw), anon(6, 8, ro), anon(10, 14, rw)}, remove(3, 12), []entry{anon(2, 3, rw), anon(12, 14, rw)}},
		{"remove everything", []entry{anon(0, 4, rw), anon(6, 8, ro), anon(10, 64, rw)}, remove(0, 64), nil},
		{"remove outside the bounds", []entry{anon(60, 64, rw)}, remove(62, 90), []entry{anon(60, 62, rw)}},

		{"protect one exactly", []entry{anon(2, 6, rw)}, protect(2, 6, ro), []entry{anon(2, 6, ro)}},
		{"protect splits", []entry{backed(2, 8, rw, fileA, 0)}, protect(4, 6, ro),
			[]entry{backed(2, 4, rw, fileA, 0), backed(4, 6, ro, fileA, 2), backed(6, 8, rw, fileA, 4)}},
		{"protect merges", []entry{backed(2, 4, rw, fileA, 0), backed(4, 6, ro, fileA, 2), backed(6, 8, rw, fileA, 4)}, protect(4, 6, rw),
			[]entry{backed(2, 8, rw, fileA, 0)}},
		{"protect moves the border", []entry{anon(2, 4, rw), anon(4, 8, ro)}, protect(4, 6, rw), []entry{anon(2, 6, rw), anon(6, 8, ro)}},
		{"protect leaves holes", []entry{anon(2, 4, rw), anon(6, 8, ro), anon(8, 12, rw)}, protect(3, 10, ro),
			[]entry{anon(2, 3, rw), anon(3, 4, ro), anon(6, 10, ro), anon(10, 12, rw)}},
		{"protect to none", []entry{anon(2, 4, rw)}, protect(3, 4, vmarea.None), []entry{anon(2, 3, rw), anon(3, 4, vmarea.None)}},
		{"protect as it is", []entry{anon(2, 4, rw), anon(4, 6, ro)}, protect(2, 4, rw), []entry{anon(2, 4, rw), anon(4, 6, ro)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tree := newTree(t, pages(0, 64))
			change(tree, func(c *vmarea.Change) {
				for _, e := range tt.before {
					c.Insert(e.Range, e.Attr)
				}
			})
			before := entries(tree.Snapshot())
			if d := cmp.Diff(tt.before, before, byPointer); d != "" {
				t.Fatalf("before (-want +got):\n%s", d)
			}

			c := tree.StartChange()
			tt.edit(c)
			if err := c.CheckInvariants(); err != nil {
				t.Error(err)
			}
			if d := cmp.Diff(tt.want, editedEntries(c), byPointer); d != "" {
				t.Errorf("edited (-want +got):\n%s", d)
			}
			if c.Len() != len(tt.want) {
				t.Errorf("Len = %d, want %d", c.Len(), len(tt.want))
			}
			if d := cmp.Diff(before, entries(tree.Snapshot()), byPointer); d != "" {
				t.Errorf("published too early (-want +got):\n%s", d)
			}
			c.Abort()
			if err := tree.CheckInvariants(); err != nil {
				t.Errorf("after Abort: %v", err)
			}

			s := tree.Snapshot()
			change(tree, tt.edit)
			if d := cmp.Diff(tt.want, entries(tree.Snapshot()), byPointer); d != "" {
				t.Errorf("published (-want +got):\n%s", d)
			}
			if d := cmp.Diff(before, entries(s), byPointer); d != "" {
				t.Errorf("an old snapshot changed (-want +got):\n%s", d)
			}
		})
	}
}

// What is not edited keeps its object, so that lookups begun before the change
// stay good for it.
func TestUntouchedAreasStay(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	change(tree, func(c *vmarea.Change) {
		c.Insert(pages(2, 4), vmarea.Attr{Prot: rw})
		c.Insert(pages(4, 6), vmarea.Attr{Prot: ro})
		c.Insert(pages(6, 8), vmarea.Attr{Prot: rw})
	})
	below, above := tree.Snapshot().Find(gva(2)), tree.Snapshot().Find(gva(7))
	change(tree, func(c *vmarea.Change) { c.SetProt(pages(4, 6), vmarea.Exec) })
	change(tree, func(c *vmarea.Change) { c.Remove(pages(4, 6)) })
	if s := tree.Snapshot(); s.Find(gva(2)) != below || s.Find(gva(7)) != above {
		t.Error("a change replaced an area that it only touches")
	}
}

func TestFreeAndCovered(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	c := tree.StartChange()
	c.Insert(pages(4, 6), vmarea.Attr{Prot: rw})
	c.Insert(pages(6, 8), vmarea.Attr{Prot: ro})
	c.Insert(pages(60, 64), vmarea.Attr{Prot: ro})
	for _, tt := range []struct {
		from, to      uint64
		free, covered bool
	}{
		{0, 4, true, false}, {0, 5, false, false}, {4, 8, false, true}, {5, 7, false, true},
		{7, 9, false, false}, {8, 60, true, false}, {8, 61, false, false}, {60, 64, false, true},
		{60, 65, false, false}, {64, 65, false, false}, {9, 9, true, true},
	} {
		r := pages(tt.from, tt.to)
		if got := c.IsFree(r); got != tt.free {
			t.Errorf("IsFree(%v) = %v", r, got)
		}
		if got := c.CoversAll(r); got != tt.covered {
			t.Errorf("CoversAll(%v) = %v", r, got)
		}
	}
	if got := c.HoleAround(pages(9, 10)); got != pages(8, 60) {
		t.Errorf("HoleAround = %v", got)
	}
	testutil.Panics(t, "HoleAround of what is mapped", func() { c.HoleAround(pages(5, 6)) })
	c.Abort()
}

func TestAbortRestores(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	change(tree, func(c *vmarea.Change) {
		c.Insert(pages(2, 8), vmarea.Attr{Prot: rw})
		c.Insert(pages(20, 30), vmarea.Attr{Prot: ro})
	})
	before, objects := entries(tree.Snapshot()), tree.Snapshot().Find(gva(2))
	c := tree.StartChange()
	c.StartWrite(pages(0, 64))
	c.Remove(pages(0, 25))
	c.Insert(pages(1, 40), vmarea.Attr{Prot: rw})
	c.SetProt(pages(3, 50), ro)
	c.Remove(pages(5, 60))
	c.Abort()
	if d := cmp.Diff(before, entries(tree.Snapshot()), byPointer); d != "" {
		t.Errorf("after Abort (-want +got):\n%s", d)
	}
	if tree.Snapshot().Find(gva(2)) != objects {
		t.Error("Abort replaced an area")
	}
	a, status := tree.StartRead(gva(2))
	if status != vmarea.Found {
		t.Fatalf("after Abort: %v", status)
	}
	tree.EndRead(a)
	c = tree.StartChange()
	if at, ok := c.FindGap(34*page, page, 0, gva(64), vmarea.TopDown); !ok || at != gva(30) {
		t.Errorf("FindGap after Abort = %v, %v", at, ok)
	}
	c.Abort()
}

func TestPublishTwiceInOneChange(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	c := tree.StartChange()
	c.Insert(pages(2, 8), vmarea.Attr{Prot: rw})
	c.Publish()
	first := tree.Snapshot()
	c.Remove(pages(4, 5))
	c.Publish()
	c.EndWriteAll()
	if first.Len() != 1 || tree.Snapshot().Len() != 2 {
		t.Errorf("areas: %d then %d", first.Len(), tree.Snapshot().Len())
	}
}

func TestForkSharesAndDiverges(t *testing.T) {
	parent := newTree(t, pages(0, 64))
	change(parent, func(c *vmarea.Change) {
		c.Insert(pages(2, 8), vmarea.Attr{Prot: rw})
		c.Insert(pages(20, 30), vmarea.Attr{Prot: ro, Backing: fileA})
	})
	before := entries(parent.Snapshot())
	child := fork(t, parent)
	if d := cmp.Diff(before, entries(child.Snapshot()), byPointer); d != "" {
		t.Fatalf("child (-want +got):\n%s", d)
	}
	if parent.Snapshot().Find(gva(2)) != child.Snapshot().Find(gva(2)) {
		t.Error("fork copied an area")
	}

	change(child, func(c *vmarea.Change) {
		if !c.Adopt(gva(22)) || c.Adopt(gva(22)) || c.Adopt(gva(50)) {
			t.Error("Adopt: foreign, owned, hole")
		}
	})
	if d := cmp.Diff(before, entries(child.Snapshot()), byPointer); d != "" {
		t.Errorf("Adopt changed the layout (-want +got):\n%s", d)
	}
	if !child.Owns(child.Snapshot().Find(gva(22))) || child.Owns(child.Snapshot().Find(gva(2))) {
		t.Error("the child owns the wrong areas")
	}

	change(child, func(c *vmarea.Change) { c.Remove(pages(0, 25)) })
	change(parent, func(c *vmarea.Change) { c.Insert(pages(40, 41), vmarea.Attr{Prot: rw}) })
	want := []entry{backed(25, 30, ro, fileA, 5)}
	if d := cmp.Diff(want, entries(child.Snapshot()), byPointer); d != "" {
		t.Errorf("child after (-want +got):\n%s", d)
	}
	want = append(before, anon(40, 41, rw))
	if d := cmp.Diff(want, entries(parent.Snapshot()), byPointer); d != "" {
		t.Errorf("parent after (-want +got):\n%s", d)
	}
}

func TestMisuseIsCaught(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	c := tree.StartChange()
	testutil.Panics(t, "a second change", func() { tree.StartChange() })
	testutil.Panics(t, "Insert of nothing", func() { c.Insert(pages(2, 2), vmarea.Attr{}) })
	testutil.Panics(t, "Insert outside the bounds", func() { c.Insert(pages(63, 65), vmarea.Attr{}) })
	testutil.Panics(t, "Insert of half a page", func() { c.Insert(addr.Range{Start: 5, End: page}, vmarea.Attr{}) })
	testutil.Panics(t, "Fork without a mark", func() { c.Fork() })
	testutil.Panics(t, "Downgrade before Publish", func() { c.Downgrade() })
	c.Insert(pages(2, 3), vmarea.Attr{Prot: ro})
	testutil.Panics(t, "EndWriteAll with unpublished edits", func() { c.EndWriteAll() })
	c.Publish()
	testutil.Panics(t, "Abort after Publish", func() { c.Abort() })
	c.Downgrade()
	testutil.Panics(t, "edit after Downgrade", func() { c.Remove(pages(2, 3)) })
	testutil.Panics(t, "mark after Downgrade", func() { c.StartWrite(pages(2, 3)) })
	c.EndWriteAll()
	testutil.Panics(t, "use of a change that has ended", func() { c.Len() })
	testutil.Panics(t, "bounds that are no pages", func() { vmarea.New(addr.Range{Start: 1, End: page}) })
}
