package guestmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func mustCloneOf(tb testing.TB, s *Snapshot, o CloneOptions) *Memory {
	tb.Helper()
	m, err := s.Clone(context.Background(), o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Errorf("Close of a clone: %v", err)
		}
	})
	return m
}

// patterned returns a memory with a region whose pages hold their number, but for
// every fourth, which was never touched.
func patterned(tb testing.TB, nPages int) (*Memory, *Region, []byte) {
	m := newPhys(tb)
	r := mustAdd(tb, m, RegionOptions{Base: 1 << 30, Size: uint64(nPages) * page})
	want := make([]byte, nPages*page)
	for i := range nPages {
		if i%4 != 3 {
			p := bytes.Repeat([]byte{byte(i), byte(i >> 8), 1}, 7)
			copy(want[i*page+11:], p)
			mustWritePhys(tb, m, r.base+addr.GPA(i*page+11), p)
		}
	}
	return m, r, want
}

// A clone that is made before the sweep has what the memory held at the instant,
// read by Go code or by a system call, and neither sees what the other stores.
func TestCloneBeforeTheSweep(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, r, want := patterned(t, 64)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	hooked := false
	clone := mustCloneOf(t, s, CloneOptions{Hook: func(c *Memory) error {
		hooked = true
		return c.Store8(r.base+63*page, 77)
	}})
	if !hooked {
		t.Error("the hook was not called")
	}
	cr := clone.Regions()[0]
	mustWritePhys(t, m, r.base+2*page, []byte("the parent's"))
	mustDo(t, slotStore(cr, 5*page, []byte("the clone's")))
	p := make([]byte, page)
	mustDo(t, testutil.Load(uint64(cr.Slot())+8*page, p))
	mustEqualPages(t, p, want[8*page:9*page], "a page that the clone's vCPU reads")
	mustDo(t, testutil.Load(uint64(cr.Slot())+7*page, p))
	mustEqualPages(t, p, want[7*page:8*page], "a page of zeroes that the clone's vCPU reads")
	if left := s.Stats().PagesLeft; left == 0 || left == 64 {
		t.Errorf("%d pages are left, though some were asked for", left)
	}
	mine := bytes.Clone(want)
	mine[63*page] = 77
	copy(mine[5*page:], "the clone's")
	mustEqualPages(t, mustReadPhys(t, clone, r.base, len(want)), mine, "the clone")

	// Clones of clones: of one that may yet lack pages, and of their clone in turn.
	s2 := mustSnapshotOf(t, clone, SnapshotOptions{})
	mustWritePhys(t, clone, r.base, []byte("after"))
	clone2 := mustCloneOf(t, s2, CloneOptions{})
	mustEqualPages(t, mustReadPhys(t, clone2, r.base, len(want)), mine, "the clone's clone")
	mustDo(t, s.Close())
	if err := m.Close(); !errors.Is(err, ErrBusy) && s.Stats().PagesLeft > 0 {
		t.Errorf("the parent is closed under a clone that lacks pages: %v", err)
	}
	clone3, err := clone2.Fork(context.Background(), ForkOptions{})
	mustDo(t, err)
	mustWritePhys(t, clone2, r.base+page, []byte("clone2's"))
	mustEqualPages(t, mustReadPhys(t, clone3, r.base, len(want)), mine, "a fork of it")
	tmpl, err := clone3.Seal()
	mustDo(t, err)
	clone4, err := tmpl.Clone(CloneOptions{})
	mustDo(t, err)
	mustEqualPages(t, mustReadPhys(t, clone4, r.base, len(want)), mine, "a template's clone")
	mustDo(t, errors.Join(clone4.Close(), tmpl.Close()))
}

// A discarded page of a clone is zero, whatever its layer has or lacks.
// Interleaving 8: MADV_DONTNEED as a zap of a private mapping would bring the layer's
// bytes back.
func TestR8DiscardInClone(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for _, sweep := range []SweepMode{SweepOnDemand, SweepInBackground} {
		m, r, want := patterned(t, 32)
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: sweep})
		clone := mustCloneOf(t, s, CloneOptions{})
		mustWritePhys(t, clone, r.base, []byte("written"))
		copy(want, "written")
		s2 := mustSnapshotOf(t, clone, SnapshotOptions{Sweep: SweepOnDemand})
		before := bytes.Clone(want)
		for _, i := range []int{0, 1, 9} {
			mustDo(t, clone.Discard(r.base+addr.GPA(i*page), page))
			clear(want[i*page : (i+1)*page])
		}
		cr := clone.Regions()[0]
		p := make([]byte, page)
		for _, i := range []int{0, 1, 9} {
			mustDo(t, testutil.Load(uint64(cr.Slot())+uint64(i*page), p))
			mustEqualPages(t, p, want[i*page:(i+1)*page], "a discarded page")
		}
		// The mapping is still watched: what comes next is trapped, too.
		s3 := mustSnapshotOf(t, clone, SnapshotOptions{Sweep: SweepOnDemand})
		between := bytes.Clone(want)
		mustDo(t, slotStore(cr, page+3, []byte("again")))
		copy(want[page+3:], "again")
		mustShow(t, s3, r.base, between, "after the discard")
		mustShow(t, s2, r.base, before, "before the discard")
		mustEqualPages(t, mustReadPhys(t, clone, r.base, len(want)), want, "the clone")
	}
}

// R8, interleaving 8: the same of a private mapping that nobody watches, over which zeroes
// can be mapped: what the guest had written is gone, and the template's bytes are not
// back, for Go code and for vCPUs, nor in a clone of that.
func TestR8DiscardInCloneOfTemplate(t *testing.T) {
	m, r, want := patterned(t, 32)
	tmpl, err := m.Seal()
	mustDo(t, err)
	clone, err := tmpl.Clone(CloneOptions{})
	mustDo(t, err)
	defer func() { mustDo(t, errors.Join(clone.Close(), tmpl.Close())) }()
	mustWritePhys(t, clone, r.base, []byte("written"))
	copy(want, "written")
	mustReadPhys(t, clone, r.base+4*page, page) // has it mapped
	for _, i := range []int{0, 1, 4} {
		mustDo(t, clone.Discard(r.base+addr.GPA(i*page), page))
		clear(want[i*page : (i+1)*page])
	}
	got := make([]byte, len(want))
	mustDo(t, testutil.Load(uint64(clone.Regions()[0].Slot()), got))
	mustEqualPages(t, got, want, "the clone, as its vCPUs see it")
	mustEqualPages(t, mustReadPhys(t, clone, r.base, len(want)), want, "the clone")
}

// Forks of a memory that is written all the while: each has what was there at its
// instant, and so does a fork of the fork.
func TestForkModel(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	const size = 128 * page
	m := newPhys(t)
	w := &snapshotModel{t: t, m: m}
	w.r = []*Region{mustAdd(t, m, RegionOptions{Size: size}), mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: size, Backing: BackingAnonymous})}
	t.Cleanup(w.end)
	w.write(1, func(rng *rand.Rand, r *Region) error {
		_, err := m.WriteAt(bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(2*page)), r.base+addr.GPA(rng.Uint64N(size-2*page)))
		return err
	})
	w.write(2, func(rng *rand.Rand, r *Region) error {
		w.pause.RLock()
		defer w.pause.RUnlock()
		return slotStore(r, rng.Uint64N(size-page), bytes.Repeat([]byte{byte(rng.Uint32())}, 1+rng.IntN(page)))
	})
	rounds := 20
	if *soak {
		rounds = 1000
	}
	for round := range rounds {
		var want [][]byte
		fork := func(of *Memory, o SnapshotOptions) *Memory {
			o.Sweep = SweepMode(round % 2)
			f, err := of.Fork(context.Background(), ForkOptions{SnapshotOptions: o})
			mustDo(t, err)
			return f
		}
		child := fork(m, SnapshotOptions{Pauser: &w.pause, AtInstant: func() (err error) {
			want, err = w.naive()
			return err
		}})
		grandchild := fork(child, SnapshotOptions{})
		for i, r := range w.r {
			mustWritePhys(t, child, r.base, []byte("the child's own"))
			mustEqualPages(t, mustReadPhys(t, grandchild, r.base, size), want[i], fmt.Sprint("grandchild of round ", round))
			copy(want[i], "the child's own")
			mustEqualPages(t, mustReadPhys(t, child, r.base, size), want[i], fmt.Sprint("child of round ", round))
		}
		mustDo(t, grandchild.Close())
		mustDo(t, child.Close())
	}
}

// R12: a clone whose snapshot has failed gets errors and no zeroes, and its owner is
// told, once.
func TestR12CloneOfFailedSnapshot(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 32)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	var told atomic.Int32
	why := make(chan error, 1)
	clone := mustCloneOf(t, s, CloneOptions{OnFailure: func(err error) {
		told.Add(1)
		why <- err
	}})
	mustReadPhys(t, clone, r.base, page)
	s.failIf(errRefused)
	if err := testutil.Proceeds(t, why, "the owner of the clone"); !errors.Is(err, errRefused) {
		t.Errorf("the owner was told %v", err)
	}
	mustEqualPages(t, mustReadPhys(t, clone, r.base, page), want[:page], "what the clone has")
	for name, err := range map[string]error{
		"ReadAt": func() error { _, err := clone.ReadAt(make([]byte, 8), r.base+20*page); return err }(),
		"Store8": clone.Store8(r.base+20*page, 1),
		"Slice":  func() error { _, err := clone.Slice(r.base+20*page, 8, Read); return err }(),
		"Clone":  func() error { _, err := s.Clone(context.Background(), CloneOptions{}); return err }(),
		"Sweep":  s.Sweep(context.Background()),
		"Err":    s.Err(),
	} {
		if !errors.Is(err, errRefused) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// The vCPU of such a clone waits; it gets no zeroes for as long as the clone is there.
	p := make([]byte, page)
	load := testutil.Go(func() { _ = testutil.Load(uint64(clone.Regions()[0].Slot())+20*page, p) })
	testutil.Parked(t, load, "a vCPU whose page is gone")
	mustDo(t, clone.Close())
	testutil.Proceeds(t, load, "the vCPU, at the end of its memory")
	mustWritePhys(t, m, r.base, []byte("the guest runs on"))
	if told.Load() != 1 {
		t.Errorf("the owner was told %d times", told.Load())
	}
}
