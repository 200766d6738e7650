package pager

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// A serverPlan is a process that serves a guest until it is killed: descriptor
// 3 is the userfaultfd, 4 the ledger.
type serverPlan struct {
	Start   addr.HVA
	Pages   int
	Recover bool
	Quick   bool // the reader serves, else workers
	Fill    bool
}

func (p serverPlan) source() Source {
	src := testSource{size: uint64(p.Pages) * smallPage}
	if p.Quick {
		return &quickSource{src}
	}
	return &src
}

func (p serverPlan) options() GuestOptions {
	o := GuestOptions{Name: "mortal", Source: p.source(), Image: Identity{3}, OnFailure: Park}
	if p.Fill {
		o.Fill = Fill{Background: FillAll, Pause: time.Millisecond}
	}
	return o
}

func (p serverPlan) serve() {
	fail := func(err error) {
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	fd, err := uffd.FromFD(3)
	fail(err)
	file := os.NewFile(4, "ledger")
	s, o := NewServer(Options{}), p.options()
	var g *Guest
	if p.Recover {
		t, err := Recover(fd, file)
		fail(err)
		g, err = s.TakeOver(t, o)
		fail(err)
	} else {
		o.FD, o.Ledger = fd, file
		o.Regions = []Region{{Start: p.Start, Size: uint64(p.Pages) * smallPage}}
		g, err = s.Add(o)
		fail(err)
	}
	fmt.Println("serving")
	<-g.Done()
	fmt.Println("ended")
	select {} // it may be complete: the guest goes on by itself
}

// startServer runs a server's process, and returns what it says first.
func startServer(t *testing.T, p serverPlan, fd *uffd.FD, ledger *os.File) (*exec.Cmd, string) {
	t.Helper()
	plan, err := json.Marshal(childPlan{Serve: &p})
	if err != nil {
		t.Fatal(err)
	}
	held, err := fd.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	number, err := unix.FcntlInt(uintptr(held.Fd()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	// os/exec makes what it passes on blocking; a userfaultfd must not be.
	dup := os.NewFile(uintptr(number), "userfaultfd")
	defer dup.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+string(plan))
	cmd.ExtraFiles = []*os.File{dup, ledger}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() {
		buf := make([]byte, 1000)
		n, _ := out.Read(buf)
		said <- string(bytes.TrimSpace(buf[:n]))
	}()
	return cmd, testutil.Proceeds(t, said, "server's process")
}

// TestR12KilledServer kills the process that serves, with SIGKILL, at any time
// and again and again, while the guest checks every byte that it reads and gives
// memory back. Another process goes on each time.
func TestR12KilledServer(t *testing.T) {
	rounds := 4
	if *soak {
		rounds = 100
	}
	kills := 0
	for round := range rounds {
		const pages = 4096
		rnd := rand.New(rand.NewPCG(uint64(round), 7))
		plan := serverPlan{Pages: pages, Quick: round%2 == 0, Fill: round%4 > 1}
		c := startChild(t, childPlan{Pages: pages, Threads: 4, Ops: 4000, Seed: uint64(round)})
		ledger, err := NewLedgerFile()
		if err != nil {
			t.Fatal(err)
		}
		defer ledger.Close()
		plan.Start = c.start
		cmd, said := startServer(t, plan, c.fd, ledger)
		plan.Recover = true
		c.goOn(t)
		// A server lives the longer, the more there were: on a host that is slow enough
		// none would get anything done otherwise.
		lives := 15_000 // microseconds, at most
		for alive := true; alive; lives += 100 {
			if !strings.HasPrefix(said, "serving") {
				cmd.Process.Kill()
				t.Fatalf("server: %q", said)
			}
			select {
			case err := <-c.ended:
				alive = false
				if err != nil {
					t.Errorf("round %d: guest: %v: %s", round, err, c.stderr.String())
				}
				cmd.Process.Kill()
				cmd.Wait()
			case <-time.After(time.Duration(rnd.IntN(lives)) * time.Microsecond):
				kills++
				cmd.Process.Kill()
				cmd.Wait()
				cmd, said = startServer(t, plan, c.fd, ledger)
			}
		}
	}
	t.Logf("%d servers killed", kills)
	if kills == 0 {
		t.Error("no server was killed")
	}
}

// TestR12RecoverDecides: what the file says decides whether a guest can be gone
// on with.
func TestR12RecoverDecides(t *testing.T) {
	const n = 16
	left := func(t *testing.T) (*realGuest, *Guest, *os.File) {
		r := newReal(t, n*smallPage, realOptions{features: events})
		file, err := NewLedgerFile()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() })
		g := serveReal(t, newTestServer(t, Options{}), r, GuestOptions{Source: &testSource{size: n * smallPage}, OnFailure: Park, Ledger: file})
		loadPage(t, r.page(1), imagePage(1*smallPage))
		if err := adviseRaw(r.page(2), smallPage, unix.MADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		return r, g, file
	}
	// stopped is a server that goes no further, as if killed.
	stopped := func(t *testing.T, g *Guest) {
		if _, err := g.Detach(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { g.l.close() })
	}
	t.Run("clean", func(t *testing.T) {
		r, g, file := left(t)
		stopped(t, g)
		takeover, err := Recover(r.fd, file)
		if err != nil {
			t.Fatal(err)
		}
		g2, err := newTestServer(t, Options{}).TakeOver(takeover, GuestOptions{Source: &testSource{size: n * smallPage}, OnFailure: Park})
		if err != nil {
			t.Fatal(err)
		}
		defer g2.Close()
		for i := range n {
			want := imagePage(uint64(i) * smallPage)
			if i == 2 {
				want = zeroPage
			}
			loadPage(t, r.page(i), want)
		}
	})
	t.Run("event in hand", func(t *testing.T) {
		r, g, file := left(t)
		// It is killed between its read and its marks.
		if err := g.s.Close(); err != nil {
			t.Fatal(err)
		}
		removed := make(chan error, 1)
		go func() { removed <- adviseRaw(r.page(5), 2*smallPage, unix.MADV_DONTNEED) }()
		l := g.l
		eventually(t, "the event", func() bool {
			n, err := l.read()
			return n > 0 || err != nil
		})
		if err := testutil.Proceeds(t, removed, "remover"); err != nil {
			t.Fatal(err)
		}
		takeover, err := Recover(r.fd, file)
		if err != nil {
			t.Fatal(err)
		}
		g2, err := newTestServer(t, Options{}).TakeOver(takeover, GuestOptions{Source: &testSource{size: n * smallPage}, OnFailure: Park})
		if err != nil {
			t.Fatal(err)
		}
		defer g2.Close()
		for i, want := range map[int][]byte{2: zeroPage, 4: imagePage(4 * smallPage), 5: zeroPage, 6: zeroPage, 7: imagePage(7 * smallPage)} {
			loadPage(t, r.page(i), want)
		}
	})
	t.Run("moved", func(t *testing.T) {
		r, g, file := left(t)
		if err := remapRaw(r.page(4), 4*smallPage, r.room(t, 4*smallPage)); err != nil {
			t.Fatal(err)
		}
		stopped(t, g)
		takeover, err := Recover(r.fd, file)
		if !errors.Is(err, ErrLost) {
			t.Errorf("%v, want ErrLost", err)
		}
		if err == nil {
			takeover.Close()
		}
	})
	t.Run("hostile", func(t *testing.T) {
		r, g, file := left(t)
		stopped(t, g)
		good := make([]byte, 2*4096)
		if _, err := file.ReadAt(good, 0); err != nil {
			t.Fatal(err)
		}
		bad := func(at int, b byte) {
			p := []byte{b}
			if _, err := file.WriteAt(p, int64(at)); err != nil {
				t.Fatal(err)
			}
			if takeover, err := Recover(r.fd, file); err == nil {
				takeover.Close()
				t.Errorf("byte %d changed to %#x: no error", at, b)
			} else if !errors.Is(err, ErrHandover) {
				t.Errorf("byte %d changed to %#x: %v", at, b, err)
			}
			file.WriteAt(good[at:at+1], int64(at))
		}
		for _, at := range []int{0, 7, 16, 18, 22, 23, 4096, 4096 + 8 + 40} {
			bad(at, good[at]^0x80)
		}
		empty, err := NewLedgerFile()
		if err != nil {
			t.Fatal(err)
		}
		defer empty.Close()
		for _, size := range []int64{0, 5, 4096, 1 << 20} {
			if err := empty.Truncate(size); err != nil {
				t.Fatal(err)
			}
			if _, err := Recover(r.fd, empty); !errors.Is(err, ErrHandover) {
				t.Errorf("empty file of %d bytes: %v", size, err)
			}
		}
		// A file that has been a ledger is no other guest's.
		if _, err := newTestServer(t, Options{}).Add(GuestOptions{
			FD: r.fd, Regions: []Region{{Start: r.start, Size: r.size}}, Source: &testSource{size: r.size}, Fail: func(error) {}, Ledger: file,
		}); !errors.Is(err, ErrInvalid) {
			t.Errorf("a ledger used twice: %v", err)
		}
	})
}

// TestCacheStaysWithItsProcess: a guest that is served from a cache of this
// process cannot be served by another.
func TestCacheStaysWithItsProcess(t *testing.T) {
	src := &testSource{size: 4 * smallPage}
	cache, err := NewCache(src)
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	f := newFake(t)
	o := GuestOptions{Source: src, OnFailure: Park, Regions: []Region{{Start: base, Size: src.size, Mode: ModeContinue, Cache: cache}}}
	s := newTestServer(t, Options{})
	if o.Ledger, err = NewLedgerFile(); err != nil {
		t.Fatal(err)
	}
	defer o.Ledger.Close()
	if _, err := s.add(f, true, o); !errors.Is(err, ErrInvalid) {
		t.Errorf("a ledger for a guest with a cache: %v", err)
	}
	o.Ledger = nil
	g := serveFake(t, s, f, o)
	takeover, err := g.Detach()
	if err != nil {
		t.Fatal(err)
	}
	left, _ := socketPair(t)
	if err := takeover.Send(left); !errors.Is(err, ErrInvalid) {
		t.Errorf("Send: %v, want ErrInvalid", err)
	}
	again, err := s.TakeOver(takeover, GuestOptions{Source: src, OnFailure: Park})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Fetch(context.Background(), base, smallPage); err != nil {
		t.Error(err)
	}
}
