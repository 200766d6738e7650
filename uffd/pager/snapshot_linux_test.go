package pager

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// TestR15RestoreAndSnapshotsAgainstModel restores memory lazily, and has it read,
// written and given back at random, as vCPUs and as Go code do it, with snapshots
// taken, swept, read and closed at random moments: all of it against copies of what
// the memory must hold.
func TestR15RestoreAndSnapshotsAgainstModel(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	seeds := uint64(6)
	if *soak {
		seeds = 300
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { modelRun(t, seed) })
	}
}

type modelSnapshot struct {
	s    *guestmem.Snapshot
	want []byte
}

func modelRun(t *testing.T, seed uint64) {
	const pages = 1024
	base := addr.GPA(1 << 20)
	rnd := rand.New(rand.NewPCG(seed, 77))
	img := savedImage{[]snapfile.Region{{Name: "ram", Base: base, Size: pages * smallPage, PageSize: smallPage}}}
	m := newMemory(t)
	o := RestoreOptions{RecordFor: -1, WorkingSets: NoWorkingSet, Parallel: 1}
	if seed%3 == 0 {
		o.Rest = LeaveRest
	} else {
		o.Pause = time.Duration(rnd.IntN(4)) * time.Millisecond
	}
	r := startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{})), o)
	model := make([]byte, pages*smallPage)
	for i := 0; i < pages; i++ {
		copy(model[i*smallPage:], savedPage(base+addr.GPA(i)*smallPage))
	}
	var open []modelSnapshot
	buf := make([]byte, 4*smallPage)
	check := func(x modelSnapshot, off, n int) {
		t.Helper()
		got := make([]byte, n)
		if _, err := x.s.ReadAt(got, base+addr.GPA(off)); err != nil || !bytes.Equal(got, x.want[off:off+n]) {
			t.Fatalf("seed %d: a snapshot holds %x... at %#x, %v, want %x...", seed, head(got), off, err, head(x.want[off:]))
		}
	}
	closeOne := func(k int) {
		x := open[k]
		for off := 0; off < len(x.want); off += len(buf) {
			check(x, off, len(buf))
		}
		must(t, x.s.Close())
		open = append(open[:k], open[k+1:]...)
	}
	for op := range 1500 {
		off := rnd.IntN(len(model) - len(buf))
		n := 1 + rnd.IntN(len(buf))
		page := off &^ (smallPage - 1)
		switch k := rnd.IntN(100); {
		case k < 20: // a vCPU loads
			done := make(chan error, 1)
			go func() { done <- load(slotAt(m, base+addr.GPA(off)), buf[:n]) }()
			if err := testutil.Proceeds(t, done, "load"); err != nil || !bytes.Equal(buf[:n], model[off:off+n]) {
				t.Fatalf("seed %d, op %d: a vCPU loads %x... at %#x, %v, want %x...", seed, op, head(buf[:n]), off, err, head(model[off:off+n]))
			}
		case k < 45: // a vCPU stores
			for i := range buf[:n] {
				buf[i] = byte(op + i)
			}
			done := make(chan error, 1)
			go func() { done <- store(slotAt(m, base+addr.GPA(off)), buf[:n]) }()
			must(t, testutil.Proceeds(t, done, "store"))
			copy(model[off:], buf[:n])
		case k < 60: // Go code loads
			if _, err := m.ReadAt(buf[:n], base+addr.GPA(off)); err != nil || !bytes.Equal(buf[:n], model[off:off+n]) {
				t.Fatalf("seed %d, op %d: ReadAt gives %x... at %#x, %v, want %x...", seed, op, head(buf[:n]), off, err, head(model[off:off+n]))
			}
		case k < 80: // Go code stores
			for i := range buf[:n] {
				buf[i] = byte(op*3 + i)
			}
			if _, err := m.WriteAt(buf[:n], base+addr.GPA(off)); err != nil {
				t.Fatal(err)
			}
			copy(model[off:], buf[:n])
		case k < 84:
			if err := m.Store64(base+addr.GPA(page), uint64(op)); err != nil {
				t.Fatal(err)
			}
			binary.LittleEndian.PutUint64(model[page:], uint64(op))
		case k < 88:
			count := min(1+rnd.IntN(5), pages-page/smallPage)
			if err := m.Discard(base+addr.GPA(page), uint64(count)*smallPage); err != nil {
				t.Fatal(err)
			}
			clear(model[page : page+count*smallPage])
		case k < 91:
			if len(open) > 2 {
				closeOne(rnd.IntN(len(open)))
			}
			so := guestmem.SnapshotOptions{Sweep: guestmem.SweepMode(rnd.IntN(2)), After: guestmem.ArmedAfter(rnd.IntN(2))}
			s, err := m.Snapshot(context.Background(), so)
			if err != nil {
				t.Fatalf("seed %d, op %d: %v", seed, op, err)
			}
			open = append(open, modelSnapshot{s, bytes.Clone(model)})
		case k < 97 && len(open) > 0:
			check(open[rnd.IntN(len(open))], off, n)
		case k < 98 && len(open) > 0:
			x := open[rnd.IntN(len(open))]
			must(t, x.s.Sweep(context.Background()))
			testutil.Proceeds(t, x.s.Done(), "sweep")
			must(t, x.s.Err())
		case len(open) > 0:
			closeOne(rnd.IntN(len(open)))
		}
	}
	for len(open) > 0 {
		closeOne(0)
	}
	if o.Rest == FillRest {
		waitRestored(t, r)
	}
	got := make([]byte, len(model))
	if _, err := m.ReadAt(got, base); err != nil || !bytes.Equal(got, model) {
		t.Errorf("seed %d: %v; the memory is not what it should be", seed, err)
	}
}

// TestR15SnapshotsBesideTheEndOfARestore: a snapshot that is taken at the moment when
// the memory is given back is armed through the pager or by the Memory itself, and no
// moment is in between.
func TestR15SnapshotsBesideTheEndOfARestore(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	img := twoRegions(64)
	path := save(t, img, snapfile.Options{})
	rnd := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		m := newMemory(t)
		r := startRestore(t, m, openSaved(t, path), RestoreOptions{RecordFor: -1, WorkingSets: NoWorkingSet})
		at := img.regions[0].Base + 5*smallPage
		for ended := false; !ended; {
			select {
			case <-r.Done():
				ended = true // and once more
			default:
			}
			s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := store(slotAt(m, at), []byte("written")); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, smallPage)
			if _, err := s.ReadAt(p, at+smallPage); err != nil || !bytes.Equal(p, savedPage(at+smallPage)) {
				t.Fatalf("the snapshot holds %x..., %v", head(p), err)
			}
			must(t, s.Close())
			sleepShort(time.Duration(rnd.IntN(3000)) * time.Microsecond) // with none open, it may end
		}
		must(t, r.Err())
	}
}
