package pager

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// TestFetch: who cannot fault asks, and has the pages when it returns; together
// with faults each is read once.
func TestFetch(t *testing.T) {
	f := newFake(t)
	src, mended := broken(64, 40)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, OnFailure: Park})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := g.Fetch(context.Background(), page(3)+5, 20*smallPage); err != nil {
				t.Error(err)
			}
		})
	}
	mustTouch(t, f, page(10), imagePage(10*smallPage))
	testutil.Proceeds(t, testutil.Go(wg.Wait), "fetchers")
	f.with(func() {
		for i := 3; i <= 23; i++ {
			if f.pages[page(i)] == nil {
				t.Errorf("page %d is not there", i)
			}
		}
	})
	mustCount(t, "pages copied", &g.Stats().Copied, 21)
	if err := g.Fetch(context.Background(), page(63), 2*smallPage); !errors.Is(err, ErrOutside) {
		t.Errorf("beyond the region: %v", err)
	}
	// A page that cannot be read is waited for, until it can be or ctx ends.
	ctx, cancel := context.WithCancel(context.Background())
	fetched := make(chan error, 2)
	go func() { fetched <- g.Fetch(ctx, page(40), smallPage) }()
	eventually(t, "the page to be parked", func() bool { return g.Stats().Parked.Load() == 1 })
	testutil.Parked(t, fetched, "fetch of an unreadable page")
	cancel()
	if err := testutil.Proceeds(t, fetched, "fetch that was given up"); !errors.Is(err, context.Canceled) {
		t.Errorf("fetch that was given up: %v", err)
	}
	go func() { fetched <- g.Fetch(context.Background(), page(40), smallPage) }()
	mended.Store(true)
	g.Retry()
	if err := testutil.Proceeds(t, fetched, "fetch after Retry"); err != nil {
		t.Error(err)
	}
	if err := g.Remove(page(50), smallPage); err != nil {
		t.Error(err)
	}
	mustTouch(t, f, page(50), zeroPage)
	g.Close()
	if err := g.Fetch(context.Background(), page(60), smallPage); !errors.Is(err, ErrClosed) {
		t.Errorf("fetch from a closed guest: %v", err)
	}
}

// TestFetchBesideTheEnd: serving ends well because every page has come, after a
// fetcher has found its page missing and before it looks whether it is still served.
func TestFetchBesideTheEnd(t *testing.T) {
	f := newFake(t)
	open := make(chan struct{})
	src := &testSource{size: 64 * smallPage, read: func(context.Context, uint64, int) error {
		<-open
		return nil
	}}
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, Fill: Fill{Background: FillAll}})
	looked := &lookContext{Context: context.Background(), look: sync.OnceFunc(func() {
		close(open)
		testutil.Proceeds(t, g.Done(), "filling")
	})}
	if err := g.Fetch(looked, page(63), smallPage); err != nil || g.Err() != nil {
		t.Errorf("fetch: %v; serving ended by %v; want neither", err, g.Err())
	}
}

// A lookContext calls look when it is asked whether it has ended.
type lookContext struct {
	context.Context
	look func()
}

func (c *lookContext) Err() error {
	c.look()
	return nil
}

// lazyRegion returns a memory of one region of so many pages, which come from a
// testSource when they are touched: by its slot, or by Go code through the alias.
func lazyRegion(t *testing.T, pages uint64) (*guestmem.Memory, *guestmem.Region, *Guest) {
	t.Helper()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	r, err := m.AddRegion(guestmem.RegionOptions{Size: pages * smallPage})
	if err != nil {
		t.Fatal(err)
	}
	fd, err := uffd.Open(uffd.Options{Required: events | uffd.FeatureMissingShmem})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { fd.Close() })
	if _, err := fd.Register(r.Slot(), r.Size(), uffd.Missing); err != nil {
		t.Fatal(err)
	}
	g, err := newTestServer(t, Options{}).Add(GuestOptions{
		FD: fd, Source: &testSource{size: pages * smallPage}, Fail: func(error) {},
		Regions: []Region{{Start: r.Slot(), Size: r.Size()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	if err := r.SetFaultServer(g.FaultServer(), guestmem.PageAbsent); err != nil {
		t.Fatal(err)
	}
	return m, r, g
}

// TestMemoryOfThisProcess restores a region of a guestmem.Memory lazily: its
// slot mapping faults, and Go code reads through the alias.
func TestMemoryOfThisProcess(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	const n = 256
	m, r, g := lazyRegion(t, n)
	var wg sync.WaitGroup
	for th := range 3 {
		wg.Go(func() {
			p := make([]byte, smallPage)
			for i := range n {
				var err error
				if (i+th)%3 == 0 { // as a vCPU does
					err = load(r.Slot()+addr.HVA(i)*smallPage, p)
				} else {
					_, err = m.ReadAt(p, r.Base()+addr.GPA(i)*smallPage)
				}
				if err != nil || !bytes.Equal(p, imagePage(uint64(i)*smallPage)) {
					t.Errorf("page %d: %v, %x...", i, err, head(p))
					return
				}
			}
		})
	}
	testutil.Proceeds(t, testutil.Go(wg.Wait), "readers")
	mustCount(t, "pages copied", &g.Stats().Copied, n)
}

// TestR9DiscardOfALazyRegion: memory that is discarded while it is restored reads
// as zero, to vCPUs and to Go code, whether anybody had touched it or not; the
// hole in the memfd is something that the kernel tells the pager nothing of.
func TestR9DiscardOfALazyRegion(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	const n = 64
	m, r, _ := lazyRegion(t, n)
	zero, p := make([]byte, smallPage), make([]byte, smallPage)
	// Touched by a vCPU, by Go code, by nobody.
	if err := load(r.Slot()+8*smallPage, p); err != nil {
		t.Fatal(err)
	}
	if _, err := m.ReadAt(p, 9*smallPage); err != nil {
		t.Fatal(err)
	}
	if err := m.Discard(8*smallPage, 4*smallPage); err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		at := addr.GPA(8+i) * smallPage
		if i%2 == 0 {
			if err := load(r.Slot()+addr.HVA(at), p); err != nil || !bytes.Equal(p, zero) {
				t.Errorf("page %d faults in as %x..., %v", 8+i, head(p), err)
			}
		}
		if _, err := m.ReadAt(p, at); err != nil || !bytes.Equal(p, zero) {
			t.Errorf("page %d reads %x..., %v", 8+i, head(p), err)
		}
		if err := load(r.Slot()+addr.HVA(at), p); err != nil || !bytes.Equal(p, zero) {
			t.Errorf("page %d faults in as %x..., %v", 8+i, head(p), err)
		}
	}
	if _, err := m.ReadAt(p, 12*smallPage); err != nil || !bytes.Equal(p, imagePage(12*smallPage)) {
		t.Errorf("the page behind: %x..., %v", head(p), err)
	}
}

// TestR12StaleWorker: a worker of the server before still has a page in hand
// when the guest is somebody else's, who has heard that it was given back.
func TestR12StaleWorker(t *testing.T) {
	f := newFake(t)
	reached, resume := make(chan struct{}), make(chan struct{})
	src := &testSource{size: 16 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		close(reached)
		<-resume
		return nil
	}}
	s := newTestServer(t, Options{})
	g := serveFake(t, s, f, GuestOptions{Source: src, OnFailure: Park})
	t.Cleanup(sync.OnceFunc(func() {
		select {
		case <-resume:
		default:
			close(resume)
		}
	}))
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(1)}) // nobody waits for it
	testutil.Proceeds(t, reached, "read of the source")
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	// As in another process: a ledger of its own.
	other, err := decodeTakeover(takeover.encode())
	if err != nil {
		t.Fatal(err)
	}
	other.l.k = f
	g2, err := newTestServer(t, Options{}).TakeOver(other, GuestOptions{Source: &testSource{size: 16 * smallPage}, OnFailure: Park})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	f.remove(page(1), page(2))
	close(resume)
	testutil.Within(t, within, func() { s.Close() }) // the old worker is done
	mustTouch(t, f, page(1), zeroPage)
}

// TestHugePages: 2 MiB at a time, zeroes copied, on a scripted kernel; with the
// real one where the host has such pages to give.
func TestHugePages(t *testing.T) {
	const n = 4
	src := &testSource{size: n * hugePage}
	want := make([]byte, hugePage)
	if err := src.ReadPages(context.Background(), want, hugePage); err != nil {
		t.Fatal(err)
	}
	t.Run("fake", func(t *testing.T) {
		f := newFake(t)
		f.pageSize = hugePage
		f.script = func(op string, start addr.HVA, _ uint64) (uint64, error, bool) {
			return 0, unix.EINVAL, op == "zero" // hugetlb memory has no page of zeroes
		}
		g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
			Source: src, Regions: []Region{{Start: base, Size: n * hugePage, PageSize: hugePage}},
		})
		mustTouch(t, f, base+hugePage+12345&^4095, want)
		f.remove(base+2*hugePage, base+3*hugePage)
		mustTouch(t, f, base+2*hugePage, make([]byte, hugePage))
		mustCount(t, "pages copied", &g.Stats().Copied, 1)
	})
	t.Run("kernel", func(t *testing.T) {
		testutil.HugePages(t, n)
		r, err := mapReal(n*hugePage, realOptions{features: events | uffd.FeatureMissingHugetlb, flags: unix.MAP_HUGETLB})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			r.fd.Close()
			unmapRaw(r.start, r.size)
		})
		serveReal(t, newTestServer(t, Options{}), r, GuestOptions{
			Source: src, Regions: []Region{{Start: r.start, Size: n * hugePage, PageSize: hugePage}},
		})
		got := make([]byte, hugePage)
		err = testutil.Proceeds(t, goLoad(r.start+hugePage, got), "load of a huge page")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%v: %x...", err, head(got))
		}
		if err := adviseRaw(r.start+2*hugePage, hugePage, unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if err := testutil.Proceeds(t, goLoad(r.start+2*hugePage, got), "load of a removed huge page"); err != nil || !bytes.Equal(got, make([]byte, hugePage)) {
			t.Errorf("%v: %x...", err, head(got))
		}
		runtime.KeepAlive(got)
	})
}
