//go:build linux && (amd64 || arm64)

package uffd

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) {
	if mode := os.Getenv(peerEnv); mode != "" {
		peerMain(mode)
	}
	testutil.Main(m)
}

var page = hostPageSize

// opened returns an FD with features until the test ends.
func opened(t testing.TB, features Features) *FD {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDMissing)
	f, err := Open(Options{Required: features})
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

// A memory is pages that a test serves.
type memory struct {
	*FD
	t    testing.TB
	base addr.HVA
	n    uint64 // pages
	fd   int    // memfd, or -1
}

// anonymous returns n registered pages of private memory.
func anonymous(t testing.TB, n uint64, m Mode, features Features) *memory {
	t.Helper()
	// Mapped first, and so unmapped last, when nobody hears of it any more.
	base := addr.HVA(testutil.MapAnonymous(t, n*page))
	mem := &memory{opened(t, features), t, base, n, -1}
	mem.register(m)
	return mem
}

// shared returns n registered pages of a memfd.
func shared(t testing.TB, n uint64, m Mode, features Features) *memory {
	t.Helper()
	fd := testutil.NewMemfd(t, n*page)
	base := addr.HVA(testutil.MapShared(t, fd, n*page))
	mem := &memory{opened(t, features), t, base, n, fd}
	mem.register(m)
	return mem
}

func (m *memory) register(mode Mode) {
	m.t.Helper()
	if mode == 0 {
		return
	}
	if _, err := m.Register(m.base, m.n*page, mode); err != nil {
		m.t.Fatal(err)
	}
}

// at is the address of page i.
func (m *memory) at(i uint64) addr.HVA { return m.base + addr.HVA(i*page) }

// load reads the first byte of page i through the registered mapping.
func (m *memory) load(i uint64) byte {
	m.t.Helper()
	var b [1]byte
	if err := testutil.Load(uint64(m.at(i)), b[:]); err != nil {
		m.t.Error(err)
	}
	return b[0]
}

func (m *memory) store(i uint64, b byte) {
	m.t.Helper()
	if err := testutil.Store(uint64(m.at(i)), []byte{b}); err != nil {
		m.t.Error(err)
	}
}

// event waits for one.
func (m *memory) event() Event {
	m.t.Helper()
	return nextEvent(m.t, m.FD)
}

// untilReadable waits until f has an event, and takes none.
func untilReadable(t testing.TB, f *FD) {
	t.Helper()
	set := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(set, 20_000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(set, 20_000)
	}
	if n != 1 || err != nil {
		t.Fatal("no event:", n, err)
	}
}

// nextEvent waits for one event of f.
func nextEvent(t testing.TB, f *FD) Event {
	t.Helper()
	w, err := f.NewWaiter()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var e [1]Event
	switch n, err := w.Wait(e[:], 2*time.Minute); {
	case err != nil:
		t.Fatal(err)
	case n == 0:
		t.Fatal("no event")
	}
	return e[0]
}

// pages returns n pages of byte b.
func pages(n uint64, b byte) []byte { return bytes.Repeat([]byte{b}, int(n*page)) }

// wantErr checks for an errno, and that the Error tells how far it got.
func wantErr(t testing.TB, what string, done, wantDone uint64, err, want error) {
	t.Helper()
	if !errors.Is(err, want) || want == nil && err != nil || done != wantDone {
		t.Errorf("%s: %#x bytes done, %v; want %#x, %v", what, done, err, wantDone, want)
		return
	}
	var e *Error
	if err != nil && (!errors.As(err, &e) || e.Done != wantDone) {
		t.Errorf("%s: the error %#v does not tell that %#x bytes are done", what, err, wantDone)
	}
}

func open1(t testing.TB, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}
