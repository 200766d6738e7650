package guestmem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
)

// Code of the embedder that panics, or ends its goroutine, leaves nothing behind: vCPUs
// run, nothing is copied for a snapshot that nobody has, and a new one can be taken.
func TestSnapshotWhoseOwnerPanics(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, r, want := patterned(t, 16)
	paused := &pauseLock{}
	open := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	for name, leave := range map[string]func(){"panic": func() { panic("the owner's") }, "Goexit": runtime.Goexit} {
		for where, try := range map[string]func(){
			"Prepare": func() {
				_, _ = m.Snapshot(context.Background(), SnapshotOptions{Pauser: paused, Prepare: func() error { leave(); return nil }})
			},
			"AtInstant": func() {
				_, _ = m.Snapshot(context.Background(), SnapshotOptions{Pauser: paused, AtInstant: func() error { leave(); return nil }})
			},
			"Hook": func() {
				_, _ = open.Clone(context.Background(), CloneOptions{Hook: func(*Memory) error { leave(); return nil }})
			},
			"Hook of a fork": func() {
				_, _ = m.Fork(context.Background(), ForkOptions{CloneOptions: CloneOptions{Hook: func(*Memory) error { leave(); return nil }}})
			},
		} {
			ended := testutil.Go(func() {
				defer func() { _ = recover() }()
				try()
			})
			testutil.Proceeds(t, ended, where)
			if !paused.TryLock() {
				t.Fatalf("%s in %s: vCPUs still stand still", name, where)
			}
			paused.Unlock()
			if n := len(m.snaps.list()); n != 1 {
				t.Fatalf("%s in %s: pages are copied for %d snapshots, want 1", name, where, n)
			}
		}
	}
	mustShow(t, open, r.base, want, "the one that was open")
	mustDo(t, open.Close())
	if r.anyArmed(0, 16) {
		t.Error("pages are armed, and there is no snapshot")
	}
	s := mustSnapshotOf(t, m, SnapshotOptions{})
	mustSweep(t, s)
	mustShow(t, s, r.base, want, "a new one")
}

// R7, R12: a slice that is being made may lack its pages still, and is no reason to
// copy what is in their place.
//
//	Slice                       snapshot
//	is in the set
//	                            copies a hole for a page that the image has
//	has it fetched
func TestR7SliceThatLacksItsPagesIsNotCopied(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	parent := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	clone := mustCloneOf(t, parent, CloneOptions{})
	cr := clone.Regions()[0]
	held := &Slice{region: cr, first: 1, n: 2, off: page, size: 2 * page, access: Write}
	mustDo(t, cr.pins.hold(held))
	s := mustSnapshotOf(t, clone, SnapshotOptions{Sweep: SweepOnDemand})
	if n := s.Stats().PagesPinned; n != 0 || parent.Stats().PagesLeft != 8 {
		t.Errorf("%d pages were copied at the instant, want 0; the parent's snapshot lacks %d", n, parent.Stats().PagesLeft)
	}
	mustDo(t, held.makeReady())
	mustDo(t, slotStore(cr, page+5, []byte{99})) // it may be a device's by now
	mustShow(t, s, r.base, want, "the snapshot")
	held.Release()
	copy(want[page+5:], []byte{99})
	mustEqualPages(t, mustReadPhys(t, clone, r.base, len(want)), want, "the clone")
}

// R12: a clone that looks at a layer finds a page there with all its bytes, or none:
// also where the copy ends in the middle of it, as it does for a moment when the host
// takes the source away.
func TestR12LayerShowsNoHalfPage(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, _, _ := patterned(t, 8)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	source, err := unix.Mmap(-1, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	mustDo(t, err)
	defer unix.Munmap(source)
	for i := range source {
		source[i] = 0xaa
	}
	mustDo(t, unix.Mprotect(source[page:], unix.PROT_NONE))
	l := s.layers[0]
	if err := l.store(2, source[page/2:page/2+page]); !errors.Is(err, unix.EFAULT) {
		t.Errorf("half a page is stored: %v", err)
	}
	at, err := unix.Seek(int(l.image.fd.File().Fd()), 0, unix.SEEK_DATA)
	if !errors.Is(err, unix.ENXIO) {
		t.Errorf("the layer shows a page at %#x that was not stored: %v", at, err)
	}
	mustDo(t, l.store(2, source[:page]))
}

// A region nobody can store to is read where it is until it is copied; it may go right
// after.
func TestSnapshotOfRegionThatGoesWhileItIsRead(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: page})
	want := bytes.Repeat([]byte{7}, 64*page)
	for range 20 {
		r := mustAdd(t, m, RegionOptions{Size: 64 * page, Access: RegionReadOnly, Backing: BackingAnonymous,
			Fill: func(f io.WriterAt) error { _, err := f.WriteAt(want, 0); return err }})
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				got := make([]byte, len(want))
				for range 5 {
					if _, err := s.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
						t.Errorf("ReadAt: %v; equal: %v", err, bytes.Equal(got, want))
						return
					}
				}
			})
			wg.Go(func() { mustSweep(t, s) })
		}
		for err := error(ErrBusy); errors.Is(err, ErrBusy); {
			if err = m.RemoveRegion(r); err != nil && !errors.Is(err, ErrBusy) {
				t.Error(err)
			}
		}
		wg.Wait()
		// A reader that had found them lacking, and comes only now.
		for _, l := range s.layers[:1] {
			if n, err := l.readParent(context.Background(), make([]byte, page), 0, 0, 1); n != 0 || err != nil {
				t.Errorf("a late reader gets %d bytes, %v, and is to look again", n, err)
			}
		}
		mustDo(t, s.Err())
		mustDo(t, s.Close())
		if t.Failed() {
			return
		}
	}
}

// R12: a vCPU of a clone waits for a page for which the host has no memory; if that
// stays so the clone's owner is told, and nobody waits without anybody knowing.
func TestR12CloneWithoutMemoryIsTold(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, _ := patterned(t, 16)
	for _, p := range []uint64{9, 3} { // one that the layer lacks, and one of zeroes
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		told := make(chan error, 1)
		clone := mustCloneOf(t, s, CloneOptions{OnFailure: func(err error) { told <- err }})
		mustReadPhys(t, clone, r.base, 1) // brings those round it
		run := inject.Start(inject.Plan{Match: inject.Only("snapshot: copy to a layer"), Until: 1 << 30, Errno: unix.ENOMEM})
		var load <-chan struct{}
		mustDo(t, run.During(func() error {
			load = testutil.Go(func() { _ = testutil.Load(uint64(clone.Regions()[0].Slot())+p*page, make([]byte, 8)) })
			if err := testutil.Proceeds(t, told, "the owner"); !errors.Is(err, ErrNoMemory) {
				t.Errorf("the owner was told %v", err)
			}
			return nil
		}))
		mustDo(t, clone.Close())
		testutil.Proceeds(t, load, "the vCPU, at the end of its memory")
		mustDo(t, s.Close())
	}
	mustDo(t, slotStore(r, 0, []byte{1}))
}

// Everything at once that may be done to a memory while snapshots of it are open, by
// chance: whatever is refused is refused by name, and nothing is left.
func TestSnapshotStorm(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	rounds := 3
	if *soak {
		rounds = 300
	}
	for round := range rounds {
		m, r, _ := patterned(t, 64)
		var stop atomic.Bool
		var wg sync.WaitGroup
		loop := func(op func(rng *rand.Rand) error) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), 3))
				for !stop.Load() {
					if err := op(rng); err != nil && !errors.Is(err, ErrBusy) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, ErrClosed) {
						t.Error(err)
						return
					}
				}
			})
		}
		loop(func(rng *rand.Rand) error { return slotStore(r, rng.Uint64N(63)*page, []byte{1}) })
		loop(func(rng *rand.Rand) error { return m.Store8(r.base+addr.GPA(rng.Uint64N(64)*page), 2) })
		loop(func(rng *rand.Rand) error { return m.Discard(r.base+addr.GPA(rng.Uint64N(64)*page), page) })
		loop(func(rng *rand.Rand) error {
			x, err := m.AddRegion(RegionOptions{Size: 8 * page, Backing: Backing(rng.IntN(2)), HugePages: HugeNever})
			for err == nil {
				if err = m.RemoveRegion(x); err == nil || !errors.Is(err, ErrBusy) {
					return err
				}
				if stop.Load() {
					return nil
				}
				err = nil
			}
			return err
		})
		loop(func(rng *rand.Rand) error { return m.CollectDirty(r, func(addr.GPA, uint64) {}) })
		loop(func(rng *rand.Rand) error {
			x, err := m.Slice(r.base+addr.GPA(rng.Uint64N(60)*page), 3*page, Access(1+rng.IntN(2)))
			if err == nil {
				x.Release()
			}
			return err
		})
		for range 2 {
			loop(func(rng *rand.Rand) error { // snapshots, swept, read, cloned, cancelled
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rng.IntN(3000))*time.Microsecond)
				defer cancel()
				s, err := m.Snapshot(ctx, SnapshotOptions{Sweep: SweepMode(rng.IntN(2)), After: ArmedAfter(rng.IntN(2))})
				if err != nil {
					return err
				}
				defer s.Close()
				switch rng.IntN(4) {
				case 0:
					return s.Sweep(ctx)
				case 1:
					_, err = s.ReadAt(make([]byte, 9*page), r.base+addr.GPA(rng.Uint64N(50)*page))
					return err
				case 2:
					c, err := s.Clone(ctx, CloneOptions{})
					if err != nil {
						return err
					}
					if rng.IntN(2) == 0 {
						mustDo(t, s.Close())
					}
					_, err = c.ReadAt(make([]byte, 64*page), r.base)
					return errors.Join(err, c.Close())
				}
				return nil
			})
		}
		loop(func(rng *rand.Rand) error { // a fork of a fork of a fork, closed in any order
			of, all := m, []*Memory(nil)
			for range 3 {
				f, err := of.Fork(context.Background(), ForkOptions{SnapshotOptions: SnapshotOptions{Sweep: SweepMode(rng.IntN(2))}})
				if err != nil {
					return err
				}
				all, of = append(all, f), f
				mustDo(t, f.Store8(r.base, 3))
			}
			if rng.IntN(2) == 0 {
				all[0], all[2] = all[2], all[0]
			}
			for len(all) > 0 { // one that others need is busy: it comes later
				if err := all[0].Close(); errors.Is(err, ErrBusy) {
					all = append(all[1:], all[0])
				} else if all = all[1:]; err != nil {
					return err
				}
			}
			return nil
		})
		time.Sleep(150 * time.Millisecond)
		stop.Store(true)
		testutil.Proceeds(t, testutil.Go(wg.Wait), "the storm")
		if t.Failed() {
			return
		}
	}
}

// A host that runs out of descriptors refuses a snapshot or a clone by name.
func TestSnapshotsWithoutDescriptors(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	m, r, want := patterned(t, 8)
	open := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	var full []int
	fill := func() {
		for {
			fd, err := unix.Dup(0)
			if err != nil {
				return
			}
			full = append(full, fd)
		}
	}
	var limit unix.Rlimit
	mustDo(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	low := limit
	low.Cur = 256
	mustDo(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &low))
	defer unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	fill()
	defer func() {
		for _, fd := range full {
			unix.Close(fd)
		}
	}()
	for free := 0; ; free++ {
		_, err := m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand})
		_, errClone := open.Clone(context.Background(), CloneOptions{})
		if !errors.Is(err, unix.EMFILE) || !errors.Is(errClone, unix.EMFILE) {
			t.Fatalf("with %d descriptors free: %v, %v", free, err, errClone)
		}
		if free == 1 {
			break // a snapshot needs two
		}
		unix.Close(full[len(full)-1])
		full = full[:len(full)-1]
	}
	for _, fd := range full {
		unix.Close(fd)
	}
	full = nil
	mustDo(t, slotStore(r, 0, []byte{1}))
	mustShow(t, open, r.base, want, "the one that was open")
}

// R12: a userfaultfd that is closed by mistake leaves armed pages armed: who writes to
// one waits, the snapshot gets the page, and all goes on.
func TestR12ClosedDescriptorDisarmsNothing(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 32)
	before := bytes.Clone(want)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	clone := mustCloneOf(t, s, CloneOptions{})
	for i := range 3 {
		for _, of := range []*Memory{m, clone} {
			// Closed, and another file in its place, which is nobody's to close.
			null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
			mustDo(t, err)
			lost := of.snaps.watch.Load().fd.Load().Fd()
			mustDo(t, unix.Dup3(null, lost, unix.O_CLOEXEC))
			defer unix.Close(lost)
			mustDo(t, unix.Close(null))
		}
		at := uint64(i * 9 * page)
		stored := testutil.Go(func() { mustDo(t, slotStore(r, at, []byte("after"))) })
		testutil.Proceeds(t, stored, "a store to an armed page")
		copy(want[at:], "after")
		mustDo(t, m.Store8(r.base+addr.GPA(at+page), 9))
		want[at+page] = 9
		got := make([]byte, page)
		load := testutil.Go(func() { mustDo(t, testutil.Load(uint64(clone.Regions()[0].Slot())+at, got)) })
		testutil.Proceeds(t, load, "a vCPU of the clone")
		mustEqualPages(t, got, before[at:at+page], "the clone")
	}
	mustShow(t, s, r.base, before, "the snapshot")
	mustEqualPages(t, mustReadPhys(t, m, r.base, len(want)), want, "the guest")
}
