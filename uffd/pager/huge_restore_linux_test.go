package pager

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// TestR15RestoreIntoHugePages restores memory of huge pages lazily, and has it read,
// written and given back at random, with snapshots, clones and forks: all of it against
// copies of what there must be.
func TestR15RestoreIntoHugePages(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	testutil.HugePages(t, 4)
	seeds := uint64(4)
	if *soak {
		seeds = 200
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { hugeRun(t, seed) })
	}
}

func hugeRun(t *testing.T, seed uint64) {
	const pages = 4
	base := addr.GPA(1 << 30)
	rnd := rand.New(rand.NewPCG(seed, 2))
	img := savedImage{[]snapfile.Region{{Name: "huge", Base: base, Size: pages * hugePage, PageSize: hugePage}}}
	layout := []snapfile.Layout{snapfile.LayoutRaw, snapfile.LayoutPacked}[seed%2]
	m := newMemory(t)
	r := startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{Layout: layout})), RestoreOptions{
		WorkingSets: NoWorkingSet, Rest: Rest(seed / 2 % 2), RecordFor: -1, Parallel: 1,
	})
	if b, size := r.Regions()[0].Backing(), r.Regions()[0].PageSize(); b != guestmem.BackingHugetlb || size != hugePage {
		t.Fatalf("restored into %v of pages of %d bytes", b, size)
	}
	model := make([]byte, pages*hugePage)
	for i := 0; i < len(model); i += smallPage {
		copy(model[i:], savedPage(base+addr.GPA(i)))
	}
	var open []modelSnapshot
	show := func(what string, read func([]byte, addr.GPA) (int, error), want []byte) {
		t.Helper()
		got := make([]byte, len(want))
		if _, err := read(got, base); err != nil || !bytes.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("seed %d: %s holds %x... at %#x, %v, want %x...", seed, what, got[i], i, err, want[i])
				}
			}
			t.Fatalf("seed %d: %s: %v", seed, what, err)
		}
	}
	closeOne := func(k int) {
		show("a snapshot", open[k].s.ReadAt, open[k].want)
		must(t, open[k].s.Close())
		open = append(open[:k], open[k+1:]...)
	}
	buf := make([]byte, 3*smallPage)
	for op := range 80 {
		off := rnd.IntN(len(model) - len(buf))
		n := 1 + rnd.IntN(len(buf))
		fill := func() {
			for i := range buf[:n] {
				buf[i] = byte(op + i)
			}
		}
		switch k := rnd.IntN(100); {
		case k < 25:
			done := make(chan error, 1)
			go func() { done <- load(slotAt(m, base+addr.GPA(off)), buf[:n]) }()
			if err := testutil.Proceeds(t, done, "load"); err != nil || !bytes.Equal(buf[:n], model[off:off+n]) {
				t.Fatalf("seed %d, op %d: a vCPU loads %x... at %#x, %v, want %x...", seed, op, head(buf[:n]), off, err, head(model[off:off+n]))
			}
		case k < 55:
			fill()
			done := make(chan error, 1)
			go func() { done <- store(slotAt(m, base+addr.GPA(off)), buf[:n]) }()
			must(t, testutil.Proceeds(t, done, "store"))
			copy(model[off:], buf[:n])
		case k < 70:
			fill()
			if _, err := m.WriteAt(buf[:n], base+addr.GPA(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], buf[:n])
		case k < 74:
			at := off / hugePage * hugePage
			must(t, m.Discard(base+addr.GPA(at), hugePage))
			clear(model[at : at+hugePage])
		case k < 86:
			if len(open) > 2 {
				closeOne(rnd.IntN(len(open)))
			}
			s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{Sweep: guestmem.SweepMode(rnd.IntN(2)), After: guestmem.ArmedAfter(rnd.IntN(2))})
			must(t, err)
			open = append(open, modelSnapshot{s, bytes.Clone(model)})
		case k < 90 && len(open) > 0:
			x := open[rnd.IntN(len(open))]
			clone, err := x.s.Clone(context.Background(), guestmem.CloneOptions{})
			must(t, err)
			show("a clone", clone.ReadAt, x.want)
			must(t, clone.Close())
		case k < 93:
			fork, err := m.Fork(context.Background(), guestmem.ForkOptions{})
			must(t, err)
			show("a fork", fork.ReadAt, model)
			must(t, fork.Close())
		case len(open) > 0:
			closeOne(rnd.IntN(len(open)))
		}
	}
	for len(open) > 0 {
		closeOne(0)
	}
	if seed/2%2 == uint64(FillRest) {
		waitRestored(t, r)
	}
	show("the memory", m.ReadAt, model)
}
