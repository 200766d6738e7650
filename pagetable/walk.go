package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// Translate walks to gva and returns its frame if the path is present and has
// all of need, a set of Writable and User, along its whole length. It is the
// way of every copy that hits: four loads, no lock, nothing written.
//
// Preconditions: the caller is in a read section of the space, uses the frame
// in that section only, and once or for at most 64 KiB.
func (t *Table) Translate(gva addr.GVA, need Entry) (addr.PFN, bool) {
	if gva >= Limit {
		return 0, false
	}
	need |= Present
	a := &t.arena
	e := Entry(a.LoadAt(t.Root().GPA(), indexOf(gva, 4)))
	path := e
	if e&(Present|Huge) != Present {
		return 0, false
	}
	e = Entry(a.LoadAt(e.address(), indexOf(gva, 3)))
	path &= e
	if e&(Present|Huge) != Present {
		return 0, false
	}
	e = Entry(a.LoadAt(e.address(), indexOf(gva, 2)))
	path &= e
	if e&(Present|Huge) != Present {
		if e.Has(Present|Huge) && path.Has(need) {
			return t.checked(e.Frame() + addr.PFN(indexOf(gva, 1)))
		}
		return 0, false
	}
	e = Entry(a.LoadAt(e.address(), indexOf(gva, 1)))
	if !(path & e).Has(need) {
		return 0, false
	}
	return t.checked(e.Frame())
}

// checked bounds a frame number read from a table, which is guest memory.
func (t *Table) checked(f addr.PFN) (addr.PFN, bool) {
	if invariants.Enabled && t.arena.Contains(f) && !t.frames.Live(f) {
		panic("pagetable: walked to frame " + f.String() + ", which has been freed")
	}
	return f, t.arena.Contains(f)
}

// Leaf is where a walk has ended. It is valid in the read section it was
// found in.
type Leaf struct {
	entry *uint64 // the leaf entry; nil if the path is not there
	held  Entry   // what it held to the bit; where it led nowhere, Entry is 0
	// Entry is what the leaf held when it was walked to; 0 if absent.
	Entry Entry
	// Owned says that the path is there and writable throughout, so that the
	// leaf may be edited by compare-and-swap.
	Owned bool
	// Guarded says that the leaf is absent and to stay so: a guard.
	Guarded bool
	// Huge says that Entry is a 2 MiB leaf. Owned says then that the table of 2
	// MiB leaves is the space's own; it is edited under the tables mutex alone.
	Huge bool
	// Bare says that nothing is there in all of the 2 MiB around, no table
	// either.
	Bare bool
}

// FrameAt returns the frame of gva, which the caller has walked to.
func (l Leaf) FrameAt(gva addr.GVA) addr.PFN {
	if l.Huge {
		return l.Entry.Frame() + addr.PFN(indexOf(gva, leafLevel))
	}
	return l.Entry.Frame()
}

// Find walks to the leaf of gva.
//
// Preconditions: the caller is in a read section of the space, or holds the
// tables mutex.
func (t *Table) Find(gva addr.GVA) Leaf {
	if gva >= Limit {
		return Leaf{}
	}
	f, owned := t.Root(), true
	for level := rootLevel; level > leafLevel; level-- {
		e := t.entry(f, gva, level)
		if !e.Has(Present) {
			return Leaf{Bare: true}
		}
		if e.Has(Huge) {
			return Leaf{held: e, Entry: e, Huge: true, Owned: owned}
		}
		owned = owned && e.Has(Writable)
		f = e.Frame()
	}
	t.mustBeLive(f)
	p := t.arena.Entry(f, indexOf(gva, leafLevel))
	if p == nil {
		return Leaf{}
	}
	held := Entry(atomic.LoadUint64(p))
	return Leaf{entry: p, held: held, Entry: bounded(&t.arena, held), Owned: owned, Guarded: held.isGuard()}
}

// Reload returns what the leaf holds now.
func (l Leaf) Reload() Entry {
	if l.entry == nil {
		return 0
	}
	return Entry(atomic.LoadUint64(l.entry))
}
