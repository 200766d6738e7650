package vmarea_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
	"pgregory.net/rapid"
)

// modelPages is enough for a hole index of three levels.
const (
	modelFirst = 16
	modelPages = 700
)

// pageState is what the model says of one page; the zero value is a hole.
type pageState struct {
	mapped bool
	attr   vmarea.Attr // Offset is the page's own
}

type model struct {
	pages [modelPages]pageState
}

func (m *model) set(r addr.Range, fn func(i uint64, s *pageState)) {
	for i := uint64(r.Start)/page - modelFirst; i < uint64(r.End)/page-modelFirst; i++ {
		fn(i, &m.pages[i])
	}
}

// areas returns the longest runs of pages that continue one another.
func (m *model) areas() (list []entry) {
	for i, s := range m.pages {
		if !s.mapped {
			continue
		}
		r := pages(modelFirst+uint64(i), modelFirst+uint64(i)+1)
		if n := len(list); n > 0 && list[n-1].End == r.Start {
			last := &list[n-1]
			next := last.Attr
			if next.Backing != nil {
				next.Offset += last.Len()
			}
			if next == s.attr {
				last.End = r.End
				continue
			}
		}
		list = append(list, entry{r, s.attr})
	}
	return list
}

// gap finds a gap the slow way.
func (m *model) gap(nPages, align uint64, within addr.Range, dir vmarea.Direction) (addr.GVA, bool) {
	var found []addr.GVA
	run := uint64(0)
	for i := range uint64(modelPages) {
		p := pages(modelFirst+i, modelFirst+i+1)
		if m.pages[i].mapped || !within.ContainsRange(p) {
			run = 0
			continue
		}
		run++
		if start := p.End - addr.GVA(nPages*page); run >= nPages && uint64(start)%align == 0 {
			found = append(found, start)
		}
	}
	switch {
	case len(found) == 0:
		return 0, false
	case dir == vmarea.TopDown:
		return found[len(found)-1], true
	}
	return found[0], true
}

// machine is a tree beside its model, and a relative of it by fork beside its.
type machine struct {
	tree, relative   *vmarea.Tree
	model, relatives model
	change           *vmarea.Change
	undo             model // what Abort goes back to
}

func drawRange(t *rapid.T) addr.Range {
	from := rapid.Uint64Range(0, modelPages-1).Draw(t, "from")
	n := rapid.OneOf(rapid.Uint64Range(1, 4), rapid.Uint64Range(1, 60)).Draw(t, "pages")
	return pages(modelFirst+from, modelFirst+min(from+n, modelPages))
}

func drawAttr(t *rapid.T) vmarea.Attr {
	at := vmarea.Attr{
		Prot:  rapid.SampledFrom([]vmarea.Prot{vmarea.None, ro, rw}).Draw(t, "prot"),
		Flags: rapid.SampledFrom([]vmarea.Flags{0, vmarea.Shared}).Draw(t, "flags"),
	}
	if rapid.Bool().Draw(t, "file") {
		at.Backing = rapid.SampledFrom([]vmarea.Backing{fileA, fileB}).Draw(t, "backing")
	}
	return at
}

// in returns the change under way, or begins one.
func (m *machine) in() *vmarea.Change {
	if m.change == nil {
		m.change = m.tree.StartChange()
		m.undo = m.model
	}
	return m.change
}

func (m *machine) Insert(t *rapid.T) {
	r, at := drawRange(t), drawAttr(t)
	if at.Backing != nil {
		// Mostly the offset that continues what another Insert put there.
		at.Offset = uint64(r.Start)
		if rapid.IntRange(0, 3).Draw(t, "elsewhere") == 0 {
			at.Offset += 1 << 40
		}
	}
	m.in().Insert(r, at)
	first := uint64(r.Start)/page - modelFirst
	m.model.set(r, func(i uint64, s *pageState) {
		*s = pageState{true, at}
		if at.Backing != nil {
			s.attr.Offset += (i - first) * page
		}
	})
}

func (m *machine) InsertMany(t *rapid.T) {
	first, step := rapid.Uint64Range(0, modelPages/2).Draw(t, "first"), rapid.Uint64Range(2, 5).Draw(t, "step")
	n := rapid.IntRange(1, 100).Draw(t, "n")
	at := vmarea.Attr{Prot: ro}
	for i := first; i < modelPages && n > 0; i, n = i+step, n-1 {
		r := pages(modelFirst+i, modelFirst+i+1)
		m.in().Insert(r, at)
		m.model.set(r, func(_ uint64, s *pageState) { *s = pageState{true, at} })
	}
}

func (m *machine) Remove(t *rapid.T) {
	r := drawRange(t)
	m.in().Remove(r)
	m.model.set(r, func(_ uint64, s *pageState) { *s = pageState{} })
}

func (m *machine) SetProt(t *rapid.T) {
	r, p := drawRange(t), drawAttr(t).Prot
	m.in().SetProt(r, p)
	m.model.set(r, func(_ uint64, s *pageState) {
		if s.mapped {
			s.attr.Prot = p
		}
	})
}

func (m *machine) Questions(t *rapid.T) {
	r := drawRange(t)
	free, covered := true, true
	m.model.set(r, func(_ uint64, s *pageState) {
		free = free && !s.mapped
		covered = covered && s.mapped
	})
	c := m.in()
	if got := c.IsFree(r); got != free {
		t.Fatalf("IsFree(%v) = %v", r, got)
	}
	if got := c.CoversAll(r); got != covered {
		t.Fatalf("CoversAll(%v) = %v", r, got)
	}
	if free {
		h := c.HoleAround(r)
		if !h.ContainsRange(r) || !c.IsFree(h) ||
			c.IsFree(addr.Range{Start: h.Start - page, End: h.End}) ||
			c.IsFree(addr.Range{Start: h.Start, End: h.End + page}) {
			t.Fatalf("HoleAround(%v) = %v", r, h)
		}
	}
}

func (m *machine) FindGap(t *rapid.T) {
	n := rapid.OneOf(rapid.Uint64Range(1, 5), rapid.Uint64Range(1, modelPages)).Draw(t, "pages")
	align := uint64(page) << rapid.IntRange(0, 5).Draw(t, "align")
	within := drawRange(t)
	if rapid.Bool().Draw(t, "anywhere") {
		within = addr.Range{Start: 0, End: addr.GVA(1 << 60)}
	}
	for _, dir := range []vmarea.Direction{vmarea.TopDown, vmarea.BottomUp} {
		got, ok := m.in().FindGap(n*page, align, within.Start, within.End, dir)
		want, wantOK := m.model.gap(n, align, within, dir)
		if got != want || ok != wantOK {
			t.Fatalf("FindGap(%d pages, %#x, %v, %d) = %v, %v; want %v, %v", n, align, within, dir, got, ok, want, wantOK)
		}
	}
}

func (m *machine) Adopt(t *rapid.T) {
	p := drawRange(t).Start
	c := m.in()
	a := c.Find(p)
	if got := c.Adopt(p); got != (a != nil && !m.tree.Owns(a)) {
		t.Fatalf("Adopt(%v) = %v", p, got)
	}
	if a != nil && !m.tree.Owns(c.Find(p)) {
		t.Fatalf("the area at %v is still foreign", p)
	}
}

func (m *machine) Abort(t *rapid.T) {
	if m.change == nil {
		t.Skip()
	}
	m.change.StartWrite(drawRange(t))
	m.change.Abort()
	m.change, m.model = nil, m.undo
}

func (m *machine) Publish(t *rapid.T) {
	if m.change == nil {
		t.Skip()
	}
	m.change.StartWrite(drawRange(t))
	m.change.Publish()
	m.change.EndWriteAll()
	m.change = nil
}

// Fork makes the tree's child its relative; Swap makes the machine go on with
// the relative.
func (m *machine) Fork(t *rapid.T) {
	if m.change != nil {
		t.Skip()
	}
	c := m.tree.StartChange()
	c.StartWriteAll()
	m.relative, m.relatives = c.Fork(), m.model
	c.EndWriteAll()
}

func (m *machine) Swap(t *rapid.T) {
	if m.change != nil || m.relative == nil {
		t.Skip()
	}
	m.tree, m.relative = m.relative, m.tree
	m.model, m.relatives = m.relatives, m.model
}

// Check is run after every step.
func (m *machine) Check(t *rapid.T) {
	got, err := entries(m.tree.Snapshot()), error(nil)
	if m.change != nil {
		if got = editedEntries(m.change); m.change.Len() != len(got) {
			t.Fatalf("Len = %d of %d", m.change.Len(), len(got))
		}
		err = m.change.CheckInvariants()
		if d := cmp.Diff(m.undo.areas(), entries(m.tree.Snapshot()), byPointer); d != "" {
			t.Fatalf("published while editing (-want +got):\n%s", d)
		}
	} else {
		err = m.tree.CheckInvariants()
	}
	if err != nil {
		t.Fatal(err)
	}
	published := &m.model
	if m.change != nil {
		published = &m.undo
	}
	snapshot := m.tree.Snapshot()
	for i, s := range published.pages {
		at := gva(modelFirst + uint64(i))
		if a := snapshot.Find(at); (a != nil) != s.mapped || a != nil && !a.Contains(at) {
			t.Fatalf("Find(%v) = %v", at, a)
		}
	}
	if d := cmp.Diff(m.model.areas(), got, byPointer); d != "" {
		t.Fatalf("areas (-want +got):\n%s", d)
	}
	if m.relative == nil {
		return
	}
	if err := m.relative.CheckInvariants(); err != nil {
		t.Fatalf("relative: %v", err)
	}
	if d := cmp.Diff(m.relatives.areas(), entries(m.relative.Snapshot()), byPointer); d != "" {
		t.Fatalf("relative (-want +got):\n%s", d)
	}
}

func TestAgainstPageModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &machine{tree: vmarea.New(pages(modelFirst, modelFirst+modelPages))}
		t.Repeat(map[string]func(*rapid.T){
			"Insert": m.Insert, "InsertMany": m.InsertMany, "Remove": m.Remove, "SetProt": m.SetProt,
			"Questions": m.Questions, "FindGap": m.FindGap, "Adopt": m.Adopt,
			"Abort": m.Abort, "Publish": m.Publish, "Fork": m.Fork, "Swap": m.Swap,
			"": m.Check,
		})
	})
}
