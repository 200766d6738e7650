package pager

import (
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// leaveRoomFor has this process open n descriptors more and none beyond, until the
// function that it returns is called.
func leaveRoomFor(t testing.TB, n int) (undo func()) {
	t.Helper()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	var free []int
	for range n + 1 {
		fd, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		free = append(free, fd)
	}
	for _, fd := range free {
		unix.Close(fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(free[n]), Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Error(err)
		}
	}
}

// TestForkWithoutDescriptors: a guest forks while its server has no descriptor left,
// or one, and its child needs two. That is no fault of the guest's: it waits, and
// both are served once there is room.
func TestForkWithoutDescriptors(t *testing.T) {
	for room := range 2 {
		t.Run(fmt.Sprint("room for ", room), func(t *testing.T) {
			const n = 64
			c := startChild(t, childPlan{Pages: n, Fork: true})
			forked := make(chan *Guest, 1)
			g := serveChild(t, newTestServer(t, Options{}), c, n, GuestOptions{
				Source: &testSource{size: n * smallPage}, OnFork: func(g *Guest) { forked <- g },
				Fail: func(error) {},
			})
			undo := leaveRoomFor(t, room)
			defer undo()
			c.goOn(t)
			eventually(t, "the fork to find no room, again and again", func() bool {
				return g.Stats().Retried.Load() >= 3 && int(g.Stats().Forks.Load()) == room || g.Err() != nil
			})
			if err := g.Err(); err != nil {
				t.Fatalf("for want of a descriptor the guest has ended: %v", err)
			}
			undo()
			child := testutil.Proceeds(t, forked, "OnFork")
			c.mustSucceed(t)
			testutil.Proceeds(t, child.told, "end of the child")
			testutil.Proceeds(t, g.told, "end of the guest")
			if err := g.Err(); !errors.Is(err, ErrPeerGone) {
				t.Errorf("the guest has ended by %v, want the end of its process", err)
			}
		})
	}
}

// TestForkNeverFindsRoom: that is not waited for for ever, and ends by its name.
func TestForkNeverFindsRoom(t *testing.T) {
	f := newFake(t)
	k := &shortKernel{fakeKernel: f}
	failed := make(chan error, 1)
	s := newTestServer(t, Options{})
	g, err := s.add(k, true, GuestOptions{
		Source: &testSource{size: 4 * smallPage}, Regions: []Region{{Start: base, Size: 4 * smallPage}},
		Fail: func(err error) { failed <- err }, RetryLimit: 5 * int(shortAgain/retryEvery),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	mustTouch(t, f, page(0), imagePage(0)) // before that all is well
	k.none.Store(true)
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, syscall.EMFILE) {
		t.Errorf("the guest has ended by %v, want EMFILE", err)
	}
	if n := k.reads.Load(); n != 6 {
		t.Errorf("events were read %d times, want six", n)
	}
}

// A shortKernel has a fork to tell of, and no descriptor for it.
type shortKernel struct {
	*fakeKernel
	none  atomic.Bool
	reads atomic.Int32
}

func (k *shortKernel) Read(events []uffd.Event) (int, error) {
	if k.none.Load() {
		k.reads.Add(1)
		return 0, syscall.EMFILE
	}
	return k.fakeKernel.Read(events)
}

// TestNoMemoryIsTriedWithAPace: an install that finds no memory is tried again, less
// often than one that meets a layout change, and as long: what it costs is
// everybody's. The page comes when there is memory, and what there is none for ends the
// guest by that name.
func TestNoMemoryIsTriedWithAPace(t *testing.T) {
	const times = 5
	f := newFake(t)
	var tries [2]atomic.Int32
	f.script = func(op string, start addr.HVA, _ uint64) (uint64, error, bool) {
		switch {
		case op != "copy":
		case start == page(0) && tries[0].Add(1) < times-1, start == page(1) && tries[1].Add(1) > 0:
			return 0, syscall.ENOMEM, true
		}
		return 0, nil, false
	}
	failed := make(chan error, 1)
	serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: &testSource{size: 4 * smallPage}, Fail: func(err error) { failed <- err },
		RetryLimit: times * int(shortAgain/retryEvery),
	})
	mustTouch(t, f, page(0), imagePage(0))
	go f.touch(page(1))
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, syscall.ENOMEM) || !errors.Is(err, ErrLivelock) {
		t.Errorf("the guest has ended by %v, want ENOMEM", err)
	}
	if n := tries[1].Load(); n != times {
		t.Errorf("%d attempts, want %d", n, times)
	}
}

// TestUserModeOnlyIsRefused: vCPUs would get EFAULT for every page that is missing,
// which says nothing of why.
func TestUserModeOnlyIsRefused(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	fd, err := uffd.Open(uffd.Options{UserModeOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	g, err := newTestServer(t, Options{}).Add(GuestOptions{
		FD: fd, Source: &testSource{size: smallPage}, Regions: []Region{{Start: base, Size: smallPage}}, Fail: func(error) {},
	})
	if !errors.Is(err, ErrInvalid) || !strings.Contains(fmt.Sprint(err), "vCPU") {
		t.Errorf("got %v, %v; want ErrInvalid that says of whom it hears not", g, err)
	}
}

// TestServedOnce: one userfaultfd is served once at a time, under whatever number it
// comes, since two would each read events that the other must know of. When the
// first has gone it can be served again.
func TestServedOnce(t *testing.T) {
	const n = 16
	real := newReal(t, n*smallPage, realOptions{features: events})
	s := newTestServer(t, Options{})
	o := GuestOptions{
		Name: "first", FD: real.fd, Source: &testSource{size: n * smallPage}, Fail: func(error) {},
		Regions: []Region{{Start: real.start, Size: n * smallPage}},
	}
	g, err := s.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	again, err := real.fd.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	o.Name, o.FD = "second", again
	if second, err := s.Add(o); !errors.Is(err, ErrServed) || !strings.Contains(err.Error(), "by guest first") {
		t.Errorf("the same userfaultfd once more: %v, %v; want ErrServed that names the first", second, err)
	}
	other := newReal(t, n*smallPage, realOptions{features: events})
	o.Name, o.FD, o.Regions = "third", other.fd, []Region{{Start: other.start, Size: n * smallPage}}
	third, err := s.Add(o)
	if err != nil {
		t.Fatalf("another userfaultfd: %v", err)
	}
	defer third.Close()
	var buf [smallPage]byte
	if err := load(real.start, buf[:]); err != nil {
		t.Fatal(err)
	}
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	if g, err = s.TakeOver(takeover, GuestOptions{Source: o.Source, Fail: func(error) {}}); err != nil {
		t.Fatalf("once the first has left: %v", err)
	}
	defer g.Close()
	loaded := make(chan error, 1)
	go func() { loaded <- load(real.page(3), buf[:]) }()
	select {
	case err := <-loaded:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(within):
		t.Fatal("the guest is not served any more")
	}
}
