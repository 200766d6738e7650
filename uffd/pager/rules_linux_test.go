package pager

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// TestR9RemovalBeatsInstall is the interleaving of the ledger's comment:
//
//	reader                     worker                     guest
//	                           has read the image for p
//	Read → REMOVE of p
//	                                                      zaps p
//	                           Copy(p)?
//	marks p removed
//
// The copy must not happen between the read of the event and its mark.
func TestR9RemovalBeatsInstall(t *testing.T) {
	f := newFake(t)
	f.zapInRead = true
	inHand, goOn := make(chan struct{}), make(chan struct{})
	src := &testSource{size: 8 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		close(inHand)
		<-goOn
		return nil
	}}
	f.afterZap = func() {
		// The event has been read, the pages are gone, and the reader has not
		// marked them. The worker has its bytes now: give it every chance.
		close(goOn)
		for range 200 {
			runtime.Gosched()
			sleepShort(50_000)
		}
	}
	serveFake(t, newTestServer(t, Options{SpinFor: -1}), f, GuestOptions{Source: src})
	loaded := goTouch(f, page(1))
	testutil.Proceeds(t, inHand, "read of the source")
	f.remove(page(1), page(2))
	if got := testutil.Proceeds(t, loaded, "load"); string(got) != string(zeroPage) {
		t.Errorf("a removed page shows the image: %x...", head(got))
	}
}

// TestR9LateZap: the remover zaps some time after its event was read. What was
// installed between goes with the rest, and must be zeroes afterwards.
func TestR9LateZap(t *testing.T) {
	for name, src := range sources(8) {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			read, zap := make(chan struct{}), make(chan struct{})
			f.beforeZap = func() { close(read); <-zap }
			serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src})
			removed := testutil.Go(func() { f.remove(page(1), page(3)) })
			testutil.Proceeds(t, read, "event being read")
			mustTouch(t, f, page(1), zeroPage)
			close(zap)
			testutil.Proceeds(t, removed, "remover")
			mustTouch(t, f, page(1), zeroPage)
			mustTouch(t, f, page(2), zeroPage)
			mustTouch(t, f, page(3), imagePage(3*smallPage))
		})
	}
}

// TestR9FaultReadBeforeItsRemoval: faults are told before layout events, and so
// a fault comes before the removal that it follows.
func TestR9FaultReadBeforeItsRemoval(t *testing.T) {
	for name, src := range sources(8) {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src})
			f.with(func() {
				f.faults = append(f.faults, uffd.Event{Kind: uffd.EventFault, Addr: page(1)})
				f.layout = append(f.layout, uffd.Event{Kind: uffd.EventRemove, Start: page(1), End: page(2)})
				f.signal()
			})
			eventually(t, "the fault to be answered", func() bool { return g.Stats().Zeroed.Load() == 1 })
			mustTouch(t, f, page(1), zeroPage)
			if n := g.Stats().Copied.Load(); n != 0 {
				t.Errorf("%d pages copied from the image, want none", n)
			}
		})
	}
}

// TestR9FaultAtNewPlaceBeforeItsMove: memory that moves can fault at its new
// place before the move is told; that is no fault outside of every region.
func TestR9FaultAtNewPlaceBeforeItsMove(t *testing.T) {
	f := newFake(t)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 8 * smallPage}})
	f.with(func() { f.changing++ })
	loaded := goTouch(f, page(100))
	testutil.Parked(t, loaded, "load at the new place")
	if g.Err() != nil {
		t.Fatal("guest failed: ", g.Err())
	}
	f.event(uffd.Event{Kind: uffd.EventRemap, From: page(2), To: page(100), Len: 2 * smallPage})
	eventually(t, "the move to be read", func() bool { return g.Stats().Remaps.Load() == 1 })
	f.with(func() { f.changing-- })
	if got := testutil.Proceeds(t, loaded, "load at the new place"); string(got) != string(imagePage(2*smallPage)) {
		t.Errorf("loaded %x...", head(got))
	}
	mustTouch(t, f, page(101), imagePage(3*smallPage))
	mustTouch(t, f, page(4), imagePage(4*smallPage))
}

// TestR9ManyRemovers has threads remove and load their own pages on the real
// kernel, with slow reads, and holds every load against what it must be.
func TestR9ManyRemovers(t *testing.T) {
	const threads, perThread, rounds = 4, 32, 200
	const n = threads * perThread
	r := newReal(t, n*smallPage, realOptions{features: events})
	src := &testSource{size: n * smallPage, read: func(context.Context, uint64, int) error { runtime.Gosched(); return nil }}
	g := serveReal(t, newTestServer(t, Options{}), r, GuestOptions{Source: src, Fill: Fill{Background: NoBackground}})
	var wg sync.WaitGroup
	for th := range threads {
		wg.Go(func() {
			var gone [perThread]bool
			p := make([]byte, smallPage)
			for k := range rounds {
				i := (k*7 + th) % perThread
				at := th*perThread + i
				if k%3 == 0 {
					if err := adviseRaw(r.page(at), smallPage, unix.MADV_DONTNEED); err != nil {
						t.Error(err)
					}
					gone[i] = true
				}
				if err := load(r.page(at), p); err != nil {
					t.Error(err)
				}
				want := imagePage(uint64(at) * smallPage)
				if gone[i] {
					want = zeroPage
				}
				if string(p) != string(want) {
					t.Errorf("thread %d, round %d, page %d: %x..., want %x...", th, k, at, head(p), head(want))
				}
			}
		})
	}
	testutil.Proceeds(t, testutil.Go(wg.Wait), "threads")
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}

// TestR11LateInstallLoses: of two servers of one descriptor the second to
// install a page loses, whatever it had, and neither has an error.
func TestR11LateInstallLoses(t *testing.T) {
	f := newFake(t)
	f.script = func(op string, start addr.HVA, _ uint64) (uint64, error, bool) {
		if op == "copy" && start == page(1) && f.pages[start] == nil {
			f.pages[start] = &fakePage{data: []byte("first")}
		}
		return 0, nil, false
	}
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 4 * smallPage}})
	mustTouch(t, f, page(1), []byte("first"))
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}

// TestR11StatesMoveForward tries every step from every state.
func TestR11StatesMoveForward(t *testing.T) {
	steps := map[string]func(p *pages){
		"claim":    func(p *pages) { p.claim(3) },
		"settle":   func(p *pages) { p.settle(3, 0) },
		"giveBack": func(p *pages) { p.giveBack(3) },
		"remove":   func(p *pages) { p.remove(3, 4) },
	}
	want := map[string][4]state{ // from absent, filling, present, removed
		"claim":    {filling, filling, present, removed},
		"settle":   {absent, present, present, removed},
		"giveBack": {absent, absent, present, removed},
		"remove":   {removed, removed, removed, removed},
	}
	for name, step := range steps {
		for from := absent; from <= removed; from++ {
			p := newPages(8)
			p.word(0).Store(uint32(from) << 12)
			p.recount()
			step(p)
			if got := p.at(3); got != want[name][from] {
				t.Errorf("%s of %d gives %d, want %d", name, from, got, want[name][from])
			}
			kept := p.unsettled.Load()
			if p.recount(); kept != p.unsettled.Load() {
				t.Errorf("%s of %d: %d unsettled, counted %d", name, from, kept, p.unsettled.Load())
			}
		}
	}
}

// TestR11Concurrent has claimers, settlers and a remover at one word of states.
func TestR11Concurrent(t *testing.T) {
	for range 200 {
		p := newPages(pagesPerWord)
		var wg sync.WaitGroup
		var claims [pagesPerWord]atomic.Int32
		for range 4 {
			wg.Go(func() {
				for i := range pagesPerWord {
					if p.claim(i) == absent {
						claims[i].Add(1)
						p.settle(i, 0)
					}
				}
			})
		}
		wg.Go(func() { p.remove(2, 5) })
		wg.Wait()
		for i := range pagesPerWord {
			want := present
			if i >= 2 && i < 5 {
				want = removed
			}
			if got := p.at(i); got != want || claims[i].Load() > 1 {
				t.Fatalf("page %d: state %d, want %d; %d claims", i, got, want, claims[i].Load())
			}
		}
		if n := p.unsettled.Load(); n != 0 {
			t.Fatalf("%d unsettled", n)
		}
	}
}
