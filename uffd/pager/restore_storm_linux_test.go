package pager

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// expected are the errors that memory answers with whose regions go, or whose restore or
// parents end, while it is used.
var expected = []error{
	guestmem.ErrBusy, guestmem.ErrClosed, guestmem.ErrNoRegion, guestmem.ErrInvalid, ErrClosed, ErrServerClosed, unix.EIO, unix.EFAULT,
	context.Canceled, context.DeadlineExceeded,
}

// unexpected returns the first error that is none of those.
func unexpected(errs ...error) error {
	for _, err := range errs {
		if err != nil && !isAny(err, expected...) {
			return err
		}
	}
	return nil
}

// TestR12RestoreStorm: regions are removed, snapshots, clones and forks taken, read, closed
// and cancelled, and the restore, its server or its file ends, all at once and while the
// rest is filled in the background: each is answered by what memory held or by an error
// with a name, and in the end nothing is left.
func TestR12RestoreStorm(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	rounds := 12
	if *soak {
		rounds = 2000
	}
	for round := range rounds {
		testutil.Within(t, within, func() { stormOver(t, uint64(round)) })
		if t.Failed() {
			t.Fatalf("in round %d", round)
		}
	}
}

func stormOver(t *testing.T, round uint64) {
	rnd := rand.New(rand.NewPCG(round, 12))
	img := savedImage{[]snapfile.Region{
		{Name: "ram", Base: 1 << 20, Size: 256 * smallPage, PageSize: smallPage},
		{Name: "more", Base: 1 << 30, Size: 64 * smallPage, PageSize: smallPage},
		{Name: "rom", Base: 1 << 32, Size: 64 * smallPage, PageSize: smallPage, ReadOnly: true},
	}}
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	must(t, err)
	server := NewServer(Options{})
	var broken atomic.Bool
	r, err := StartRestore(context.Background(), m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{
		Server: server, RecordFor: -1, WorkingSets: NoWorkingSet, Rest: Rest(round % 2), Pause: time.Duration(rnd.IntN(2)) * time.Millisecond,
		Retry: Retry{Attempts: 1}, Fail: func(error) {}, wrap: func(s Source) Source { return breakable{s, &broken} },
	})
	must(t, err)
	var stop atomic.Bool
	var wg sync.WaitGroup
	loop := func(n uint64, op func(*rand.Rand) error) {
		wg.Go(func() {
			for rnd := rand.New(rand.NewPCG(round, n)); !stop.Load(); {
				if err := unexpected(op(rnd)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	somewhere := func(rnd *rand.Rand) addr.GPA {
		reg := img.regions[rnd.IntN(3)]
		return reg.Base + addr.GPA(rnd.Uint64N(reg.Size/smallPage))*smallPage
	}
	// Nobody stores to odd pages: they are what the file holds, wherever they are read.
	check := func(rnd *rand.Rand, read func([]byte, addr.GPA) (int, error)) error {
		at, p := somewhere(rnd)|smallPage, make([]byte, smallPage)
		_, err := read(p, at)
		if err == nil && !bytes.Equal(p, savedPage(at)) {
			t.Errorf("page at %v holds %x..., want %x...", at, head(p), head(savedPage(at)))
		}
		return err
	}
	evenPage := func(rnd *rand.Rand) addr.GPA {
		return img.regions[0].Base + addr.GPA(rnd.IntN(128))*2*smallPage
	}
	loop(1, func(rnd *rand.Rand) error { return check(rnd, m.ReadAt) })
	loop(2, func(rnd *rand.Rand) error {
		_, err := m.WriteAt([]byte("stored"), evenPage(rnd))
		return err
	})
	loop(3, func(rnd *rand.Rand) error { return m.Discard(evenPage(rnd), smallPage) })
	ram, _ := m.RegionAt(img.regions[0].Base)
	loop(4, func(rnd *rand.Rand) error { // as a vCPU does; this region stays
		at := ram.Slot() + addr.HVA(evenPage(rnd)-ram.Base())
		if rnd.IntN(2) == 0 {
			return load(at, make([]byte, 8))
		}
		return store(at, []byte("by a vCPU"))
	})
	for n := range uint64(2) {
		loop(5+n, func(rnd *rand.Rand) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rnd.IntN(4000))*time.Microsecond)
			defer cancel()
			s, err := m.Snapshot(ctx, guestmem.SnapshotOptions{Sweep: guestmem.SweepMode(rnd.IntN(2)), After: guestmem.ArmedAfter(rnd.IntN(2))})
			if err != nil {
				return err
			}
			defer s.Close()
			err = check(rnd, s.ReadAt)
			switch rnd.IntN(4) {
			case 0:
				return unexpected(err, s.Sweep(ctx))
			case 1:
				c, e := s.Clone(ctx, guestmem.CloneOptions{OnFailure: func(error) {}})
				if e != nil {
					return unexpected(err, e)
				}
				if rnd.IntN(2) == 0 {
					must(t, s.Close())
				}
				errs := []error{err, check(rnd, c.ReadAt), check(rnd, c.ReadAt)}
				if rnd.IntN(2) == 0 {
					regs := c.Regions()
					errs = append(errs, c.RemoveRegion(regs[rnd.IntN(len(regs))]))
				}
				return unexpected(append(errs, c.Close())...)
			}
			return err
		})
	}
	loop(7, func(rnd *rand.Rand) error {
		f, err := m.Fork(context.Background(), guestmem.ForkOptions{SnapshotOptions: guestmem.SnapshotOptions{Sweep: guestmem.SweepMode(rnd.IntN(2))}})
		if err != nil {
			return err
		}
		return unexpected(check(rnd, f.ReadAt), check(rnd, f.ReadAt), f.Close())
	})
	sleepShort(time.Duration(rnd.IntN(6000)) * time.Microsecond)
	if rnd.IntN(2) == 0 {
		loop(8, func(rnd *rand.Rand) error {
			if reg, ok := m.RegionAt(img.regions[1+rnd.IntN(2)].Base); ok {
				return m.RemoveRegion(reg)
			}
			return nil
		})
	}
	sleepShort(time.Duration(rnd.IntN(6000)) * time.Microsecond)
	switch rnd.IntN(4) { // or it comes to its end
	case 0:
		must(t, r.Close())
	case 1:
		must(t, server.Close())
	case 2:
		broken.Store(true)
	}
	sleepShort(time.Duration(2000+rnd.IntN(6000)) * time.Microsecond)
	early := rnd.IntN(2) == 0
	if early {
		must(t, r.Close())
	}
	stop.Store(true)
	wg.Wait()
	must(t, r.Close())
	for err := m.Close(); err != nil; err = m.Close() { // forks may have been cancelled, and let go in a moment
		if !errors.Is(err, guestmem.ErrBusy) {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	must(t, server.Close())
}
