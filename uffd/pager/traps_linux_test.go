package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	uatomic "go.uber.org/atomic"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// The traps are what the kernel does that page-fault servers get wrong; each
// test fails when its guard is taken out.

// sources has each kind of serving: by a worker, and by the reader at once.
func sources(n int) map[string]Source {
	size := uint64(n) * smallPage
	return map[string]Source{"worker": &testSource{size: size}, "reader": &quickSource{testSource{size: size}}}
}

// TestTrap02AgainWithoutAnEvent: EAGAIN lasts on after every event was read,
// and nothing tells when it is over. The fault must be retried by the clock.
func TestTrap02AgainWithoutAnEvent(t *testing.T) {
	for name, src := range sources(4) {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			left := 50
			f.script = func(op string, start addr.HVA, _ uint64) (uint64, error, bool) {
				if start != 0 && left > 0 {
					left--
					return 0, syscall.EAGAIN, true
				}
				return 0, nil, false
			}
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src})
			mustTouch(t, f, page(1), imagePage(1*smallPage))
			if n := g.Stats().Retried.Load(); n < 50 {
				t.Errorf("%d retries counted, want 50", n)
			}
			// The same for a page that is to be zero.
			f.remove(page(2), page(3))
			f.with(func() { left = 50 })
			mustTouch(t, f, page(2), zeroPage)
		})
	}
}

// TestTrap02EventsAreDrainedMeanwhile: a worker that retries must not keep the
// reader from reading the event that the kernel waits for.
func TestTrap02EventsAreDrainedMeanwhile(t *testing.T) {
	f := newFake(t)
	src := &testSource{size: 8 * smallPage}
	reached, resume := make(chan struct{}), make(chan struct{})
	src.read = func(_ context.Context, off uint64, _ int) error {
		if off == 0 {
			close(reached)
			<-resume
		}
		return nil
	}
	serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src})
	f.with(func() { f.changing++ }) // a change that has not queued its event yet
	loaded := goTouch(f, page(0))
	testutil.Proceeds(t, reached, "read of the source")
	close(resume)
	testutil.Parked(t, loaded, "load during a layout change")
	removed := testutil.Go(func() { f.remove(page(4), page(8)) })
	testutil.Proceeds(t, removed, "remover")
	f.with(func() { f.changing-- })
	if got := testutil.Proceeds(t, loaded, "load after the change"); string(got) != string(imagePage(0)) {
		t.Errorf("loaded %x...", head(got))
	}
}

// TestTrap03ExistingPageIsWoken: EEXIST wakes nobody by itself.
func TestTrap03ExistingPageIsWoken(t *testing.T) {
	for name, src := range sources(4) {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.script = func(op string, start addr.HVA, length uint64) (uint64, error, bool) {
				if start == page(1) && f.pages[start] == nil {
					// Somebody else is faster, and has woken nobody yet.
					f.pages[start] = &fakePage{data: imagePage(1 * smallPage)}
					return 0, syscall.EEXIST, true
				}
				return 0, nil, false
			}
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src})
			mustTouch(t, f, page(1), imagePage(1*smallPage))
			mustCount(t, "pages there already", &g.Stats().Already, 1)
		})
	}
}

// TestTrap03GoneIsNoSuccess: ENOENT is a range that has gone, ESRCH a process.
func TestTrap03GoneIsNoSuccess(t *testing.T) {
	f := newFake(t)
	f.mapped = func(a addr.HVA) bool { return a >= base && a != page(1) }
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 4 * smallPage}})
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(1)})
	mustTouch(t, f, page(2), imagePage(2*smallPage))
	eventually(t, "the page to be counted gone", func() bool { return g.Stats().Gone.Load() == 1 })
	eventually(t, "what could not be installed to be absent again", func() bool {
		return g.l.regions[0].pages.at(1)&stateMask == absent
	})
	mustCount(t, "pages copied", &g.Stats().Copied, 1)
	f.with(func() { f.dead = true })
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(3)})
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !errors.Is(err, ErrPeerGone) || !errors.Is(err, syscall.ESRCH) {
		t.Errorf("guest ended by %v, want ErrPeerGone and ESRCH", err)
	}
}

// TestTrap04ZeroesAreArmedAtOnce: zeroes that must be armed are never a page of
// zeroes that is protected in a second step.
func TestTrap04ZeroesAreArmedAtOnce(t *testing.T) {
	f := newFake(t)
	serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source:  &testSource{size: 4 * smallPage},
		Regions: []Region{{Start: base, Size: 4 * smallPage, Arming: ArmInstalled}},
	})
	f.remove(page(1), page(2))
	mustTouch(t, f, page(1), zeroPage)
	mustTouch(t, f, page(2), imagePage(2*smallPage))
	f.with(func() {
		for _, i := range []int{1, 2} {
			if p := f.pages[page(i)]; !p.armed {
				t.Errorf("page %d was installed unarmed, by %s", i, p.kind)
			}
		}
	})
}

// TestTrap04Kernel: the same with the real kernel: the first write is told of.
func TestTrap04Kernel(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPAnon)
	r := newReal(t, 8*smallPage, realOptions{features: events | uffd.FeatureFaultWP, mode: uffd.Missing | uffd.WP})
	var written atomic.Int64
	serveReal(t, newTestServer(t, Options{}), r, GuestOptions{
		Source:  &testSource{size: 8 * smallPage},
		Regions: []Region{{Start: r.start, Size: r.size, Arming: ArmInstalled}},
		OnWrite: func(_ context.Context, _ addr.HVA, off uint64) error {
			written.Add(1 << (off / smallPage * 8))
			return nil
		},
	})
	if err := adviseRaw(r.page(1), smallPage, unix.MADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	loadPage(t, r.page(1), zeroPage)
	loadPage(t, r.page(2), imagePage(2*smallPage))
	for _, i := range []int{1, 2} {
		for range 2 { // the second write is no news
			done := make(chan error, 1)
			go func() { done <- store(r.page(i), []byte("written")) }()
			if err := testutil.Proceeds(t, done, "store"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := written.Load(); got != 1<<8|1<<16 {
		t.Errorf("writes told: %#x, want one each of pages 1 and 2", got)
	}
}

// TestTrap06ReadMayFaultAsWrite: a fault for writing on a page that is absent
// is a missing fault like any other.
func TestTrap06ReadMayFaultAsWrite(t *testing.T) {
	f := newFake(t)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 4 * smallPage}})
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(1), Flags: uffd.FaultWrite})
	eventually(t, "the page to be installed", func() bool { return g.Stats().Copied.Load() == 1 })
	if n := g.Stats().Missing.Load(); n != 1 {
		t.Errorf("%d missing faults counted", n)
	}
}

// TestTrap07ExistingPageInTheMiddle: a run stops at a page that is there; what
// follows it must be installed all the same, and both be counted.
func TestTrap07ExistingPageInTheMiddle(t *testing.T) {
	const n = 32
	f := newFake(t)
	old := []byte("the guest's own")
	f.pages[page(5)] = &fakePage{data: old}
	f.pages[page(6)] = &fakePage{data: old}
	f.pages[page(15)] = &fakePage{data: old}
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: &testSource{size: n * smallPage}, Fill: Fill{Background: FillAll},
	})
	testutil.Proceeds(t, g.Done(), "fill")
	if err := g.Err(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		p := f.pages[page(i)]
		switch {
		case p == nil:
			t.Errorf("page %d is not there", i)
		case i == 5 || i == 6 || i == 15:
			if string(p.data) != string(old) {
				t.Errorf("page %d was overwritten", i)
			}
		case string(p.data) != string(imagePage(uint64(i)*smallPage)):
			t.Errorf("page %d: %x...", i, head(p.data))
		}
	}
	mustCount(t, "pages copied", &g.Stats().Copied, n-3)
	mustCount(t, "pages there already", &g.Stats().Already, 3)
}

// TestTrap07RunAcrossMappings: the kernel refuses a run that lies in two
// mappings as a whole, with ENOENT.
func TestTrap07RunAcrossMappings(t *testing.T) {
	f := newFake(t)
	f.script = func(op string, start addr.HVA, length uint64) (uint64, error, bool) {
		if start < page(5) && start+addr.HVA(length) > page(5) && start != 0 {
			return 0, syscall.ENOENT, true
		}
		return 0, nil, false
	}
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: &testSource{size: 16 * smallPage}, Fill: Fill{Background: FillAll},
	})
	testutil.Proceeds(t, g.Done(), "fill")
	if err := g.Err(); err != nil {
		t.Error(err)
	}
	mustCount(t, "pages copied", &g.Stats().Copied, 16)
}

// TestTrap09CacheHasNoHugePages: with huge pages round a small one that is
// there, KVM would map 2 MiB of which the rest is zeroes. A cache's memory never
// has more pages than were written.
func TestTrap09CacheHasNoHugePages(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMinorShmem)
	const n = 1024
	src := &testSource{size: n * smallPage}
	cache, err := NewCache(src)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	if err := cache.fetch(context.Background(), make([]byte, smallPage), 700*smallPage, func(ctx context.Context, p []byte, off uint64) error {
		return src.ReadPages(ctx, p, off)
	}); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(cache.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if got := st.Blocks * 512; got != smallPage {
		t.Errorf("one page was written, and the file has %d bytes", got)
	}
}

// TestTrap09SlotsHaveNoHugePages: what vCPUs see of a region, whose pages may
// come one by one, is never mapped by huge pages.
func TestTrap09SlotsHaveNoHugePages(t *testing.T) {
	const n = 1024
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	r, err := m.AddRegion(guestmem.RegionOptions{Size: n * smallPage})
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(maps), fmt.Sprintf("\n%x-%x ", uint64(r.Slot()), uint64(r.Slot())+r.Size()))
	_, flags, _ := strings.Cut(rest, "VmFlags:")
	if flags, _, _ = strings.Cut(flags, "\n"); !ok || !slices.Contains(strings.Fields(flags), "nh") {
		t.Errorf("found %v: flags %q, want nh among them (MADV_NOHUGEPAGE)", ok, flags)
	}
}

// TestTrap13CollectorAndParkedFaults: the server and those whose faults wait
// are in one process, and the collector stops the world all the while. Every
// access is by system call, so nothing hangs.
func TestTrap13CollectorAndParkedFaults(t *testing.T) { testCollector(t) }

// TestR10CollectorRunsBesideParkedFaults is the rule behind the trap.
func TestR10CollectorRunsBesideParkedFaults(t *testing.T) { testCollector(t) }

func testCollector(t *testing.T) {
	const n = 300
	r := newReal(t, n*smallPage, realOptions{features: events})
	gate := make(chan struct{})
	src := &testSource{size: n * smallPage, read: func(ctx context.Context, off uint64, _ int) error {
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}}
	serveReal(t, newTestServer(t, Options{}), r, GuestOptions{Source: src})
	var loads sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		loads.Go(func() {
			p := make([]byte, smallPage)
			err := load(r.page(i), p)
			if err == nil && string(p) != string(imagePage(uint64(i)*smallPage)) {
				err = errors.New("wrong bytes")
			}
			errs <- err
		})
	}
	eventually(t, "every load to wait", func() bool {
		waiting, _, err := r.fd.Pending()
		return err == nil && waiting == n
	})
	testutil.Within(t, within, func() {
		for range 20 {
			runtime.GC()
		}
	})
	stop := make(chan struct{})
	collecting := testutil.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	close(gate)
	testutil.Proceeds(t, testutil.Go(loads.Wait), "loads beside the collector")
	close(stop)
	testutil.Proceeds(t, collecting, "collector")
	for range n {
		if err := <-errs; err != nil {
			t.Fatal(err)
		}
	}
}

// TestTrap14LocksDoNotNest: a thread in madvise waits for its event to be read.
// Nothing that may wait for that thread, or for an embedder, may keep the reader
// from it: no lock is held across a source or a function of the owner, and none
// that the reader needs is held while sleeping.
func TestTrap14LocksDoNotNest(t *testing.T) {
	f := newFake(t)
	gate := make(chan struct{})
	open := sync.OnceFunc(func() { close(gate) })
	src := &testSource{size: 16 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		if off < 4*smallPage {
			<-gate
		}
		return nil
	}}
	writes := make(chan struct{})
	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source:  src,
		Regions: []Region{{Start: base, Size: 16 * smallPage, Arming: ArmInstalled}},
		OnWrite: func(context.Context, addr.HVA, uint64) error { close(writes); <-release; return nil },
	})
	t.Cleanup(open)
	t.Cleanup(letGo)
	stuck := []<-chan []byte{goTouch(f, page(0)), goTouch(f, page(1)), goTouch(f, page(2))}
	mustTouch(t, f, page(9), imagePage(9*smallPage))
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(9), Flags: uffd.FaultWP | uffd.FaultWrite})
	testutil.Proceeds(t, writes, "owner told of the write")
	// Sources and the owner's function are stuck. Events are read, other pages
	// served, and the owner may ask for anything.
	testutil.Proceeds(t, testutil.Go(func() { f.remove(page(3), page(4)) }), "remover")
	testutil.Proceeds(t, testutil.Go(func() { f.remove(page(0), page(1)) }), "remover of a page on its way")
	mustTouch(t, f, page(10), imagePage(10*smallPage))
	testutil.Within(t, within, func() { g.Missing(); g.Stats(); g.WorkingSet(); g.Retry(); _ = g.Err() })
	letGo()
	open()
	if got := testutil.Proceeds(t, stuck[0], "load of the removed page"); string(got) != string(zeroPage) {
		t.Errorf("a page removed while it was read holds %x...", head(got))
	}
	for i, ch := range stuck[1:] {
		if got := testutil.Proceeds(t, ch, "load of a slow page"); string(got) != string(imagePage(uint64(i+1)*smallPage)) {
			t.Errorf("slow page %d holds %x...", i+1, head(got))
		}
	}
}

// TestTrap15Livelock: a page that faults again and again though every answer
// succeeds ends the guest by name, and does not spin forever.
func TestTrap15Livelock(t *testing.T) {
	for name, src := range sources(4) {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.script = func(op string, start addr.HVA, length uint64) (uint64, error, bool) {
				if start == page(1) {
					f.wakeLocked(start, length)
					return 0, syscall.EEXIST, true // and yet it is not there
				}
				return 0, nil, false
			}
			failed := make(chan error, 1)
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, LivelockLimit: 50, Fail: func(err error) { failed <- err }})
			loaded := goTouch(f, page(1))
			err := testutil.Proceeds(t, failed, "end of the guest")
			if !errors.Is(err, ErrLivelock) || !strings.Contains(err.Error(), page(1).String()) {
				t.Errorf("guest ended by %v, want ErrLivelock and the address", err)
			}
			testutil.Parked(t, loaded, "load after the guest was failed")
			g.Close()
			testutil.Proceeds(t, loaded, "load after Close")
		})
	}
}

// TestTrap15EndlessAgain: EAGAIN that never ends does so too.
func TestTrap15EndlessAgain(t *testing.T) {
	f := newFake(t)
	f.script = func(op string, start addr.HVA, length uint64) (uint64, error, bool) { return 0, syscall.EAGAIN, true }
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 4 * smallPage}, RetryLimit: 20})
	goTouch(f, page(1))
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !errors.Is(err, ErrLivelock) || !errors.Is(err, syscall.EAGAIN) {
		t.Errorf("guest ended by %v, want ErrLivelock and EAGAIN", err)
	}
	g.Close()
}

// mustCount wants a counter to come to want, and not beyond. Whoever installs a
// page wakes the guest first and counts second.
func mustCount(t testing.TB, what string, c *uatomic.Uint64, want uint64) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d %s", want, what), func() bool {
		n := c.Load()
		if n > want {
			t.Fatalf("%d %s, want %d", n, what, want)
		}
		return n == want
	})
}

// eventually waits for what another goroutine is about to do.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(within); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
