package vmarea_test

import (
	"testing"

	"github.com/guestmm/guestmm/vmarea"
)

// protectAndLook changes [2, 4) as a change that takes away does, and asks lookups what they
// find while it is marked and when it has ended.
func protectAndLook(t *testing.T, tree *vmarea.Tree, p vmarea.Prot) {
	t.Helper()
	r := pages(2, 4)
	c := tree.StartChange()
	c.SetProt(r, p)
	c.StartWrite(r)
	wantStatus(t, tree, gva(3), vmarea.Marked, "between mark and publish")
	c.Publish()
	c.EndWriteAll()
	for at := range uint64(8) {
		wantStatus(t, tree, gva(at), vmarea.Found, "after the change")
	}
	if a := tree.Snapshot().Find(gva(3)); a.Prot != p {
		t.Errorf("%v is %v", a, p)
	}
}

// An area that was detached and comes back has the lock sequence of the change that
// took it away. It is unlocked all the same, can be marked again, and never is one of
// another tree.
func TestR2WhatComesBackIsUnlocked(t *testing.T) {
	tree := newTree(t, pages(0, 16))
	change(tree, func(c *vmarea.Change) { c.Insert(pages(0, 8), vmarea.Attr{Prot: rw}) })
	whole := tree.Snapshot()
	protectAndLook(t, tree, ro)
	split := tree.Snapshot()
	for range 3 {
		protectAndLook(t, tree, rw)
		if a, b := whole.Find(0), tree.Snapshot().Find(0); a != b {
			t.Error("the area that was split did not come back")
		}
		protectAndLook(t, tree, ro)
		for _, at := range []uint64{0, 2, 4} {
			if a, b := split.Find(gva(at)), tree.Snapshot().Find(gva(at)); a != b {
				t.Errorf("%v did not come back", a)
			}
		}
	}

	// A child has the same areas, detaches them, and has its own come back.
	child := fork(t, tree)
	change(child, func(c *vmarea.Change) { c.SetProt(pages(2, 4), rw) })
	protectAndLook(t, child, ro)
	protectAndLook(t, child, rw)
	protectAndLook(t, tree, rw)
	for at := range uint64(8) {
		a, _ := tree.StartRead(gva(at))
		b, _ := child.StartRead(gva(at))
		if a == b || !tree.Owns(a) || !child.Owns(b) {
			t.Errorf("both trees have %v", a)
		}
		tree.EndRead(a)
		child.EndRead(b)
	}
}

// What a change takes out and puts in again stays marked until it ends; what one that
// is given up has put in is no area of the tree, but may become one.
func TestR2WhatComesBackInOneChange(t *testing.T) {
	tree := newTree(t, pages(0, 16))
	change(tree, func(c *vmarea.Change) { c.Insert(pages(0, 8), vmarea.Attr{Prot: rw}) })
	r := pages(0, 8)
	c := tree.StartChange()
	c.StartWrite(r)
	c.Remove(r)
	c.Insert(r, vmarea.Attr{Prot: rw})
	c.Publish()
	wantStatus(t, tree, gva(1), vmarea.Marked, "before the end")
	c.EndWriteAll()
	wantStatus(t, tree, gva(1), vmarea.Found, "after the end")

	for range 3 {
		c = tree.StartChange()
		c.SetProt(pages(2, 4), ro)
		c.StartWrite(r)
		c.Abort()
		wantStatus(t, tree, gva(3), vmarea.Found, "after giving up")
		protectAndLook(t, tree, ro)
		protectAndLook(t, tree, rw)
	}
}

// Areas that lead to something are not kept beyond their end.
func TestWhatHasABackingIsLetGo(t *testing.T) {
	tree := newTree(t, pages(0, 16))
	at := vmarea.Attr{Prot: rw, Backing: newFile("f")}
	r := pages(2, 4)
	change(tree, func(c *vmarea.Change) { c.Insert(r, at) })
	old := tree.Snapshot().Find(r.Start)
	for range 2 {
		change(tree, func(c *vmarea.Change) { c.Remove(r) })
		change(tree, func(c *vmarea.Change) { c.Insert(r, at) })
		if tree.Snapshot().Find(r.Start) == old {
			t.Error("an area with a backing was kept")
		}
	}
}
