package pager

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// TestSlowReadHoldsUpItsPageOnly: other pages of the guest go on.
func TestSlowReadHoldsUpItsPageOnly(t *testing.T) {
	f := newFake(t)
	gate := make(chan struct{})
	src := &testSource{size: 64 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		if off == 0 {
			<-gate
		}
		return nil
	}}
	g := serveFake(t, newTestServer(t, Options{Workers: 2}), f, GuestOptions{Source: src})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	slow := goTouch(f, page(0))
	again := goTouch(f, page(0))
	for i := 2; i < 40; i++ {
		mustTouch(t, f, page(i), imagePage(uint64(i)*smallPage))
	}
	eventually(t, "the second fault to join the first", func() bool { return g.Stats().Joined.Load() == 1 })
	testutil.Parked(t, slow, "load of the slow page")
	open()
	testutil.Proceeds(t, slow, "load of the slow page")
	testutil.Proceeds(t, again, "second load of the slow page")
	mustCount(t, "pages copied, the slow one once", &g.Stats().Copied, 39)
}

// TestStuckGuestsLeaveOthersTheirWorker: 63 guests whose sources never answer
// take every worker that they can, and the 64th is served all the same.
func TestStuckGuestsLeaveOthersTheirWorker(t *testing.T) {
	s := newTestServer(t, Options{Workers: 4})
	stuck := &testSource{size: 64 * smallPage, read: func(ctx context.Context, _ uint64, _ int) error {
		<-ctx.Done()
		return ctx.Err()
	}}
	for range 63 {
		f := newFake(t)
		serveFake(t, s, f, GuestOptions{Source: stuck})
		for i := range 8 {
			f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(2 * i)})
		}
	}
	f := newFake(t)
	serveFake(t, s, f, GuestOptions{Source: &testSource{size: 64 * smallPage}})
	for i := range 64 {
		mustTouch(t, f, page(i), imagePage(uint64(i)*smallPage))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shared > 4 {
		t.Errorf("%d shared workers in use of 4", s.shared)
	}
}

// TestLeftWorkersAreReplaced: a source that never returns keeps the workers of
// a guest that has gone, and they are missing to nobody.
func TestLeftWorkersAreReplaced(t *testing.T) {
	s := newTestServer(t, Options{Workers: 1})
	gate := make(chan struct{})
	t.Cleanup(func() { s.Close() })
	t.Cleanup(func() { close(gate) })
	for range 5 {
		f := newFake(t)
		var stuck atomic.Int32
		g := serveFake(t, s, f, GuestOptions{Source: &testSource{size: 64 * smallPage, read: func(context.Context, uint64, int) error {
			stuck.Add(1)
			<-gate
			return nil
		}}})
		f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(0)})
		f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(9)})
		eventually(t, "two workers to be stuck", func() bool { return stuck.Load() == 2 })
		g.Close()
	}
	f := newFake(t)
	slow := make(chan struct{})
	t.Cleanup(func() { close(slow) })
	serveFake(t, s, f, GuestOptions{Source: &testSource{size: 64 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		if off == 0 {
			<-slow
		}
		return nil
	}}})
	goTouch(f, page(0))       // its own worker
	for i := 2; i < 32; i++ { // page 1 might be read along with the slow one
		mustTouch(t, f, page(i), imagePage(uint64(i)*smallPage)) // the shared one
	}
}

// TestFillEndsWithTheLastFault: the last missing page came by a fault after the
// fill had passed; the memory is let go of all the same.
func TestFillEndsWithTheLastFault(t *testing.T) {
	s := newTestServer(t, Options{Workers: 1, SpinFor: -1})
	// Another guest's fill has the only place for fills until the fault of
	// page 5 is being served.
	others, reached, gate := make(chan struct{}), make(chan struct{}), make(chan struct{})
	serveFake(t, s, newFake(t), GuestOptions{
		Source: &testSource{size: 16 * smallPage, read: func(context.Context, uint64, int) error { <-others; return nil }},
		Fill:   Fill{Background: FillAll},
	})
	open := sync.OnceFunc(func() { close(gate) })
	fill := sync.OnceFunc(func() { close(others) })
	t.Cleanup(open)
	t.Cleanup(fill)
	eventually(t, "the other guest to fill", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.filling == 1
	})
	f := newFake(t)
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(5)})
	g := serveFake(t, s, f, GuestOptions{
		Source: &testSource{size: 64 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
			if off == 5*smallPage {
				close(reached)
				<-gate
			}
			return nil
		}},
		Fill: Fill{Background: FillAll},
	})
	testutil.Proceeds(t, reached, "read of page 5")
	fill()
	eventually(t, "the fill to pass", func() bool { return !g.fill.wanted() && g.fill.active.Load() == 0 })
	testutil.Parked(t, g.Done(), "fill that lacks a page")
	open()
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}

// TestGuestsTakeTurns: with one worker to share, a guest with a hundred faults
// does not go before one with a few.
func TestGuestsTakeTurns(t *testing.T) {
	s := NewServer(Options{Workers: 1})
	defer s.Close()
	// No goroutines: the schedule alone.
	s.mu.Lock()
	s.surplus = 1
	s.more.Broadcast()
	s.mu.Unlock()
	s.workers.Wait()
	r := newRegion(Region{Start: base, Size: 1 << 20, PageSize: smallPage}, 0)
	var guests [3]*Guest
	for i := range guests {
		guests[i] = &Guest{s: s}
		for k := range []int{100, 5, 5}[i] {
			s.enqueue(guests[i], job{r: r, i: 2 * k})
		}
	}
	taken := map[*Guest]int{}
	for range 15 {
		g, _, ok := s.next()
		if !ok {
			t.Fatal("no job")
		}
		taken[g]++
		s.finished(g, jobRead)
	}
	for i, g := range guests {
		if taken[g] != 5 {
			t.Errorf("guest %d had %d of 15 turns, want 5", i, taken[g])
		}
	}
}

// TestNeighboursAreReadTogether: faults on adjacent pages that wait for a
// worker cost one read, and each is observed.
func TestNeighboursAreReadTogether(t *testing.T) {
	f := newFake(t)
	gate := make(chan struct{})
	var reads atomic.Int32
	src := &testSource{size: 64 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		if reads.Add(1) <= 3 {
			<-gate
		}
		return nil
	}}
	var observed atomic.Int32
	g := serveFake(t, newTestServer(t, Options{Workers: 1}), f, GuestOptions{Source: src, Observe: func(o Outcome, _ time.Duration) {
		if o == OutcomeCopied {
			observed.Add(1)
		}
	}})
	open := sync.OnceFunc(func() { close(gate) })
	t.Cleanup(open)
	for _, i := range []int{50, 60} { // the guest's worker and the shared one
		f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(i)})
	}
	eventually(t, "workers to be busy", func() bool { return reads.Load() == 2 })
	for i := range 10 {
		f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(i)})
	}
	eventually(t, "faults to wait", func() bool {
		g.s.mu.Lock()
		defer g.s.mu.Unlock()
		return g.queue.n == 10
	})
	open()
	mustCount(t, "pages copied", &g.Stats().Copied, 12)
	if n := reads.Load(); n != 3 {
		t.Errorf("%d reads, want 3: two alone and ten together", n)
	}
	eventually(t, "all faults to be observed", func() bool { return observed.Load() == 12 })
}

// TestOneBadPageOfARun: the neighbours of a page that cannot be read, read with
// it, are served.
func TestOneBadPageOfARun(t *testing.T) {
	f := newFake(t)
	src, _ := broken(64, 5)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: src, OnFailure: Park, Fill: Fill{Replay: &WorkingSet{Pages: 64, Runs: []PageRun{{0, 16}}}},
	})
	for i := range 16 {
		if i != 5 {
			mustTouch(t, f, page(i), imagePage(uint64(i)*smallPage))
		}
	}
	if err := g.Err(); err != nil {
		t.Error(err)
	}
}

// TestOutsideAndStray: what is for nobody has a name, is counted, and follows
// the policy; another guest does not notice.
func TestOutsideAndStray(t *testing.T) {
	for name, c := range map[string]struct {
		ev   uffd.Event
		want error
	}{
		"fault":   {uffd.Event{Kind: uffd.EventFault, Addr: page(1000)}, ErrOutside},
		"remove":  {uffd.Event{Kind: uffd.EventRemove, Start: page(1000), End: page(1001)}, ErrStrayEvent},
		"remap":   {uffd.Event{Kind: uffd.EventRemap, From: page(1000), To: page(2000), Len: smallPage}, ErrStrayEvent},
		"unknown": {uffd.Event{Kind: 0x77}, ErrUnknownEvent},
		"unmap":   {uffd.Event{Kind: uffd.EventUnmap, Start: page(1000), End: page(1001)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{})
			f, f2 := newFake(t), newFake(t)
			g := serveFake(t, s, f, GuestOptions{Source: &testSource{size: 16 * smallPage}})
			serveFake(t, s, f2, GuestOptions{Source: &testSource{size: 16 * smallPage}})
			f.event(c.ev)
			if c.want == nil {
				eventually(t, "the event", func() bool { return g.Stats().Unmaps.Load() == 1 })
				mustTouch(t, f, page(1), imagePage(1*smallPage))
			} else {
				testutil.Proceeds(t, g.Done(), "end of the guest")
				if err := g.Err(); !errors.Is(err, c.want) {
					t.Errorf("guest ended by %v, want %v", err, c.want)
				}
				if n := g.Stats().Outside.Load() + g.Stats().Strays.Load(); n != 1 {
					t.Errorf("counted %d times", n)
				}
			}
			mustTouch(t, f2, page(1), imagePage(1*smallPage))
		})
	}
}

// TestUnmap: what is unmapped is forgotten, who waited there goes on to find
// out, and the rest is served.
func TestUnmap(t *testing.T) {
	f := newFake(t)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 16 * smallPage}, Fill: Fill{}})
	f.event(uffd.Event{Kind: uffd.EventUnmap, Start: page(4), End: page(8)})
	eventually(t, "the event", func() bool { return g.Stats().Unmaps.Load() == 1 })
	mustTouch(t, f, page(3), imagePage(3*smallPage))
	mustTouch(t, f, page(8), imagePage(8*smallPage))
	eventually(t, "10 pages to be missing", func() bool { return g.Missing() == 10 })
	f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(5)})
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !errors.Is(err, ErrOutside) {
		t.Errorf("a fault where nothing is mapped: %v", err)
	}
}
