package plain

import (
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

func TestSubjects(t *testing.T) {
	for name, sub := range map[string]*Subject{"tree": NewBTree(), "map": NewPageMap()} {
		if err := workload.Verify(sub); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Both kinds of areas say the same after the same changes.
func TestAreasAgree(t *testing.T) {
	const page, nPages = workload.PageSize, 32
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		both := []areas{newTreeAreas(), newMapAreas()}
		for step := range 40 {
			start := rng.Uint64N(nPages)
			end := start + 1 + rng.Uint64N(nPages-start)
			isSet, prot := rng.IntN(3) > 0, workload.Prot(rng.IntN(8))
			for i, a := range both {
				if step == 20 {
					a = a.clone()
					both[i] = a
				}
				if isSet {
					if err := a.set(start*page, end*page, prot); err != nil {
						t.Fatal(err)
					}
				} else {
					a.clear(start*page, end*page)
				}
			}
			for n := range uint64(nPages + 1) {
				p, ok := both[0].at(n * page)
				if q, there := both[1].at(n * page); p != q || ok != there {
					t.Fatalf("page %d: the tree says %v, %v, the map %v, %v", n, p, ok, q, there)
				}
				if x, y := both[0].covers(n*page, nPages*page), both[1].covers(n*page, nPages*page); x != y {
					t.Fatalf("from page %d on: covered %v in the tree, %v in the map", n, x, y)
				}
			}
		}
	}
}

func TestTreeMergesNeighbours(t *testing.T) {
	a := newTreeAreas().(treeAreas)
	for n := range uint64(8) {
		a.set(n*workload.PageSize, (n+1)*workload.PageSize, workload.Read)
	}
	if n := a.tree.Len(); n != 1 {
		t.Errorf("%d areas, want 1", n)
	}
}
