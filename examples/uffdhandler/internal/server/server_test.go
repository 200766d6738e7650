//go:build linux

package server

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/handshake"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/uffd/pager"
)

func TestMain(m *testing.M) { testutil.Main(m) }

const page = addr.PageSize

// source is an image of which each byte of page p is p+1, and some pages of
// which cannot be read, or panic.
type source struct {
	n      uint64
	bad    sync.Map // page → error
	panics atomic.Bool
}

func (s *source) Size() uint64 { return s.n * page }

func (s *source) ReadPages(_ context.Context, p []byte, off uint64) error {
	if s.panics.Load() {
		panic("the source")
	}
	for i := range p {
		at := (off + uint64(i)) / page
		if err, ok := s.bad.Load(at); ok {
			return err.(error)
		}
		p[i] = byte(at + 1)
	}
	return nil
}

// running is a server in this process, and a guest that is this process too, so
// that no policy may kill it.
type running struct {
	*Server
	stop  context.CancelFunc
	force context.CancelFunc
	done  <-chan struct{}
}

func runServer(t *testing.T, o Options) *running {
	t.Helper()
	o.Log = slog.New(slog.DiscardHandler)
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	forceCtx, force := context.WithCancel(context.Background())
	r := &running{s, stop, force, testutil.Go(func() { s.Run(ctx, forceCtx) })}
	t.Cleanup(func() {
		stop()
		force()
		testutil.Proceeds(t, r.done, "the server")
	})
	return r
}

// isDone waits until no guest needs the server: what is left when it stops would
// be killed, and that is this process.
func (r *running) isDone(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(time.Minute); len(r.pager.Guests()) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the server does not get done with its guests")
		}
	}
}

// guest is memory of this process that a server serves.
type guest struct {
	t    *testing.T
	base uint64
	fd   *uffd.FD
	conn net.Conn
}

func newGuest(t *testing.T, socket string, n uint64) *guest {
	t.Helper()
	g := &guest{t: t, base: testutil.MapAnonymous(t, n*page)}
	var err error
	if g.fd, err = uffd.Open(uffd.Options{Required: uffd.FeatureEventRemove}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.fd.Close() })
	if _, err := g.fd.Register(addr.HVA(g.base), n*page, uffd.Missing); err != nil {
		t.Fatal(err)
	}
	if g.conn, err = net.Dial("unix", socket); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.conn.Close() })
	message := fmt.Sprintf(`[{"base_host_virt_addr":%d,"size":%d,"offset":0,"page_size":4096}]`, g.base, n*page)
	if _, _, err := g.conn.(*net.UnixConn).WriteMsgUnix([]byte(message), unix.UnixRights(g.fd.Fd()), nil); err != nil {
		t.Fatal(err)
	}
	return g
}

// load reads the first byte of a page; it is there once the channel is closed.
func (g *guest) load(p uint64) (value *byte, done <-chan struct{}) {
	value = new(byte)
	return value, testutil.Go(func() {
		b := []byte{0}
		if err := testutil.Load(g.base+p*page, b); err != nil {
			g.t.Errorf("page %d: %v", p, err)
		}
		*value = b[0]
	})
}

func (g *guest) holds(p uint64, want byte) {
	g.t.Helper()
	value, done := g.load(p)
	testutil.Proceeds(g.t, done, fmt.Sprintf("who wants page %d", p))
	if *value != want {
		g.t.Errorf("page %d holds %d, want %d", p, *value, want)
	}
}

// One page that cannot be read holds up who wants it, and nobody else, until it
// can be. No page of zeroes stands in for it meanwhile.
func TestR12OnePageThatCannotBeRead(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	for _, cause := range []error{unix.EIO, pager.ErrTruncated, context.DeadlineExceeded} {
		t.Run(cause.Error(), func(t *testing.T) {
			const n, bad = 64, 20
			src := &source{n: n}
			src.bad.Store(uint64(bad), cause)
			socket := filepath.Join(t.TempDir(), "s")
			s := runServer(t, Options{Listen: socket, Source: src, Policy: pager.Park, RetryEvery: 5 * time.Millisecond, Background: pager.FillAll})
			g := newGuest(t, socket, n)
			value, done := g.load(bad)
			for p := range uint64(n) {
				if p != bad {
					g.holds(p, byte(p+1))
				}
			}
			testutil.Parked(t, done, "who wants the page that cannot be read")
			src.bad.Delete(uint64(bad))
			testutil.Proceeds(t, done, "who wants the page")
			if *value != bad+1 {
				t.Errorf("the page holds %d, want %d", *value, bad+1)
			}
			s.isDone(t)
		})
	}
}

// Under the policy standby the very same guest goes from server to server, with
// what it has given back.
func TestR12HandedOverWithItsStates(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	const n, bad = 64, 20
	src := &source{n: n}
	src.bad.Store(uint64(bad), unix.EIO)
	dir := t.TempDir()
	socket, second := filepath.Join(dir, "s"), filepath.Join(dir, "second")
	b := runServer(t, Options{TakeOver: second, Source: &source{n: n}, Policy: pager.Park, Background: pager.FillAll})
	a := runServer(t, Options{Listen: socket, Standby: second, Source: src, Policy: pager.Standby})
	g := newGuest(t, socket, n)
	g.holds(3, 4)
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(g.base+3*page), 4*page, unix.MADV_DONTNEED); errno != 0 {
		t.Fatal(errno)
	}
	g.holds(bad, bad+1)
	for p := range uint64(n) {
		want := byte(p + 1)
		if p >= 3 && p < 7 {
			want = 0
		}
		g.holds(p, want)
	}
	a.isDone(t)
	b.isDone(t)
}

// Who comes to the takeover socket and is no server gets nothing, and harms
// nothing.
func TestHostileHandovers(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	dir := t.TempDir()
	socket := filepath.Join(dir, "take")
	s := runServer(t, Options{TakeOver: socket, Source: &source{n: 4}, Policy: pager.Park})
	body := func(p string) []byte {
		return append(binary.LittleEndian.AppendUint32([]byte(parcelMagic), uint32(len(p))), p...)
	}
	pipe := make([]int, 2)
	if err := unix.Pipe2(pipe, unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	defer unix.Close(pipe[1])
	image := fmt.Sprintf("%x", pager.Identity{})
	for name, m := range map[string]struct {
		bytes []byte
		fds   []int
	}{
		"nothing":          {nil, nil},
		"nonsense":         {[]byte("GET / HTTP/1.0\r\n\r\n"), nil},
		"short":            {[]byte(parcelMagic), pipe},
		"enormous":         {append([]byte(parcelMagic), 0xff, 0xff, 0xff, 0xff), pipe},
		"not JSON":         {body("hello"), pipe},
		"unknown kind":     {body(`{"kind":"cake"}`), pipe[:1]},
		"no descriptor":    {body(`{"kind":"guest","image":"` + image + `"}`), nil},
		"too many":         {body(`{"kind":"guest","image":"` + image + `"}`), append(pipe, pipe...)},
		"no pidfd":         {body(`{"kind":"guest","image":"` + image + `"}`), pipe[:1]},
		"other image":      {body(`{"kind":"guest","image":"00"}`), pipe[:1]},
		"not a socket":     {body(`{"kind":"socket","path":""}`), pipe[:1]},
		"another's socket": {body(`{"kind":"socket","path":"/x"}`), pipe[:1]},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if len(m.bytes) > 0 {
				if _, _, err := conn.WriteMsgUnix(m.bytes, unix.UnixRights(m.fds...), nil); err != nil {
					t.Fatal(err)
				}
			}
			if err := conn.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			answer := make([]byte, 16)
			ended := testutil.Go(func() {
				for {
					n, err := conn.Read(answer)
					if n > 0 && answer[0] == say {
						t.Errorf("the server says yes")
					}
					if err != nil {
						return
					}
				}
			})
			testutil.Proceeds(t, ended, "the one who hands over")
		})
	}
	if got := len(s.pager.Guests()); got != 0 {
		t.Errorf("%d guests are served", got)
	}
}

// The sockets of two servers at one path: neither takes the other's away.
func TestSocketIsTheOwners(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); !errors.Is(err, ErrInUse) {
		t.Errorf("a second one: %v, want ErrInUse", err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	second, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.remove()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the first has removed the second's: %v", err)
	}
	second.remove()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the second leaves its own: %v", err)
	}
	for _, bad := range []string{"", "@abstract", filepath.Dir(path), "/dev/null"} {
		if s, err := listen(bad); err == nil {
			s.remove()
			t.Errorf("%q is a path for a socket", bad)
		}
	}
}

func TestWrongOptions(t *testing.T) {
	src := &source{n: 4}
	for name, o := range map[string]Options{
		"nothing to listen on": {Source: src},
		"no standby":           {Source: src, Listen: "s", Policy: pager.Standby},
		"its own standby":      {Source: src, TakeOver: "s", Standby: "s"},
		"another's set":        {Source: src, Listen: "s", WorkingSet: &pager.WorkingSet{Image: pager.Identity{1}}},
	} {
		if _, err := New(o); !errors.Is(err, pager.ErrInvalid) && !errors.Is(err, pager.ErrWrongImage) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is counted is told apart.
func TestEveryCauseHasAName(t *testing.T) {
	seen := map[string]bool{}
	for _, e := range pagerErrors {
		if got := reason(fmt.Errorf("x: %w", e.err)); got != e.name || seen[got] {
			t.Errorf("%v is called %q, want %q, once", e.err, got, e.name)
		}
		seen[e.name] = true
	}
	if got := reason(handshake.ErrTimeout); got != "timeout" {
		t.Errorf("a timeout is called %q", got)
	}
	// What is lacking is the cause, whatever came of it.
	for err, want := range map[error]string{
		errors.Join(pager.ErrLivelock, unix.ENOMEM):   "out_of_memory",
		errors.Join(handshake.ErrPeer, unix.EMFILE):   "out_of_descriptors",
		fmt.Errorf("eventfd: %w", unix.ENFILE):        "out_of_descriptors",
		errors.Join(pager.ErrHandover, unix.EMFILE):   "out_of_descriptors",
		errors.Join(pager.ErrSource, pager.ErrClosed): "unreadable_page",
	} {
		if got := reason(err); got != want {
			t.Errorf("%v is called %q, want %q", err, got, want)
		}
	}
	if got := reason(errors.New("x")); got != "failed" {
		t.Errorf("what nobody knows is called %q", got)
	}
}
