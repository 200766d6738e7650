package pager

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// A touchWay is how a process that serves its own memory touches it.
type touchWay int

const (
	touchPlain    touchWay = iota + 1 // by an instruction of Go code
	touchAccessor                     // by a system call
)

// touch is a process whose server and guest are one. Its page comes only once a
// collection has ended. It says how far it has come.
func (p childPlan) touch() {
	say := func(err error, what string) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(what)
	}
	g, err := mapReal(smallPage, realOptions{features: events})
	say(err, "mapped")
	asked, collected := make(chan struct{}), make(chan struct{})
	src := &testSource{size: smallPage, read: func(context.Context, uint64, int) error {
		close(asked)
		<-collected
		return nil
	}}
	_, err = NewServer(Options{}).Add(GuestOptions{
		FD: g.fd, Source: src, Regions: []Region{{Start: g.start, Size: smallPage}}, Fail: func(error) {},
	})
	say(err, "served")
	loaded := make(chan error, 1)
	go func() {
		var page [smallPage]byte
		var err error
		if p.Touch == touchPlain {
			plainLoad(page[:], g.start)
		} else {
			err = load(g.start, page[:])
		}
		if err == nil && !bytes.Equal(page[:], imagePage(0)) {
			err = fmt.Errorf("loaded %x", head(page[:]))
		}
		loaded <- err
	}()
	<-asked
	say(nil, "asked")
	runtime.GC()
	say(nil, "collected")
	close(collected)
	say(<-loaded, "loaded")
	os.Exit(0)
}

// TestTrap13PlainLoadHangs: where the server is Go code of the same process, a
// plain load of a page that is not there is the end of both: the next
// collection waits for the thread that loads, which waits for the server, which
// waits for the collection. By the accessors, everybody goes on.
func TestTrap13PlainLoadHangs(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	said := func(t *testing.T, way touchWay) <-chan string {
		plan, err := json.Marshal(childPlan{Touch: way})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		// No collection but the one that it asks for; and a second processor for
		// who asks, since a plain load keeps its own.
		cmd.Env = append(os.Environ(), childEnv+"="+string(plan), "GOGC=off", "GOMAXPROCS=2")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := make(chan string)
		read := testutil.Go(func() {
			defer close(lines)
			for in := bufio.NewScanner(out); in.Scan(); {
				lines <- in.Text()
			}
		})
		t.Cleanup(func() {
			cmd.Process.Kill()
			for range lines {
			}
			<-read
			cmd.Wait()
		})
		for _, want := range []string{"mapped", "served", "asked"} {
			if got := testutil.Proceeds(t, lines, "the process"); got != want {
				t.Fatalf("it says %q, want %q", got, want)
			}
		}
		return lines
	}
	t.Run("plain", func(t *testing.T) {
		testutil.Parked(t, said(t, touchPlain), "process that loads by itself")
	})
	t.Run("accessor", func(t *testing.T) {
		lines := said(t, touchAccessor)
		for _, want := range []string{"collected", "loaded"} {
			if got := testutil.Proceeds(t, lines, "process that loads by system calls"); got != want {
				t.Fatalf("it says %q, want %q", got, want)
			}
		}
	})
}

// TestTrap03ProcessGone: an install into a process that has ended says so, and
// is neither a page nor a reason to try again.
func TestTrap03ProcessGone(t *testing.T) {
	c := startChild(t, childPlan{Pages: 16, Idle: true})
	asked, gone := make(chan struct{}), make(chan struct{})
	src := &testSource{size: 16 * smallPage, read: func(ctx context.Context, _ uint64, _ int) error {
		close(asked)
		<-gone
		return nil
	}}
	failed := make(chan error, 1)
	g, err := newTestServer(t, Options{}).Add(GuestOptions{ // without a Peer, which would be heard of first
		FD: c.fd, Regions: []Region{{Start: c.start, Size: 16 * smallPage}},
		Source: src, Fail: func(err error) { failed <- err },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	c.goOn(t)
	testutil.Proceeds(t, asked, "read of the source")
	if err := c.peer.Kill(); err != nil {
		t.Fatal(err)
	}
	close(gone)
	if err := testutil.Proceeds(t, failed, "Fail"); !isAny(err, ErrPeerGone) {
		t.Errorf("guest ended by %v, want ErrPeerGone", err)
	}
	if g.Stats().Copied.Load() != 0 || g.Missing() != 16 {
		t.Errorf("%d pages copied, %d missing", g.Stats().Copied.Load(), g.Missing())
	}
}

// TestTrap15KernelPoolUsedUp: the real kernel's answer with no huge page left
// ends the guest by name. It never says that the page is there, nor goes on for
// ever.
func TestTrap15KernelPoolUsedUp(t *testing.T) {
	testutil.NoHugePages(t)
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	const n = 2
	r, err := mapReal(n*hugePage, realOptions{features: events | uffd.FeatureMissingHugetlb, flags: mapHugeNoReserve})
	if err != nil {
		t.Skipf("no memory of huge pages: %v; use a kernel with CONFIG_HUGETLBFS", err)
	}
	t.Cleanup(func() {
		r.fd.Close()
		unmapRaw(r.start, r.size)
	})
	g := serveReal(t, newTestServer(t, Options{}), r, GuestOptions{
		Source: &testSource{size: n * hugePage}, LivelockLimit: 20,
		Regions: []Region{{Start: r.start, Size: r.size, PageSize: hugePage}},
	})
	got := make([]byte, smallPage)
	loaded := goLoad(r.start, got)
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !isAny(err, ErrLivelock) {
		t.Errorf("guest ended by %v, want ErrLivelock", err)
	}
	if g.Missing() != n || g.Stats().Copied.Load() != 0 || g.Stats().Zeroed.Load() != 0 {
		t.Errorf("%d pages missing, %d copied, %d zeroed; want all missing", g.Missing(), g.Stats().Copied.Load(), g.Stats().Zeroed.Load())
	}
	// Who waits is let go by the last descriptor, and finds no memory at all.
	g.Close()
	r.fd.Close()
	if err := testutil.Proceeds(t, loaded, "load after Close"); err == nil {
		t.Errorf("loaded %x... where there is no memory", head(got))
	}
}
