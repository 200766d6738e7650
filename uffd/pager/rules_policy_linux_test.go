package pager

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// broken is a source that fails on one page until it is mended.
func broken(n int, bad uint64) (*testSource, *atomic.Bool) {
	mended := new(atomic.Bool)
	return &testSource{size: uint64(n) * smallPage, read: func(_ context.Context, off uint64, length int) error {
		if off <= bad*smallPage && off+uint64(length) > bad*smallPage && !mended.Load() {
			return syscall.EIO
		}
		return nil
	}}, mended
}

// TestR12FailClosed: a page that cannot be read ends its guest, and neither it
// nor anything else is answered from then on.
func TestR12FailClosed(t *testing.T) {
	f := newFake(t)
	src, _ := broken(16, 3)
	failed := make(chan error, 1)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, Fail: func(err error) { failed <- err }})
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	loaded := goTouch(f, page(3))
	err := testutil.Proceeds(t, failed, "Fail")
	var e *Error
	if !errors.Is(err, ErrSource) || !errors.Is(err, syscall.EIO) || !errors.As(err, &e) || e.Addr != page(3) || e.Offset != 3*smallPage {
		t.Errorf("guest failed by %v, want ErrSource, EIO, and where", err)
	}
	testutil.Parked(t, loaded, "load of the broken page")
	testutil.Parked(t, goTouch(f, page(5)), "load of another page of a failed guest")
	f.with(func() {
		if f.closed {
			t.Error("the descriptor was closed under a guest that may still run")
		}
	})
	if n := g.Stats().ReadErrors.Load(); n != 3 {
		t.Errorf("%d attempts, want 3", n)
	}
	g.Close()
}

// TestR12CloseFromFail: the owner may give the guest up as soon as it is told.
func TestR12CloseFromFail(t *testing.T) {
	f := newFake(t)
	src, _ := broken(16, 3)
	var g *Guest
	added, closed := make(chan struct{}), make(chan struct{})
	g = serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, Fail: func(error) {
		<-added
		g.Close()
		close(closed)
	}})
	close(added)
	goTouch(f, page(3))
	testutil.Proceeds(t, closed, "Close from Fail")
}

// TestR12BadPageNobodyWants: a broken page ends the guest only when it is
// wanted; a fill passes over it and says so, and lets go of nothing.
func TestR12BadPageNobodyWants(t *testing.T) {
	f := newFake(t)
	src, mended := broken(40, 3)
	last := make(chan Progress, 16)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: src, Fill: Fill{Background: FillAll}, OnProgress: func(p Progress) { last <- p },
	})
	p := testutil.Proceeds(t, last, "report of the fill")
	if !errors.Is(p.Err, ErrSource) || p.Done != 39 || p.Total != 40 {
		t.Errorf("the fill reports %+v, want ErrSource after 39 of 40", p)
	}
	if g.Err() != nil {
		t.Errorf("guest ended: %v", g.Err())
	}
	mended.Store(true)
	mustTouch(t, f, page(3), imagePage(3*smallPage))
}

// TestR12Park: who waits for a broken page waits, everybody else does not, and
// Retry mends it.
func TestR12Park(t *testing.T) {
	f := newFake(t)
	src, mended := broken(16, 3)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, OnFailure: Park})
	loaded := goTouch(f, page(3))
	eventually(t, "the page to be parked", func() bool { return g.Stats().Parked.Load() == 1 })
	testutil.Parked(t, loaded, "load of the broken page")
	mustTouch(t, f, page(4), imagePage(4*smallPage))
	mended.Store(true)
	g.Retry()
	if got := testutil.Proceeds(t, loaded, "load after Retry"); string(got) != string(imagePage(3*smallPage)) {
		t.Errorf("loaded %x...", head(got))
	}
	if n := g.Stats().Parked.Load(); n != 0 {
		t.Errorf("%d pages parked, want none", n)
	}
}

// TestR12Standby: another server, with another source, goes on where the first
// one failed.
func TestR12Standby(t *testing.T) {
	f := newFake(t)
	src, _ := broken(16, 3)
	handed := make(chan *Takeover, 1)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: src, OnFailure: Standby, Standby: func(t *Takeover, err error) { handed <- t },
	})
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	f.remove(page(7), page(8))
	loaded := goTouch(f, page(3))
	takeover := testutil.Proceeds(t, handed, "Standby")
	testutil.Parked(t, loaded, "load between two servers")
	other := newTestServer(t, Options{})
	g2, err := other.TakeOver(takeover, GuestOptions{Source: &testSource{size: 16 * smallPage}, Fail: func(error) {}})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	if got := testutil.Proceeds(t, loaded, "load after the takeover"); string(got) != string(imagePage(3*smallPage)) {
		t.Errorf("loaded %x...", head(got))
	}
	mustTouch(t, f, page(7), zeroPage)
	mustTouch(t, f, page(8), imagePage(8*smallPage))
	if _, err := g.Detach(); !errors.Is(err, ErrClosed) {
		t.Errorf("Detach of a guest that was handed over: %v", err)
	}
}

// TestR12ServerClose: the end of a server is no reason for zeroes either.
func TestR12ServerClose(t *testing.T) {
	f := newFake(t)
	s := NewServer(Options{})
	g := serveFake(t, s, f, GuestOptions{Source: &testSource{size: 16 * smallPage}, OnFailure: Park})
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	testutil.Within(t, within, func() { s.Close() })
	if err := g.Err(); !errors.Is(err, ErrServerClosed) {
		t.Errorf("guest ended by %v", err)
	}
	loaded := goTouch(f, page(2))
	testutil.Parked(t, loaded, "load without a server")
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.TakeOver(takeover, GuestOptions{Source: &testSource{size: 16 * smallPage}, OnFailure: Park}); !errors.Is(err, ErrClosed) {
		t.Errorf("takeover by a closed server: %v", err)
	}
	other := newTestServer(t, Options{})
	g2, err := other.TakeOver(takeover, GuestOptions{Source: &testSource{size: 16 * smallPage}, OnFailure: Park})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	if got := testutil.Proceeds(t, loaded, "load after the takeover"); string(got) != string(imagePage(2*smallPage)) {
		t.Errorf("loaded %x...", head(got))
	}
}

// TestR12Panic: a source that panics is a source that fails.
func TestR12Panic(t *testing.T) {
	f := newFake(t)
	src := &testSource{size: 16 * smallPage, read: func(_ context.Context, off uint64, _ int) error {
		if off == 3*smallPage {
			panic("source")
		}
		return nil
	}}
	s := newTestServer(t, Options{})
	failed := make(chan error, 1)
	g := serveFake(t, s, f, GuestOptions{Source: src, Fail: func(err error) { failed <- err }})
	goTouch(f, page(3))
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, ErrPanicked) {
		t.Errorf("guest failed by %v, want ErrPanicked", err)
	}
	g.Close()
	// No other guest notices.
	f2 := newFake(t)
	serveFake(t, s, f2, GuestOptions{Source: &testSource{size: 16 * smallPage}})
	mustTouch(t, f2, page(3), imagePage(3*smallPage))
}

// TestR12DeathAtEveryPoint kills every goroutine of a server as it comes by a
// point of the code, and takes over what it left.
func TestR12DeathAtEveryPoint(t *testing.T) {
	for p := range nPoints {
		for name, src := range sources(32) {
			t.Run(pointNames[p]+"/"+name, func(t *testing.T) { testDeath(t, p, src) })
		}
	}
}

var pointNames = [nPoints]string{"taken", "marked", "claimed", "read", "install", "installed", "settled"}

func testDeath(t *testing.T, at point, src Source) {
	f := newFake(t)
	s := NewServer(Options{})
	var armed, dead atomic.Bool
	s.hook = func(_ *Guest, p point) {
		if dead.Load() || armed.Load() && p == at {
			dead.Store(true)
			runtime.Goexit()
		}
	}
	g := serveFake(t, s, f, GuestOptions{Source: src, OnFailure: Park})
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	armed.Store(true)
	// One absent page, one there, one to be removed with the fault told first.
	loads := map[int]<-chan []byte{}
	f.with(func() {
		f.faults = append(f.faults, uffd.Event{Kind: uffd.EventFault, Addr: page(9)})
		f.layout = append(f.layout, uffd.Event{Kind: uffd.EventRemove, Start: page(4), End: page(6)})
		f.signal()
	})
	for _, i := range []int{2, 3, 4, 9} {
		loads[i] = goTouch(f, page(i))
	}
	eventually(t, "the server to die", dead.Load)
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	other := newTestServer(t, Options{})
	g2, err := other.TakeOver(takeover, GuestOptions{Source: src, OnFailure: Park})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	for i, ch := range loads {
		want := imagePage(uint64(i) * smallPage)
		if i == 4 {
			want = zeroPage
		}
		got := testutil.Proceeds(t, ch, "load after the takeover")
		// Page 4 was loaded while it was being removed: before or after.
		if string(got) != string(want) && !(i == 4 && string(got) == string(imagePage(4*smallPage))) {
			t.Errorf("page %d: %x..., want %x...", i, head(got), head(want))
		}
	}
	mustTouch(t, f, page(5), zeroPage)
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	mustTouch(t, f, page(20), imagePage(20*smallPage))
	go s.Close()
}

// TestR12HandOver sends a guest over a socket, with pages there, removed, armed
// and moved, and with somebody waiting.
func TestR12HandOver(t *testing.T) {
	const n = 64
	r := newReal(t, n*smallPage, realOptions{features: events})
	src := &testSource{size: n * smallPage}
	s := newTestServer(t, Options{})
	g := serveReal(t, s, r, GuestOptions{Name: "moved", Source: src, Image: Identity{7}, OnFailure: Park})
	loadPage(t, r.page(1), imagePage(1*smallPage))
	for _, i := range []int{2, 40} {
		if err := adviseRaw(r.page(i), smallPage, unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
	}
	to := r.room(t, 4*smallPage)
	if err := remapRaw(r.page(40), 4*smallPage, to); err != nil {
		t.Fatal(err)
	}
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	p := make([]byte, smallPage)
	loaded := goLoad(r.page(5), p)
	left, right := socketPair(t)
	sent := make(chan error, 1)
	go func() { sent <- takeover.Send(left) }()
	got, err := Receive(right)
	if err != nil {
		t.Fatal(err)
	}
	if err := testutil.Proceeds(t, sent, "Send"); err != nil {
		t.Fatal(err)
	}
	testutil.Parked(t, loaded, "load between two servers")
	other := newTestServer(t, Options{})
	if _, err := other.TakeOver(got, GuestOptions{Source: src, Image: Identity{8}, OnFailure: Park}); !errors.Is(err, ErrWrongImage) {
		t.Errorf("takeover with another image: %v", err)
	}
	g2, err := other.TakeOver(got, GuestOptions{Source: src, Image: Identity{7}, OnFailure: Park})
	if err != nil {
		t.Fatal(err)
	}
	defer g2.Close()
	if err := testutil.Proceeds(t, loaded, "load after the takeover"); err != nil || string(p) != string(imagePage(5*smallPage)) {
		t.Errorf("loaded %x..., %v", head(p), err)
	}
	loadPage(t, r.page(1), imagePage(1*smallPage))
	loadPage(t, r.page(2), zeroPage)
	loadPage(t, to, zeroPage)
	loadPage(t, to+smallPage, imagePage(41*smallPage))
	if g2.Name() != "moved" {
		t.Errorf("name %q", g2.Name())
	}
}

// TestR12HandOverFails: whatever becomes of the socket, the guest is served by
// one or by nobody, and never lost without a word.
func TestR12HandOverFails(t *testing.T) {
	const n = 16
	for _, stop := range []string{"at once", "after the header", "refuse", "before go", "after go"} {
		t.Run(stop, func(t *testing.T) {
			r := newReal(t, n*smallPage, realOptions{features: events})
			src := &testSource{size: n * smallPage}
			s := newTestServer(t, Options{})
			g := serveReal(t, s, r, GuestOptions{Source: src, OnFailure: Park})
			takeover, err := g.Detach()
			if err != nil {
				t.Fatal(err)
			}
			left, right := socketPair(t)
			sent := make(chan error, 1)
			go func() { sent <- takeover.Send(left) }()
			buf := make([]byte, 1<<16)
			if stop != "at once" {
				fds, err := readWithFDs(right, buf[:16])
				if err != nil {
					t.Fatal(err)
				}
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
			switch stop {
			case "refuse":
				right.Write([]byte{'N'})
			case "after go":
				right.Write([]byte{handReady})
				for { // the description, and then the word
					k, err := right.Read(buf)
					if err != nil || buf[k-1] == handGo && k < 20 {
						break
					}
					if buf[k-1] == handGo {
						break
					}
				}
			}
			right.Close()
			err = testutil.Proceeds(t, sent, "Send")
			if !errors.Is(err, ErrHandover) {
				t.Fatalf("Send: %v, want ErrHandover", err)
			}
			if takeover.Sent() != (stop == "after go") {
				t.Errorf("Sent() = %v", takeover.Sent())
			}
			o := GuestOptions{Source: src, OnFailure: Park}
			g2, err := s.TakeOver(takeover, o)
			if takeover.Sent() {
				if err == nil {
					t.Error("a guest that may be another's was taken back")
				}
				takeover.Close()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer g2.Close()
			loadPage(t, r.page(3), imagePage(3*smallPage))
		})
	}
}

func socketPair(t *testing.T) (*net.UnixConn, *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socket")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
		t.Cleanup(func() { conn.Close() })
	}
	return conns[0], conns[1]
}
