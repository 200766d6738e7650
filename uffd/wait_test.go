//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

func (m *memory) waiter() *Waiter {
	m.t.Helper()
	w, err := m.NewWaiter()
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() {
		if err := w.Close(); err != nil {
			m.t.Error(err)
		}
	})
	return w
}

type waited struct {
	n   int
	err error
}

func startWait(w *Waiter, timeout time.Duration) <-chan waited {
	ch := make(chan waited, 1)
	go func() {
		var events [4]Event
		n, err := w.Wait(events[:], timeout)
		ch <- waited{n, err}
	}()
	return ch
}

func TestWaitEnds(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(m *memory, w *Waiter)
		want error
	}{
		{"by Nudge", func(_ *memory, w *Waiter) { w.Nudge() }, nil},
		{"by Waiter.Close", func(_ *memory, w *Waiter) { w.Close() }, ErrClosed},
		{"by FD.Close", func(m *memory, _ *Waiter) { m.Close() }, ErrClosed},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := anonymous(t, 1, Missing, 0)
			for range 20 { // asleep, spinning, or not yet begun
				w, err := m.NewWaiter()
				if err != nil {
					if errors.Is(err, ErrClosed) && tc.want != nil {
						return // by FD.Close: the first round has closed it
					}
					t.Fatal(err)
				}
				ch := startWait(w, -1)
				if runtime.NumGoroutine()%2 == 0 {
					time.Sleep(time.Millisecond)
				}
				tc.end(m, w)
				got := testutil.Proceeds(t, ch, "Wait")
				if got.n != 0 || !errors.Is(got.err, tc.want) {
					t.Errorf("got %d, %v; want 0, %v", got.n, got.err, tc.want)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
				if got := <-startWait(w, -1); !errors.Is(got.err, ErrClosed) {
					t.Errorf("after Close: %v", got.err)
				}
			}
		})
	}
}

func TestWaitTimesOut(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	w := m.waiter()
	for _, timeout := range []time.Duration{0, 1, 10 * time.Microsecond, 3 * time.Millisecond} {
		if got := testutil.Proceeds(t, startWait(w, timeout), "Wait"); got.n != 0 || got.err != nil {
			t.Errorf("after %v: %d, %v", timeout, got.n, got.err)
		}
	}
	read := testutil.Go(func() { m.load(0) })
	m.untilUnread(1)
	w.spin, w.more = spinner{now: sleep, left: stayWaits}, false
	if got := testutil.Proceeds(t, startWait(w, 1), "Wait"); got.n != 1 || got.err != nil {
		t.Errorf("what waits is missed by a short timeout: %d, %v", got.n, got.err)
	}
	if _, err := m.Zero(m.base, page, 0); err != nil {
		t.Error(err)
	}
	testutil.Proceeds(t, read, "the reader")
	var e [0]Event
	if _, err := w.Wait(e[:], 0); !errors.Is(err, ErrInvalid) {
		t.Errorf("room for no event: %v", err)
	}
}

// A Nudge before a Wait ends that Wait, once.
func TestNudgeIsKept(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	w := m.waiter()
	w.Nudge()
	w.Nudge()
	if got := testutil.Proceeds(t, startWait(w, -1), "Wait"); got.n != 0 || got.err != nil {
		t.Errorf("got %d, %v", got.n, got.err)
	}
	ch := startWait(w, -1)
	testutil.Parked(t, ch, "Wait, with nothing to hear")
	w.Nudge()
	testutil.Proceeds(t, ch, "Wait")
}

func TestClosedFD(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	dup, err := m.Dup()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Errorf("closing again: %v", err)
	}
	if m.Fd() != -1 {
		t.Errorf("descriptor %d of what is closed", m.Fd())
	}
	var e [1]Event
	_, err = m.Read(e[:])
	wantErr(t, "read", 0, 0, err, ErrClosed)
	_, err = m.Copy(m.base, pages(1, 1), 0)
	wantErr(t, "copy", 0, 0, err, ErrClosed)
	wantErr(t, "wake", 0, 0, m.Wake(m.base, page), ErrClosed)
	if _, err := m.Dup(); !errors.Is(err, ErrClosed) {
		t.Errorf("dup: %v", err)
	}
	if _, err := m.NewWaiter(); !errors.Is(err, ErrClosed) {
		t.Errorf("waiter: %v", err)
	}
	// The duplicate keeps the memory guarded.
	read := testutil.Go(func() {
		if got := m.load(0); got != 3 {
			t.Errorf("read %d, want 3", got)
		}
	})
	if e := nextEvent(t, dup); e.Kind != EventFault {
		t.Errorf("got %v", &e)
	}
	if waiting, unread, err := dup.Pending(); waiting != 1 || unread != 0 || err != nil {
		t.Errorf("%d wait, %d unread, %v; want 1, 0", waiting, unread, err)
	}
	if _, err := dup.Copy(m.base, pages(1, 3), 0); err != nil {
		t.Error(err)
	}
	testutil.Proceeds(t, read, "the reader")
	if err := dup.Close(); err != nil {
		t.Error(err)
	}
}

// Closing while others use the descriptor: no call reaches a descriptor that has
// got the same number meanwhile.
func TestCloseWhileInUse(t *testing.T) {
	for range 12 {
		f := opened(t, 0)
		var users [4]<-chan struct{}
		var ready atomic.Int32
		for i := range users {
			users[i] = testutil.Go(func() {
				ready.Add(1)
				for {
					var e [1]Event
					n, err := f.Read(e[:])
					if errors.Is(err, ErrClosed) {
						return
					}
					if n != 0 || err != nil {
						t.Errorf("read: %d, %v", n, err)
						return
					}
				}
			})
		}
		for ready.Load() < int32(len(users)) {
			runtime.Gosched()
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		// The number goes to a file of which a read would be seen.
		fd, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range users {
			testutil.Proceeds(t, u, "a user of the descriptor")
		}
		unix.Close(fd)
	}
}

// The process that is watched ends: that is told, after what it did before.
func TestWatchPeer(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	w := m.waiter()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Skip("needs sleep(1):", err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	w.WatchPeer(pidfd)
	ch := startWait(w, -1)
	testutil.Parked(t, ch, "Wait, while its peer lives")
	cmd.Process.Kill()
	cmd.Wait()
	if got := testutil.Proceeds(t, ch, "Wait"); !errors.Is(got.err, ErrPeerGone) {
		t.Errorf("got %v, want ErrPeerGone", got.err)
	}
	read := testutil.Go(func() { m.load(0) })
	m.untilUnread(1)
	w.spin = spinner{now: sleep, left: stayWaits} // it would read before it looks at the peer
	got := testutil.Proceeds(t, startWait(w, -1), "Wait")
	if got.n != 1 || got.err != nil {
		t.Errorf("an event and a peer that is gone: %d, %v; want the event", got.n, got.err)
	}
	if _, err := m.Zero(m.base, page, 0); err != nil {
		t.Error(err)
	}
	testutil.Proceeds(t, read, "the reader")
	w.WatchPeer(1 << 20) // open by nobody
	if got := testutil.Proceeds(t, startWait(w, -1), "Wait"); !errors.Is(got.err, unix.EBADF) {
		t.Errorf("watching what is not open: %v", got.err)
	}
}

// untilUnread waits until n faults have not been read.
func (m *memory) untilUnread(n int) {
	m.t.Helper()
	for range 20_000 {
		_, unread, err := m.Pending()
		if err != nil {
			m.t.Fatal(err)
		}
		if unread == n {
			return
		}
		time.Sleep(time.Millisecond)
	}
	m.t.Fatalf("not %d faults", n)
}

// Whoever sent the descriptor takes O_NONBLOCK off the description that is
// shared: Read does not block for it, the runtime is not held up, and Wait says
// what is wrong rather than spin for ever.
func TestBlockingDescriptorHoldsUpNobody(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	var e [1]Event
	if _, err := m.Read(e[:]); err != nil {
		t.Fatal(err)
	}
	if m.cannotNowait.Load() {
		t.Skip("no preadv2(RWF_NOWAIT) of a userfaultfd; use Linux 6.10 or later")
	}
	w := m.waiter()
	ch := startWait(w, -1)
	testutil.Parked(t, ch, "Wait")
	if err := unix.SetNonblock(m.Fd(), false); err != nil {
		t.Fatal(err)
	}
	w.Nudge()
	got := testutil.Proceeds(t, ch, "Wait")
	if got == (waited{}) { // it had not got as far as poll, and the next one finds out
		got = testutil.Proceeds(t, startWait(w, -1), "Wait")
	}
	if !errors.Is(got.err, unix.EIO) {
		t.Errorf("Wait: %d, %v; want EIO", got.n, got.err)
	}
	read := testutil.Go(func() {
		if n, err := m.Read(e[:]); n != 0 || err != nil {
			t.Errorf("Read: %d, %v", n, err)
		}
	})
	testutil.Proceeds(t, read, "Read")
	testutil.Within(t, 2*time.Minute, runtime.GC)
	if err := unix.SetNonblock(m.Fd(), true); err != nil {
		t.Fatal(err)
	}
}

// A kernel that has no way to read without blocking but O_NONBLOCK.
func TestReadWithoutNowait(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	m.cannotNowait.Store(true)
	var e [1]Event
	if n, err := m.Read(e[:]); n != 0 || err != nil {
		t.Errorf("Read: %d, %v", n, err)
	}
	read := testutil.Go(func() { m.load(0) })
	if e := m.event(); e.Kind != EventFault || e.Addr != m.base {
		t.Errorf("got %v", &e)
	}
	if _, err := m.Zero(m.base, page, 0); err != nil {
		t.Error(err)
	}
	testutil.Proceeds(t, read, "the reader")
}

// Many threads fault while the garbage collector stops the world again and
// again: a server in Go that waits, copies and is waited for holds up nobody.
func TestR10CollectingWhileFaultsWait(t *testing.T) {
	const n = 300
	m := anonymous(t, n, Missing, 0)
	w := m.waiter()
	var left atomic.Int32
	left.Store(n)
	done := make(chan struct{})
	for i := range uint64(n) {
		go func() {
			if got := m.load(i); got != byte(i)|1 {
				t.Errorf("page %d holds %d", i, got)
			}
			if left.Add(-1) == 0 {
				close(done)
			}
		}()
	}
	var parked []Event
	for len(parked) < n { // all of them wait at once
		var events [16]Event
		k, err := w.Wait(events[:], -1)
		if err != nil {
			t.Fatal(err)
		}
		parked = append(parked, events[:k]...)
	}
	testutil.Within(t, 60*time.Second, func() {
		for range 20 {
			runtime.GC()
		}
	})
	served := testutil.Go(func() {
		for _, e := range parked {
			i := uint64(e.Page(page)-m.base) / page
			if _, err := m.Copy(e.Page(page), pages(1, byte(i)|1), 0); err != nil {
				t.Error(err)
			}
		}
	})
	for {
		select {
		case <-done:
			<-served
			return
		default:
			runtime.GC()
		}
	}
}

// A fault costs no allocation: waiting for it, reading it, answering it.
func TestServingDoesNotAllocate(t *testing.T) {
	const rounds = 200
	m := anonymous(t, rounds+1, Missing, 0)
	w := m.waiter()
	next := make(chan uint64)
	done := testutil.Go(func() {
		for i := range next {
			m.load(i)
		}
	})
	src := pages(1, 1)
	var events [4]Event
	var i uint64
	var m1, m2 runtime.MemStats
	serve := func() {
		next <- i
		i++
		if n, err := w.Wait(events[:], -1); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if _, err := m.Copy(events[0].Page(page), src, 0); err != nil {
			t.Fatal(err)
		}
	}
	serve()
	runtime.ReadMemStats(&m1)
	for range rounds {
		serve()
	}
	runtime.ReadMemStats(&m2)
	close(next)
	<-done
	// With those of who faults, and of the runtime, now and then.
	if perFault := float64(m2.Mallocs-m1.Mallocs) / rounds; perFault > 0.5 {
		t.Errorf("%.2f allocations for each fault", perFault)
	}
	n := testing.AllocsPerRun(100, func() {
		_, _ = w.Wait(events[:], 0)
		_, _ = m.Copy(m.base, src, 0)
	})
	if n > 3 { // the error of EEXIST
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = m.Read(events[:]) }); n != 0 {
		t.Errorf("Read allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = w.Wait(events[:], time.Microsecond) }); n != 0 {
		t.Errorf("Wait allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _ = m.Wake(m.base, page) }); n != 0 {
		t.Errorf("Wake allocates %v times", n)
	}
}

func TestMainProcessHasNoPeerMode(t *testing.T) {
	if os.Getenv(peerEnv) != "" {
		t.Fatal("a peer runs tests")
	}
}
