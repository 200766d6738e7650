package vmarea_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

// FuzzAreas edits a tree as bytes say, beside the model of one state a page, and
// compares what each question answers, what is published, and what remains of a
// change that was aborted; a relative by fork stays what it was.
//
// An operation is five bytes: which, where, how many pages, attributes, and what
// else it needs.
func FuzzAreas(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		m := &fuzzTree{t: t, tree: vmarea.New(pages(modelFirst, modelFirst+modelPages))}
		for ; len(b) >= 5 && m.steps < 200; b = b[5:] {
			m.step(b[:5])
		}
		if m.change != nil {
			m.end(m.steps%2 == 0)
		}
		m.check()
	})
}

type fuzzTree struct {
	t                *testing.T
	tree, relative   *vmarea.Tree
	model, relatives model
	change           *vmarea.Change
	undo             model
	steps            int
}

func (m *fuzzTree) in() *vmarea.Change {
	if m.change == nil {
		m.change, m.undo = m.tree.StartChange(), m.model
	}
	return m.change
}

func (m *fuzzTree) step(b []byte) {
	m.steps++
	at := uint64(b[1]) | uint64(b[4]&3)<<8
	at %= modelPages
	n := min(1+uint64(b[2])%80, modelPages-at)
	r := pages(modelFirst+at, modelFirst+at+n)
	attr := vmarea.Attr{Prot: []vmarea.Prot{vmarea.None, ro, rw, rw}[b[3]&3], Flags: []vmarea.Flags{0, vmarea.Shared}[b[3]>>2&1]}
	if b[3]>>3&1 != 0 {
		attr.Backing = []vmarea.Backing{fileA, fileB}[b[3]>>4&1]
		attr.Offset = uint64(b[3]>>5) * page
	}
	switch b[0] % 10 {
	case 0, 1, 2:
		m.in().Insert(r, attr)
		m.model.set(r, func(i uint64, s *pageState) {
			*s = pageState{true, attr}
			if attr.Backing != nil {
				s.attr.Offset += (i - at) * page
			}
		})
	case 3:
		m.in().Remove(r)
		m.model.set(r, func(_ uint64, s *pageState) { *s = pageState{} })
	case 4:
		m.in().SetProt(r, attr.Prot)
		m.model.set(r, func(_ uint64, s *pageState) {
			if s.mapped {
				s.attr.Prot = attr.Prot
			}
		})
	case 5:
		m.gap(b, r, n)
	case 6:
		m.ask(r)
	case 7:
		m.end(b[4]&4 != 0)
	case 8:
		m.end(true)
		c := m.tree.StartChange()
		c.StartWriteAll()
		m.relative, m.relatives = c.Fork(), m.model
		c.EndWriteAll()
	case 9:
		m.end(true)
		if m.relative != nil {
			m.tree, m.relative = m.relative, m.tree
			m.model, m.relatives = m.relatives, m.model
		}
	}
	m.check()
}

func (m *fuzzTree) gap(b []byte, r addr.Range, n uint64) {
	align := uint64(page) << (b[3] & 7)
	if b[4]&8 != 0 {
		r = addr.Range{End: 1 << 60}
	}
	for _, dir := range []vmarea.Direction{vmarea.TopDown, vmarea.BottomUp} {
		got, ok := m.in().FindGap(n*page, align, r.Start, r.End, dir)
		if want, wantOK := m.model.gap(n, align, r, dir); got != want || ok != wantOK {
			m.t.Fatalf("FindGap(%d pages, %#x, %v, %d) = %v, %v; want %v, %v", n, align, r, dir, got, ok, want, wantOK)
		}
	}
}

func (m *fuzzTree) ask(r addr.Range) {
	free, covered := true, true
	m.model.set(r, func(_ uint64, s *pageState) {
		free = free && !s.mapped
		covered = covered && s.mapped
	})
	c := m.in()
	if c.IsFree(r) != free || c.CoversAll(r) != covered {
		m.t.Fatalf("%v: IsFree = %v, CoversAll = %v; want %v, %v", r, c.IsFree(r), c.CoversAll(r), free, covered)
	}
	if free && !c.HoleAround(r).ContainsRange(r) {
		m.t.Fatalf("HoleAround(%v) = %v", r, c.HoleAround(r))
	}
}

// end ends the change under way.
func (m *fuzzTree) end(publish bool) {
	c := m.change
	if c == nil {
		return
	}
	m.change = nil
	c.StartWrite(pages(modelFirst, modelFirst+modelPages))
	if !publish {
		c.Abort()
		m.model = m.undo
		return
	}
	c.Publish()
	c.EndWriteAll()
}

func (m *fuzzTree) check() {
	got, want, published := entries(m.tree.Snapshot()), m.model.areas(), m.model
	err := error(nil)
	if m.change != nil {
		got, published = editedEntries(m.change), m.undo
		err = m.change.CheckInvariants()
		if d := cmp.Diff(m.undo.areas(), entries(m.tree.Snapshot()), byPointer); d != "" {
			m.t.Fatalf("published while editing (-want +got):\n%s", d)
		}
	} else {
		err = m.tree.CheckInvariants()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	if d := cmp.Diff(want, got, byPointer); d != "" {
		m.t.Fatalf("areas (-want +got):\n%s", d)
	}
	snapshot := m.tree.Snapshot()
	for i, s := range published.pages {
		if a := snapshot.Find(gva(modelFirst + uint64(i))); (a != nil) != s.mapped {
			m.t.Fatalf("Find of page %d = %v", i, a)
		}
	}
	if m.relative == nil {
		return
	}
	if err := m.relative.CheckInvariants(); err != nil {
		m.t.Fatalf("relative: %v", err)
	}
	if d := cmp.Diff(m.relatives.areas(), entries(m.relative.Snapshot()), byPointer); d != "" {
		m.t.Fatalf("relative (-want +got):\n%s", d)
	}
}
