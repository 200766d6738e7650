package vmarea_test

import (
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/vmarea"
)

// drawEdit returns an edit of a few pages of the first 64, or of many: more than a
// view can differ from its base in.
func drawEdit(rng *rand.Rand) func(*vmarea.Change) {
	from := rng.Uint64N(60)
	n := 1 + rng.Uint64N(4)
	if rng.IntN(8) == 0 {
		from, n = 0, 64
	}
	r := pages(from, min(from+n, 64))
	p := []vmarea.Prot{ro, rw}[rng.IntN(2)]
	switch rng.IntN(5) {
	case 0:
		return func(c *vmarea.Change) { c.Remove(r) }
	case 1:
		return func(c *vmarea.Change) { c.SetProt(r, p) }
	case 2:
		return func(c *vmarea.Change) { c.SetFlags(r, vmarea.Heap, vmarea.Stack) }
	case 3:
		return func(c *vmarea.Change) { // many small ones
			for i := r.Start; i < r.End; i += 2 * page {
				c.Insert(addr.Range{Start: i, End: i + page}, vmarea.Attr{Prot: p})
			}
		}
	}
	return func(c *vmarea.Change) { c.Insert(r, vmarea.Attr{Prot: p}) }
}

// Looking before an edit makes no difference to it, whatever was edited between.
func TestTouchingMakesNoDifference(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		plain, looked := newTree(t, pages(0, 64)), newTree(t, pages(0, 64))
		for range 8 {
			c, l := plain.StartChange(), looked.StartChange()
			for range 1 + rng.IntN(4) {
				at := rng.Uint64N(60)
				r := pages(at, at+1+rng.Uint64N(4))
				var touching, want []entry
				for _, a := range l.Touching(r) {
					touching = append(touching, entry{a.Range, a.Attr()})
				}
				for _, e := range editedEntries(c) {
					if e.Start <= r.End && e.End >= r.Start {
						want = append(want, e)
					}
				}
				if d := cmp.Diff(want, touching, byPointer); d != "" {
					t.Fatalf("seed %d: touching %v (-want +got):\n%s", seed, r, d)
				}
				edit := drawEdit(rng)
				for _, c := range []*vmarea.Change{c, l} {
					edit(c)
					c.SetProt(r, rw)
				}
			}
			if rng.IntN(3) == 0 {
				l.Touching(pages(0, 64))
			}
			for _, c := range []*vmarea.Change{c, l} {
				c.Publish()
				c.EndWriteAll()
			}
			if d := cmp.Diff(entries(plain.Snapshot()), entries(looked.Snapshot()), byPointer); d != "" {
				t.Fatalf("seed %d (-plain +looked):\n%s", seed, d)
			}
		}
	}
}

// An abort takes back few edits and many, on top of few published differences and of
// none, in a tree and in one forked from it; and what is edited next begins there.
func TestAbortTakesBackWhatWasFolded(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 2))
		tree := newTree(t, pages(0, 64))
		for range 12 {
			before := entries(tree.Snapshot())
			c := tree.StartChange()
			for range 1 + rng.IntN(3) {
				drawEdit(rng)(c)
			}
			if err := c.CheckInvariants(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			edited := editedEntries(c)
			switch rng.IntN(3) {
			case 0:
				c.Abort()
				c = tree.StartChange()
				if d := cmp.Diff(before, editedEntries(c), byPointer); d != "" {
					t.Fatalf("seed %d: after Abort (-want +got):\n%s", seed, d)
				}
				c.EndWriteAll()
				edited = before
			case 1:
				c.Publish()
				c.EndWriteAll()
				tree = fork(t, tree)
			case 2:
				c.Publish()
				c.EndWriteAll()
			}
			if d := cmp.Diff(edited, entries(tree.Snapshot()), byPointer); d != "" {
				t.Fatalf("seed %d: published (-want +got):\n%s", seed, d)
			}
			if err := tree.CheckInvariants(); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

// Trees that descend from one another show one base, and each may clone it at any time:
//
//	parent       child 1              child 2
//	reads base   fold: Clone of base  fold: Clone of base
func TestR2RelativesCloneOneBase(t *testing.T) {
	for range 50 {
		tree := vmarea.New(pages(0, 1000))
		change(tree, func(c *vmarea.Change) {
			for i := range uint64(100) {
				c.Insert(pages(4*i, 4*i+2), vmarea.Attr{Prot: rw})
			}
		})
		trees := []*vmarea.Tree{tree, fork(t, tree), fork(t, tree), fork(t, tree)}
		var wg sync.WaitGroup
		for i, relative := range trees {
			wg.Go(func() {
				for k := range uint64(20) {
					change(relative, func(c *vmarea.Change) {
						c.SetProt(pages(4*k, 4*k+1+uint64(i%2)), ro)
					})
				}
			})
			wg.Go(func() {
				for k := range uint64(100) {
					if relative.Snapshot().Find(gva(4*k)) == nil {
						t.Errorf("tree %d: page %d is not mapped", i, 4*k)
					}
				}
			})
		}
		wg.Wait()
		for i, relative := range trees {
			if err := relative.CheckInvariants(); err != nil {
				t.Errorf("tree %d: %v", i, err)
			}
			if got, want := relative.Snapshot().Len(), 100+20*((i+1)%2); got != want {
				t.Errorf("tree %d has %d areas, not %d", i, got, want)
			}
		}
	}
}

// A pair of changes that cancel out, and comes again, has its areas and views come back.
func TestPairsAllocateNothing(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checking allocates")
	}
	tree := spread(1000, upwards)
	change(tree, func(c *vmarea.Change) { // so many that they are folded: the view is its base
		for i := range 20 {
			c.Insert(slot(2000+i), vmarea.Attr{Prot: rw})
		}
	})
	hole := addr.Range{Start: slot(500).End + page, End: slot(500).End + 2*page}
	if n := testing.AllocsPerRun(200, func() {
		change(tree, func(c *vmarea.Change) { c.Insert(hole, vmarea.Attr{Prot: rw}) })
		change(tree, func(c *vmarea.Change) { c.Remove(hole) })
	}); n > 0 {
		t.Errorf("mapping and unmapping: %v allocations", n)
	}
	r := slot(500)
	r.Start += page
	if n := testing.AllocsPerRun(200, func() {
		change(tree, func(c *vmarea.Change) { c.SetProt(r, ro) })
		change(tree, func(c *vmarea.Change) { c.SetProt(r, rw) })
	}); n > 0 {
		t.Errorf("protecting half an area and back: %v allocations", n)
	}
}
