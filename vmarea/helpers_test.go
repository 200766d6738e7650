package vmarea_test

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

const page = addr.PageSize

// file is a backing.
type file string

func (f *file) BackingName() string { return string(*f) }

func newFile(name string) *file { f := file(name); return &f }

// pages returns the range of pages [from, to).
func pages(from, to uint64) addr.Range {
	return addr.Range{Start: addr.GVA(from * page), End: addr.GVA(to * page)}
}

func gva(p uint64) addr.GVA { return addr.GVA(p * page) }

// newTree returns a tree that is checked when the test ends.
func newTree(tb testing.TB, bounds addr.Range) *vmarea.Tree {
	t := vmarea.New(bounds)
	checkAtEnd(tb, t)
	return t
}

func checkAtEnd(tb testing.TB, t *vmarea.Tree) {
	tb.Cleanup(func() {
		if err := t.CheckInvariants(); err != nil {
			tb.Errorf("at the end: %v", err)
		}
	})
}

// change runs one change that marks nothing.
func change(t *vmarea.Tree, edit func(*vmarea.Change)) {
	c := t.StartChange()
	edit(c)
	c.Publish()
	c.EndWriteAll()
}

// fork returns the tree of a child of t.
func fork(tb testing.TB, t *vmarea.Tree) *vmarea.Tree {
	c := t.StartChange()
	c.StartWriteAll()
	child := c.Fork()
	c.EndWriteAll()
	checkAtEnd(tb, child)
	return child
}

// entry is what is compared of an area.
type entry struct {
	addr.Range
	vmarea.Attr
}

func entries(s vmarea.Snapshot) (list []entry) {
	s.Ascend(0, func(a *vmarea.Area) bool {
		list = append(list, entry{a.Range, a.Attr()})
		return true
	})
	return list
}

func editedEntries(c *vmarea.Change) (list []entry) {
	c.Ascend(0, func(a *vmarea.Area) bool {
		list = append(list, entry{a.Range, a.Attr()})
		return true
	})
	return list
}
