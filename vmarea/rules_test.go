package vmarea_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/vmarea"
)

// deadline is how long a step of a staged interleaving may take.
const deadline = 2 * time.Minute

// parked is a goroutine that stands at a hook.
type parked struct {
	reached chan struct{}
	resume  chan struct{}
	done    chan struct{}
}

// park runs work and returns when it stands at point p of tree; other
// goroutines, and work itself the second time, pass the hook. Other goroutines
// do not read before park has returned.
func park(t *testing.T, tree *vmarea.Tree, p vmarea.HookPoint, work func()) *parked {
	t.Helper()
	w := &parked{make(chan struct{}), make(chan struct{}), make(chan struct{})}
	var once atomic.Bool
	vmarea.SetReadHook(t, p, func(at *vmarea.Tree) {
		if at == tree && once.CompareAndSwap(false, true) {
			close(w.reached)
			<-w.resume
		}
	})
	go func() {
		defer close(w.done)
		work()
	}()
	await(t, w.reached, "the worker to reach its hook")
	return w
}

// finish lets the worker go on, and waits until it has ended.
func (w *parked) finish(t *testing.T) {
	t.Helper()
	close(w.resume)
	await(t, w.done, "the worker to end")
}

func await(t *testing.T, c chan struct{}, what string) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(deadline):
		t.Fatalf("waited %v for %s", deadline, what)
	}
}

// status reads the area at gva and ends the read.
func status(tree *vmarea.Tree, at addr.GVA) vmarea.Status {
	a, s := tree.StartRead(at)
	if s == vmarea.Found {
		tree.EndRead(a)
	}
	return s
}

func wantStatus(t *testing.T, tree *vmarea.Tree, at addr.GVA, want vmarea.Status, when string) {
	t.Helper()
	if got := status(tree, at); got != want {
		t.Errorf("%s: %v at %v, want %v", when, got, at, want)
	}
}

// twoAreas is a tree with areas at pages [2, 4) and [6, 8).
func twoAreas(t *testing.T) *vmarea.Tree {
	tree := newTree(t, pages(0, 64))
	change(tree, func(c *vmarea.Change) {
		c.Insert(pages(2, 4), vmarea.Attr{Prot: rw})
		c.Insert(pages(6, 8), vmarea.Attr{Prot: rw})
	})
	return tree
}

// Interleaving 2: the area is looked up, then the tree is replaced.
//
//	lookup (its section begins after the mark)   change
//	                                             mark A: lockSeq = s
//	load the sequence: s
//	load the tree: the old one
//	                                             publish a tree without A
//	                                             sequence = s+1
//	find A in the old tree
//	load A's lock sequence: s, equal: refused
//
// Were the sequence loaded after the tree, it would be s+1, and A would look
// unlocked.
func TestR2SequenceIsLoadedFirst(t *testing.T) {
	for _, tt := range []struct {
		at   vmarea.HookPoint
		want vmarea.Status
	}{
		{vmarea.AfterState, vmarea.Hole}, // the new tree is loaded
		{vmarea.AfterTree, vmarea.Marked},
		{vmarea.AfterArea, vmarea.Marked},
	} {
		t.Run(tt.at.String(), func(t *testing.T) {
			tree := twoAreas(t)
			c := tree.StartChange()
			c.Remove(pages(2, 4))
			c.StartWrite(pages(2, 4))
			var got vmarea.Status
			w := park(t, tree, tt.at, func() { got = status(tree, gva(2)) })
			c.Publish()
			c.EndWriteAll()
			w.finish(t)
			if got != tt.want {
				t.Errorf("a lookup begun after the mark: %v, want %v", got, tt.want)
			}
			wantStatus(t, tree, gva(2), vmarea.Hole, "afterwards")
			wantStatus(t, tree, gva(6), vmarea.Found, "afterwards")
		})
	}
}

// The mark holds from StartWrite to the end, for what overlaps the range.
func TestR2MarkedUntilTheEnd(t *testing.T) {
	for _, end := range []string{"EndWriteAll", "Downgrade", "Abort"} {
		t.Run(end, func(t *testing.T) {
			tree := twoAreas(t)
			c := tree.StartChange()
			c.SetProt(pages(3, 4), ro)
			wantStatus(t, tree, gva(3), vmarea.Found, "before the mark")
			c.StartWrite(pages(3, 4))
			c.StartWrite(pages(3, 4)) // twice is fine
			wantStatus(t, tree, gva(2), vmarea.Marked, "same area, beside the range")
			wantStatus(t, tree, gva(3), vmarea.Marked, "marked")
			wantStatus(t, tree, gva(6), vmarea.Found, "another area")
			wantStatus(t, tree, gva(5), vmarea.Hole, "a hole")
			switch end {
			case "EndWriteAll":
				c.Publish()
				c.EndWriteAll()
			case "Downgrade":
				c.Publish()
				c.Downgrade()
				wantStatus(t, tree, gva(2), vmarea.Found, "downgraded")
				testutil.Panics(t, "another change beside a downgraded one", func() { tree.StartChange() })
				c.EndWriteAll()
			case "Abort":
				c.Abort()
			}
			wantStatus(t, tree, gva(2), vmarea.Found, "afterwards")
			wantStatus(t, tree, gva(3), vmarea.Found, "afterwards")
		})
	}
}

// A mark stays when a change publishes and goes on, until it ends.
//
//	lookup                                 change
//	                                       mark A: lockSeq = s
//	load the sequence: s
//	load the tree: the old one
//	                                       publish a tree without A
//	find A: marked
//	                                       sequence = s+1
//
// EndWriteAll before Publish would be the other order, in which a lookup loads
// s+1 and still finds A: it panics.
func TestR2UnlockedOnlyAfterPublish(t *testing.T) {
	tree := twoAreas(t)
	c := tree.StartChange()
	c.StartWrite(pages(2, 8))
	c.Remove(pages(2, 4))
	testutil.Panics(t, "EndWriteAll before Publish", c.EndWriteAll)
	testutil.Panics(t, "Downgrade before Publish", c.Downgrade)
	wantStatus(t, tree, gva(2), vmarea.Marked, "not published")
	w := park(t, tree, vmarea.AfterTree, func() { wantStatus(t, tree, gva(2), vmarea.Marked, "found in the old tree") })
	c.Publish()
	w.finish(t)
	wantStatus(t, tree, gva(2), vmarea.Hole, "published")
	wantStatus(t, tree, gva(6), vmarea.Marked, "marked, published as it was")
	c.EndWriteAll()
	wantStatus(t, tree, gva(6), vmarea.Found, "afterwards")
}

// The mark of the whole tree is loaded together with the sequence.
//
//	lookup (its section begins after the mark)   change
//	                                             mark the whole tree
//	load sequence and mark
//	load the tree: the old one
//	                                             publish a tree without A
//	                                             unmark, sequence = s+1
//	find A in the old tree
//	refused: the mark was there
//
// Were the mark loaded after the tree, it would be gone.
func TestR2WholeMarkIsLoadedFirst(t *testing.T) {
	for _, at := range []vmarea.HookPoint{vmarea.AfterState, vmarea.AfterTree} {
		t.Run(at.String(), func(t *testing.T) {
			tree := twoAreas(t)
			c := tree.StartChange()
			c.Remove(pages(2, 4))
			c.StartWriteAll()
			wantStatus(t, tree, gva(6), vmarea.Marked, "marked as a whole")
			wantStatus(t, tree, gva(5), vmarea.Marked, "a hole of a tree marked as a whole")
			var got vmarea.Status
			w := park(t, tree, at, func() { got = status(tree, gva(2)) })
			c.Publish()
			c.EndWriteAll()
			w.finish(t)
			if got != vmarea.Marked {
				t.Errorf("a lookup begun after the mark: %v, want marked", got)
			}
			wantStatus(t, tree, gva(6), vmarea.Found, "afterwards")
		})
	}
}

// A whole mark ends with Abort and with Downgrade, too.
func TestR2WholeMarkEnds(t *testing.T) {
	tree := twoAreas(t)
	c := tree.StartChange()
	c.StartWriteAll()
	c.Abort()
	wantStatus(t, tree, gva(2), vmarea.Found, "aborted")
	c = tree.StartChange()
	c.StartWriteAll()
	c.Publish()
	c.Downgrade()
	wantStatus(t, tree, gva(2), vmarea.Found, "downgraded")
	c.EndWriteAll()
}

// Interleaving 3: two trees, one area object.
//
//	lookup in the child                     parent                child's change
//	                                        fork: A is shared
//	                                                              mark what it has
//	load the child's sequence: s            mark A: lockSeq = p
//	load the child's tree, find A
//	                                                              publish without A,
//	                                                              sequence = s+1
//	A is the parent's: refused
//
// A's lock sequence says whether the parent has it. Compared with the child's
// sequence it says nothing: p may equal s, or not.
func TestR2ForeignAreaIsRefused(t *testing.T) {
	parent := twoAreas(t)
	child := fork(t, parent)
	wantStatus(t, child, gva(2), vmarea.Foreign, "after fork")
	wantStatus(t, parent, gva(2), vmarea.Found, "after fork")

	c := child.StartChange()
	c.Remove(pages(2, 4))
	c.StartWrite(pages(2, 4))
	var got vmarea.Status
	w := park(t, child, vmarea.AfterArea, func() { got = status(child, gva(2)) })
	c.Publish()
	c.EndWriteAll()
	w.finish(t)
	if got == vmarea.Found {
		t.Error("a lookup begun after the child's mark passes")
	}
	wantStatus(t, parent, gva(2), vmarea.Found, "the child's change")

	// An adopted copy has the child's sequence alone.
	change(child, func(c *vmarea.Change) { c.Adopt(gva(6)) })
	wantStatus(t, child, gva(6), vmarea.Found, "adopted")
	p := parent.StartChange()
	p.StartWrite(pages(6, 8))
	wantStatus(t, parent, gva(6), vmarea.Marked, "the parent's mark")
	wantStatus(t, child, gva(6), vmarea.Found, "the parent's mark")
	p.Abort()

	// And a child's child refuses what the child adopted.
	grandchild := fork(t, child)
	wantStatus(t, grandchild, gva(6), vmarea.Foreign, "grandchild")
}

// Interleaving 16: two trees mark one area object.
//
//	lookup in the parent                 parent's change      child's change
//	                                     mark A: lockSeq = p
//	load the parent's sequence: p
//	load the tree, find A
//	                                                          mark: lockSeq = s
//	load A's lock sequence
//
// If the child stored its s there, A would look unlocked to the parent. A
// change marks what its own tree owns.
func TestR2ChangeMarksOnlyItsOwn(t *testing.T) {
	parent := twoAreas(t)
	child := fork(t, parent)
	if parent.Sequence() == child.Sequence() {
		t.Fatal("the sequences are equal: this would show nothing")
	}
	p := parent.StartChange()
	p.Remove(pages(2, 4))
	p.StartWrite(pages(2, 4))
	var got vmarea.Status
	w := park(t, parent, vmarea.AfterArea, func() { got = status(parent, gva(2)) })
	c := child.StartChange()
	c.Remove(pages(2, 4))
	c.StartWrite(pages(2, 4))
	w.finish(t)
	if got != vmarea.Marked {
		t.Errorf("a lookup begun after the parent's mark, beside the child's: %v, want marked", got)
	}
	wantStatus(t, parent, gva(2), vmarea.Marked, "both marked")
	c.Publish()
	c.EndWriteAll()
	wantStatus(t, parent, gva(2), vmarea.Marked, "the child has ended")
	p.Publish()
	p.EndWriteAll()
}

// A new area is never marked when it is published, whatever the sequence was
// when it was made.
func TestR2NewAreasAreUnlocked(t *testing.T) {
	tree := newTree(t, pages(0, 64))
	for i := range 20 {
		c := tree.StartChange()
		c.Insert(pages(2, 4), vmarea.Attr{Prot: vmarea.Prot(i % 8)})
		c.StartWrite(pages(2, 4))
		c.Publish()
		wantStatus(t, tree, gva(2), vmarea.Found, "published")
		c.EndWriteAll()
	}
}

func requireCounting(t *testing.T) {
	t.Helper()
	if !invariants.Enabled {
		t.Skip("readers are counted under -tags invariants and -race only")
	}
}

// EndRead's last touch is the one that lets the change end.
//
//	lookup                          change
//	StartRead: A
//	                                mark A
//	EndRead: let go
//	                                publish, end: nobody is in A
//	(nothing of A from here on)
func TestR3EndReadIsTheLastTouch(t *testing.T) {
	requireCounting(t)
	tree := twoAreas(t)
	w := park(t, tree, vmarea.AfterEnd, func() { status(tree, gva(2)) })
	c := tree.StartChange()
	c.Remove(pages(2, 4))
	c.StartWrite(pages(2, 4))
	c.Publish()
	c.EndWriteAll() // panics while a reader is counted in A
	w.finish(t)
	wantStatus(t, tree, gva(2), vmarea.Hole, "afterwards")
}

// A change that took something away must have waited for who was there.
//
//	lookup                          change
//	StartRead: A
//	                                mark A, publish a tree without A
//	(uses A)                        end: caught, there was no grace period
func TestR3ChangeDoesNotEndUnderAReader(t *testing.T) {
	requireCounting(t)
	tree := twoAreas(t)
	a, s := tree.StartRead(gva(2))
	if s != vmarea.Found {
		t.Fatal(s)
	}
	c := tree.StartChange()
	c.Remove(pages(2, 4))
	c.StartWrite(pages(2, 4))
	c.Publish()
	testutil.Panics(t, "EndWriteAll while a reader is in a marked area", c.EndWriteAll)
	c.Downgrade()
	testutil.Panics(t, "EndWriteAll while a reader is in a detached area", c.EndWriteAll)
	tree.EndRead(a)
	c.EndWriteAll()
	testutil.Panics(t, "EndRead twice", func() { tree.EndRead(a) })
}

// After a downgrade, readers may be in an area that was marked and stayed.
func TestR3ReadersAfterDowngrade(t *testing.T) {
	tree := twoAreas(t)
	c := tree.StartChange()
	c.StartWrite(pages(2, 4)) // for a discard, say: the area stays
	c.Publish()
	c.Downgrade()
	a, s := tree.StartRead(gva(2))
	if s != vmarea.Found {
		t.Fatal(s)
	}
	c.EndWriteAll()
	tree.EndRead(a)
}
