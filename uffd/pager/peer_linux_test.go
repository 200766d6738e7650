package pager

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/testutil"
)

var soak = flag.Bool("soak", false, "serve a million faults; else a hundredth of them")

func serveChild(t testing.TB, s *Server, c *child, pages int, o GuestOptions) *Guest {
	t.Helper()
	o.FD, o.Peer = c.fd, c.peer
	o.Regions = []Region{{Start: c.start, Size: uint64(pages) * smallPage}}
	g, err := s.Add(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// TestR12KillsPeer: a guest that cannot be served is killed, before anybody can
// see what its memory holds without a server.
func TestR12KillsPeer(t *testing.T) {
	c := startChild(t, childPlan{Pages: 16, Idle: true})
	src, _ := broken(16, 0)
	failed := make(chan error, 1)
	g := serveChild(t, newTestServer(t, Options{}), c, 16, GuestOptions{Source: src, Fail: func(err error) { failed <- err }})
	c.goOn(t)
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, ErrSource) {
		t.Errorf("guest failed by %v", err)
	}
	testutil.Proceeds(t, c.ended, "end of the guest's process")
	if ws := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("the guest's process ended with %v, want SIGKILL", c.cmd.ProcessState)
	}
	testutil.Proceeds(t, g.Done(), "end of the guest")
}

// TestR12PeerGone: a process that ends ends its guest, by name.
func TestR12PeerGone(t *testing.T) {
	c := startChild(t, childPlan{Pages: 16, Idle: true})
	failed := make(chan error, 1)
	g := serveChild(t, newTestServer(t, Options{}), c, 16, GuestOptions{
		Source: &testSource{size: 16 * smallPage}, Fail: func(err error) { failed <- err },
	})
	c.goOn(t)
	eventually(t, "a page to be served", func() bool { return g.Stats().Copied.Load() == 1 })
	c.cmd.Process.Kill()
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, ErrPeerGone) {
		t.Errorf("guest ended by %v, want ErrPeerGone", err)
	}
}

// TestKernelFork: a forked child is served as a guest of its own, with what was
// there and what was given back.
func TestKernelFork(t *testing.T) {
	const n = 64
	c := startChild(t, childPlan{Pages: n, Fork: true})
	forked := make(chan *Guest, 1)
	var failed atomic.Int32
	g := serveChild(t, newTestServer(t, Options{}), c, n, GuestOptions{
		Source: &testSource{size: n * smallPage}, OnFork: func(g *Guest) { forked <- g },
		Fail: func(error) { failed.Add(1) },
	})
	c.goOn(t)
	child := testutil.Proceeds(t, forked, "OnFork")
	c.mustSucceed(t)
	mustCount(t, "pages copied for the child", &child.Stats().Copied, n-2)
	// It has ended, which nobody tells; that is no failure of the guest's.
	testutil.Proceeds(t, child.told, "end of the child")
	if err := child.Err(); !errors.Is(err, ErrPeerGone) {
		t.Errorf("the child's end: %v", err)
	}
	testutil.Proceeds(t, g.told, "end of the guest")
	if n := failed.Load(); n != 1 {
		t.Errorf("Fail was called %d times, want once, for the guest's own process", n)
	}
}

// TestR12RefusedChildSeesNoZeroes: a forked child that its owner does not want
// gets an error for what is missing, once the guest's descriptor is closed.
func TestR12RefusedChildSeesNoZeroes(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDPoison)
	const n = 64
	c := startChild(t, childPlan{Pages: n, Fork: true})
	g, err := newTestServer(t, Options{}).Add(GuestOptions{
		FD: c.fd, Regions: []Region{{Start: c.start, Size: n * smallPage}},
		Source: &testSource{size: n * smallPage}, Fork: ForkRefuse, Fail: func(error) {},
	})
	if err != nil {
		t.Fatal(err)
	}
	c.goOn(t)
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !errors.Is(err, ErrForked) {
		t.Errorf("guest ended by %v, want ErrForked", err)
	}
	testutil.Parked(t, c.ended, "guest whose child waits")
	g.Close()
	testutil.Proceeds(t, c.ended, "end of the guest's process")
	if want := fmt.Sprintf("exit status %d", exitUnreadable); !strings.Contains(c.stderr.String(), want) {
		t.Errorf("the guest says %q, want %q", c.stderr.String(), want)
	}
}

// TestSoak has guests' processes check their own memory while they give it back
// at random, reads fail, and servers die at any point and are replaced.
func TestSoak(t *testing.T) {
	faults := uint64(10_000)
	if *soak {
		faults = 1_000_000
	}
	var served uint64
	restarts := 0
	for round := uint64(1); served < faults; round++ {
		if !t.Run(fmt.Sprint(round), func(t *testing.T) {
			n, r := soakRound(t, round)
			served += n
			restarts += r
		}) {
			return
		}
	}
	t.Logf("%d faults, %d servers died", served, restarts)
}

func soakRound(t *testing.T, seed uint64) (faults uint64, restarts int) {
	const pages, threads = 4096, 4
	rnd := rand.New(rand.NewPCG(seed, 2))
	c := startChild(t, childPlan{Pages: pages, Threads: threads, Ops: 4000, Seed: seed})
	var failing atomic.Uint64
	src := &testSource{size: pages * smallPage, read: func(context.Context, uint64, int) error {
		if k := failing.Add(1); k%50 == 0 {
			return syscall.EIO
		} else if k%7 == 0 {
			sleepShort(100 * time.Microsecond)
		}
		return nil
	}}
	// Every other round everything is at hand, and the reader serves.
	var source Source = src
	if seed%2 == 0 {
		source = &quickSource{*src}
	}
	options := GuestOptions{Source: source, OnFailure: Park, Retry: Retry{Attempts: 2, Backoff: time.Microsecond}, Name: "soak"}
	if seed%3 == 0 {
		options.Fill.Background = FillAll
		options.Fill.Pause = time.Millisecond
	}
	s := newMortalServer()
	g := serveChild(t, s.Server, c, pages, options)
	c.goOn(t)
	ended := testutil.Go(func() { c.ended <- <-c.ended })
	var servers sync.WaitGroup
	for {
		select {
		case <-ended:
			g.Close()
			servers.Go(func() { s.Close() })
			testutil.Proceeds(t, testutil.Go(servers.Wait), "servers' end")
			c.mustSucceed(t)
			return faults + g.Stats().Missing.Load(), restarts
		case <-g.Done():
			err := g.Err()
			if err != nil && !errors.Is(err, ErrPeerGone) {
				t.Fatalf("guest ended by %v", err)
			}
			<-ended // complete: the kernel does the rest
			continue
		case <-time.After(time.Duration(1+rnd.IntN(20)) * time.Millisecond):
			g.Retry() // what could not be read, if anything
		}
		if rnd.IntN(3) > 0 {
			continue
		}
		s.kill(point(rnd.IntN(int(nPoints))), rnd.IntN(50))
		select {
		case <-s.dead:
		case <-g.Done():
			continue
		case <-time.After(5 * time.Millisecond): // it may not come by again
		}
		takeover, err := g.Detach()
		faults += g.Stats().Missing.Load()
		if err != nil {
			// It ended by itself at that moment.
			faults -= g.Stats().Missing.Load()
			continue
		}
		restarts++
		old := s
		servers.Go(func() { old.Close() })
		s = newMortalServer()
		options.Peer = c.peer
		if g, err = s.TakeOver(takeover, options); err != nil {
			t.Fatal(err)
		}
	}
}

// A mortalServer dies when told to: each of its goroutines ends at the next
// point of the code that it comes by.
type mortalServer struct {
	*Server
	at   atomic.Int32 // 1 + the point to die at
	left atomic.Int32 // times to pass it first
	dead chan struct{}
	once sync.Once
	gone atomic.Bool
}

func newMortalServer() *mortalServer {
	s := &mortalServer{Server: NewServer(Options{}), dead: make(chan struct{})}
	s.hook = func(_ *Guest, p point) {
		if s.gone.Load() || s.at.Load() == int32(p)+1 && s.left.Add(-1) < 0 {
			s.gone.Store(true)
			s.once.Do(func() { close(s.dead) })
			runtime.Goexit()
		}
	}
	return s
}

func (s *mortalServer) kill(at point, after int) {
	s.left.Store(int32(after))
	s.at.Store(int32(at) + 1)
}
