package vmarea

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// pageSet is a hole index the slow way: which pages are free.
type pageSet []bool

func (s pageSet) holes() (list []addr.Range) {
	for i, free := range s {
		r := addr.Range{Start: addr.GVA(i * addr.PageSize), End: addr.GVA((i + 1) * addr.PageSize)}
		switch n := len(list); {
		case !free:
		case n > 0 && list[n-1].End == r.Start:
			list[n-1].End = r.End
		default:
			list = append(list, r)
		}
	}
	return list
}

// indexBeside is a hole index and its model.
type indexBeside struct {
	x holeIndex
	s pageSet
}

// toggle makes up to n pages from i on free if i is not, or else occupied; as
// far as they are all alike.
func (b *indexBeside) toggle(i, n int) {
	free, end := b.s[i], i
	for end < len(b.s) && end < i+n && b.s[end] == free {
		b.s[end] = !free
		end++
	}
	r := addr.Range{Start: addr.GVA(i * addr.PageSize), End: addr.GVA(end * addr.PageSize)}
	if free {
		b.x.occupy(r)
	} else {
		b.x.release(r)
	}
}

func (b *indexBeside) check(t *testing.T) {
	t.Helper()
	got, err := b.x.check()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.s.holes(), got); d != "" {
		t.Fatalf("holes (-want +got):\n%s", d)
	}
	for i := range b.s {
		at := addr.GVA(i * addr.PageSize)
		want := slices.IndexFunc(got, func(h addr.Range) bool { return h.End > at })
		h, ok := b.x.firstAbove(at)
		if ok != (want >= 0) || ok && h != got[want] {
			t.Fatalf("firstAbove(%v) = %v, %v", at, h, ok)
		}
	}
}

// The index grows to four levels and shrinks to nothing, with the tree of a
// fork beside it: neither sees the other's edits.
func TestHoleIndexAgainstPages(t *testing.T) {
	const nPages = 6000
	for _, order := range []string{"random", "upwards", "downwards"} {
		t.Run(order, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, uint64(len(order))))
			bounds := addr.Range{Start: 0, End: nPages * addr.PageSize}
			b := &indexBeside{newHoleIndex(bounds), slices.Repeat(pageSet{true}, nPages)}
			var fork *indexBeside
			next := 0
			for step := range 12000 {
				i := rng.IntN(nPages)
				switch {
				case step >= 8000: // towards all free, then all occupied
					if b.s[i] != (step >= 10000) {
						continue
					}
				case order == "upwards":
					i, next = next%nPages, next+2
				case order == "downwards":
					i, next = nPages-1-next%nPages, next+2
				}
				b.toggle(i, 1+rng.IntN(2)*rng.IntN(10))
				if step%1500 == 0 {
					fork = &indexBeside{b.x.clone(), slices.Clone(b.s)}
				}
				if step%5 == 0 {
					fork.toggle(rng.IntN(nPages), 1+rng.IntN(10))
				}
				if step%500 == 0 {
					b.check(t)
					fork.check(t)
				}
			}
			for i := range b.s {
				if b.s[i] {
					b.toggle(i, nPages)
				}
			}
			b.check(t)
			if b.x.root.n != 0 {
				t.Errorf("nothing is free, and the root has %d entries", b.x.root.n)
			}
			b.toggle(0, nPages)
			b.check(t)
			fork.check(t)
		})
	}
}

func TestHoleIndexRefusesOverlap(t *testing.T) {
	page := func(from, to uint64) addr.Range {
		return addr.Range{Start: addr.GVA(from * addr.PageSize), End: addr.GVA(to * addr.PageSize)}
	}
	x := newHoleIndex(page(0, 10))
	x.occupy(page(2, 8))
	for what, fn := range map[string]func(){
		"occupy what is not free": func() { x.occupy(page(1, 3)) },
		"occupy across":           func() { x.occupy(page(1, 9)) },
		"release below":           func() { x.release(page(1, 3)) },
		"release above":           func() { x.release(page(7, 9)) },
		"release across":          func() { x.release(page(1, 9)) },
		"release what is free":    func() { x.release(page(8, 9)) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", what)
				}
			}()
			fn()
		}()
	}
	if _, err := x.check(); err != nil {
		t.Error(err)
	}
}
