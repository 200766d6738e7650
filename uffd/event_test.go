//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func hva(a uint64) addr.HVA { return addr.HVA(a) }

func TestFaultEvent(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features Features
		exact    bool
	}{
		{"plain", 0, false},
		{"exact", FeatureExactAddress | FeatureThreadID, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := anonymous(t, 2, Missing, tc.features)
			tid := make(chan int, 1)
			done := testutil.Go(func() {
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				tid <- unix.Gettid()
				// From /dev/zero straight into the page: the fault is at its
				// very byte.
				zero := open1(t, "/dev/zero")
				if _, _, errno := unix.Syscall(unix.SYS_READ, uintptr(zero), uintptr(m.at(1)+123), 5); errno != 0 {
					t.Error(errno)
				}
			})
			e := m.event()
			want := Event{Kind: EventFault, Addr: m.at(1), Flags: FaultWrite}
			if id := <-tid; tc.exact {
				want.Addr += 123
				want.ThreadID = uint32(id)
			}
			if e != want {
				t.Errorf("got %+v, want %+v", e, want)
			}
			if e.Page(page) != m.at(1) {
				t.Errorf("page %v, want %v", e.Page(page), m.at(1))
			}
			if _, err := m.Zero(m.at(1), page, 0); err != nil {
				t.Error(err)
			}
			testutil.Proceeds(t, done, "the reader")
		})
	}
}

// hold maps what a call has left unmapped inside of memory that is unmapped as a
// whole when the test ends: nobody else gets a mapping there that would go with it.
func hold(t *testing.T, at addr.HVA, n uint64) {
	_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(at), uintptr(n), unix.PROT_NONE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if errno != 0 {
		t.Errorf("hold %#x bytes: %v", n, errno)
	}
}

func TestLayoutEvents(t *testing.T) {
	to := testutil.MapAnonymous(t, 4*page)
	m := anonymous(t, 8, Missing, FeatureEventRemove|FeatureEventUnmap|FeatureEventRemap)
	if _, err := m.Copy(m.at(0), pages(8, 1), 0); err != nil {
		t.Fatal(err)
	}
	expect := func(what string, call func() unix.Errno, want ...Event) {
		t.Helper()
		done := testutil.Go(func() {
			if errno := call(); errno != 0 {
				t.Errorf("%s: %v", what, errno)
			}
		})
		var got []Event
		for range want {
			got = append(got, m.event())
		}
		if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b *FD) bool { return a == b })); diff != "" {
			t.Errorf("%s: events (-want +got)\n%s", what, diff)
		}
		testutil.Proceeds(t, done, what)
	}
	expect("madvise", func() unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.at(1)), uintptr(2*page), unix.MADV_DONTNEED)
		return errno
	}, Event{Kind: EventRemove, Start: m.at(1), End: m.at(3)})
	expect("mremap", func() unix.Errno {
		_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(m.at(4)), uintptr(2*page), uintptr(2*page),
			unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, uintptr(to), 0)
		hold(t, m.at(4), 2*page)
		return errno
	}, Event{Kind: EventRemap, From: m.at(4), To: hva(to), Len: 2 * page},
		Event{Kind: EventUnmap, Start: m.at(4), End: m.at(6)})
	// The registration has moved along.
	done, err := m.Copy(hva(to), pages(1, 1), 0)
	wantErr(t, "copy to where a page has moved", done, 0, err, unix.EEXIST)
	expect("munmap", func() unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(m.at(6)), uintptr(page), 0)
		hold(t, m.at(6), page)
		return errno
	}, Event{Kind: EventUnmap, Start: m.at(6), End: m.at(7)})
	done, err = m.Copy(m.at(6), pages(1, 1), 0)
	wantErr(t, "copy to what is unmapped", done, 0, err, unix.ENOENT)
}

// A fork gives a descriptor that serves the child, in its own memory.
func TestForkEvent(t *testing.T) {
	needForkEvents(t)
	p := startPeer(t, FeatureEventFork)
	p.send(peerFork, 5)
	e := nextEvent(t, p.FD)
	if e.Kind != EventFork || e.Child == nil {
		t.Fatalf("got %+v, want a fork", e)
	}
	child := e.Child
	defer child.Close()
	if got, err := unix.FcntlInt(uintptr(child.Fd()), unix.F_GETFD, 0); err != nil || got&unix.FD_CLOEXEC == 0 {
		t.Errorf("the child's descriptor has flags %#x, %v", got, err)
	}
	if child.Features() != FeatureEventFork {
		t.Errorf("the child's features are %v", child.Features())
	}
	fault := nextEvent(t, child)
	if fault.Kind != EventFault || fault.Page(page) != p.at(5) {
		t.Fatalf("got %+v, want a fault of the child on page 5", fault)
	}
	if _, err := child.Copy(p.at(5), pages(1, 42), 0); err != nil {
		t.Fatal(err)
	}
	if got := p.receive(); got != 42 {
		t.Errorf("the child read %d, want 42", got)
	}
	// The parent has not got that page.
	p.send(peerTouch, 5)
	if e := nextEvent(t, p.FD); e.Kind != EventFault || e.Page(page) != p.at(5) {
		t.Errorf("got %+v, want the parent's own fault", e)
	}
	if _, err := p.Copy(p.at(5), pages(1, 43), 0); err != nil {
		t.Error(err)
	}
	if got := p.receive(); got != 43 {
		t.Errorf("the parent read %d, want 43", got)
	}
}

func needForkEvents(t *testing.T) {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDEvents)
	f, err := Open(Options{Required: FeatureEventFork})
	if errors.Is(err, unix.EPERM) {
		t.Skip("fork events need CAP_SYS_PTRACE; run it with that")
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}

// A fork whose descriptor finds no room is an error, and is not lost.
func TestForkEventWithoutDescriptors(t *testing.T) {
	needForkEvents(t)
	p := startPeer(t, FeatureEventFork)
	p.send(peerFork, 0)
	w, err := p.NewWaiter()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	var events [4]Event
	untilReadable(t, p.FD)
	withFewFiles(t, func() {
		if n, err := w.Wait(events[:], -1); n != 0 || !errors.Is(err, unix.EMFILE) {
			t.Errorf("got %d, %v; want EMFILE", n, err)
		}
	})
	n, err := w.Wait(events[:], -1)
	if n != 1 || err != nil || events[0].Kind != EventFork {
		t.Fatalf("got %d, %v, %+v; want the fork", n, err, events[0])
	}
	child := events[0].Child
	defer child.Close()
	nextEvent(t, child)
	if _, err := child.Zero(p.at(0), page, 0); err != nil {
		t.Error(err)
	}
	p.receive()
}

// The process is gone: every call that would change its memory says ESRCH, which
// is no success.
func TestProcessGone(t *testing.T) {
	p := startPeer(t, FeatureFaultWP|FeatureMove|FeaturePoison)
	p.send(peerTouch, 1)
	nextEvent(t, p.FD)
	p.cmd.Process.Kill()
	p.cmd.Wait()
	done, err := p.Copy(p.at(1), pages(1, 1), 0)
	wantErr(t, "copy", done, 0, err, unix.ESRCH)
	done, err = p.Zero(p.at(1), page, 0)
	wantErr(t, "zero", done, 0, err, unix.ESRCH)
	done, err = p.Continue(p.at(1), page, 0)
	wantErr(t, "continue", done, 0, err, unix.ESRCH)
	done, err = p.Poison(p.at(1), page, 0)
	wantErr(t, "poison", done, 0, err, unix.ESRCH)
	wantErr(t, "write-protect", 0, 0, p.WriteProtect(p.at(1), page, Armed), unix.ESRCH)
	_, err = p.Register(p.at(1), page, Missing)
	wantErr(t, "register", 0, 0, err, unix.ENOMEM)
	wantErr(t, "unregister", 0, 0, p.Unregister(p.at(1), page), unix.ENOMEM)
	n, err := p.Fill(p.at(1), pages(2, 1), page, 0)
	wantErr(t, "fill", n.Done(), 0, err, unix.ESRCH)
	if err := p.Wake(p.at(1), page); err != nil {
		t.Errorf("wake: %v", err)
	}
}

func TestDecodeUnknownEvent(t *testing.T) {
	f := &FD{}
	var e Event
	f.decode(&uffdMsg{event: 0x99, arg: [3]uint64{1, 2, 3}}, &e)
	if want := (Event{Kind: 0x99, Raw: [3]uint64{1, 2, 3}}); e != want {
		t.Errorf("got %+v, want %+v", e, want)
	}
	if got := e.String(); got != "unknown event 0x99 [0x1 0x2 0x3]" {
		t.Errorf("it reads %q", got)
	}
}

func TestBatchRead(t *testing.T) {
	const n = 40
	m := anonymous(t, n, Missing, 0)
	var readers [n]<-chan struct{}
	for i := range readers {
		readers[i] = testutil.Go(func() { m.load(uint64(i)) })
	}
	seen := make(map[addr.HVA]bool)
	w := m.waiter()
	var events [64]Event
	for len(seen) < n {
		k, err := w.Wait(events[:], -1)
		if err != nil {
			t.Fatal(err)
		}
		if k > readBatch {
			t.Errorf("%d events in one read", k)
		}
		for _, e := range events[:k] {
			if seen[e.Addr] {
				t.Errorf("%v came twice", &e)
			}
			seen[e.Addr] = true
		}
	}
	if _, err := m.Zero(m.base, n*page, 0); err != nil {
		t.Fatal(err)
	}
	for _, r := range readers {
		testutil.Proceeds(t, r, "a reader")
	}
}

// Messages read through a buffer are there for who has nothing but that.
func TestReadThrough(t *testing.T) {
	m := anonymous(t, 4, Missing, FeatureEventRemove)
	onHeap := func(n int) []byte { return slices.Grow([]byte(nil), n)[:n] } // and so aligned
	buf := onHeap(MessageSpace)
	for i := range buf {
		buf[i] = 0xff
	}
	removed := make(chan error, 1)
	go func() {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.base), uintptr(2*page), unix.MADV_DONTNEED)
		if errno != 0 {
			removed <- errno
		}
		close(removed)
	}()
	var events, again [4]Event
	for n := 0; n == 0; {
		var err error
		if n, err = m.ReadThrough(buf, events[:]); err != nil {
			t.Fatal(err)
		}
	}
	if err := testutil.Proceeds(t, removed, "remover"); err != nil {
		t.Fatal(err)
	}
	if n := DecodeMessages(buf, again[:]); n != 1 || again[0] != events[0] || again[0].Kind != EventRemove || again[0].End != m.base+addr.HVA(2*page) {
		t.Errorf("%d events decoded, %v; want %v", n, again[0].String(), events[0].String())
	}
	if n, err := m.ReadThrough(buf, events[:]); n != 0 || err != nil {
		t.Errorf("read of nothing: %d, %v", n, err)
	}
	if n := DecodeMessages(buf, again[:]); n != 0 {
		t.Errorf("%d events of a read of nothing", n)
	}
	for _, bad := range [][]byte{nil, buf[:MessageSpace-1], onHeap(MessageSpace + 1)[1:]} {
		if _, err := m.ReadThrough(bad, events[:]); !errors.Is(err, ErrInvalid) {
			t.Errorf("a buffer of %d bytes: %v", len(bad), err)
		}
		if n := DecodeMessages(bad, again[:]); n != 0 {
			t.Errorf("%d events in no buffer", n)
		}
	}
}
