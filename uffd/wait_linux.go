//go:build amd64 || arm64

package uffd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// A Waiter waits for the events of one FD on behalf of one goroutine. Nudge and
// Close may be called from any; Wait from one at a time. Several Waiters of one
// FD share its events: each event goes to one of them.
type Waiter struct {
	f     *FD
	wake  handle       // an eventfd
	peer  atomic.Int64 // the descriptor of WatchPeer, or -1
	nudge atomic.Bool
	spin  spinner // owned by the goroutine in Wait
	// more: the last read brought several events, so that others may wait; else
	// asking before sleeping is a system call for nothing. Owned by the goroutine
	// in Wait.
	more bool
}

// NewWaiter makes a Waiter of f. It holds one descriptor until Close.
//
// Errors: ErrClosed, EMFILE.
func (f *FD) NewWaiter() (*Waiter, error) {
	const op = "make a waiter"
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, opError(op, fmt.Errorf("eventfd: %w", err))
	}
	w := &Waiter{f: f, wake: handle{fd: fd}, spin: newSpinner()}
	w.peer.Store(-1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.h.isClosed() {
		unix.Close(fd)
		return nil, opError(op, ErrClosed)
	}
	if f.waiters == nil {
		f.waiters = make(map[*Waiter]struct{})
	}
	f.waiters[w] = struct{}{}
	return w, nil
}

// WatchPeer has Wait return ErrPeerGone, once no event is left, when fd becomes
// readable or hangs up: a pidfd of the process whose memory it is. A userfaultfd
// says nothing by itself when its process ends. fd is borrowed until Close, or
// until WatchPeer is called with -1. It counts from the next Wait on.
func (w *Waiter) WatchPeer(fd int) { w.peer.Store(int64(fd)) }

// Wait fills events with what happens next, waiting for it for timeout at most,
// forever if it is negative. It returns how many, as Read does: 0 and no error
// after the timeout, or a Nudge. It asks for up to 50 µs, if that has paid of
// late, and then sleeps in poll(2), without holding up the Go scheduler. To have
// it end with a context: defer context.AfterFunc(ctx, w.Nudge)().
//
// Errors: ErrClosed, once the Waiter or its FD is closed; ErrPeerGone; those of
// Read; the errno of poll(2).
func (w *Waiter) Wait(events []Event, timeout time.Duration) (int, error) {
	if !w.wake.acquire() {
		return 0, opError("wait", ErrClosed)
	}
	defer w.wake.release()
	if !w.f.h.acquire() {
		return 0, opError("wait", ErrClosed)
	}
	defer w.f.h.release()
	if len(events) == 0 {
		return 0, opError("wait", ErrInvalid)
	}
	if w.more || timeout == 0 {
		if n, err := w.read(events); n > 0 || err != nil || timeout == 0 {
			w.nudge.Store(false)
			return n, err
		}
	}
	begin := time.Now()
	way := w.spin.begin()
	if way == spin && !enterSpin() {
		way = sleep
	}
	if way == spin {
		n, err := w.spinRead(events, begin, timeout)
		leaveSpin()
		if n > 0 || err != nil {
			w.spin.end(spin, time.Since(begin))
			return n, err
		}
	}
	n, err := w.sleep(events, begin, timeout)
	// A wait that was cut short tells nothing.
	if waited := time.Since(begin); n > 0 || waited >= longWait {
		w.spin.end(way, waited)
	}
	return n, err
}

func (w *Waiter) sleep(events []Event, begin time.Time, timeout time.Duration) (int, error) {
	for {
		// Whoever wants us sets its flag first and writes to the eventfd
		// second: a flag set after this look finds us in poll.
		if w.isClosed() {
			return 0, opError("wait", ErrClosed)
		}
		if w.nudge.Swap(false) {
			return 0, nil
		}
		left := time.Duration(-1)
		if timeout >= 0 {
			if left = timeout - time.Since(begin); left <= 0 {
				return w.read(events) // so that short timeouts miss nothing
			}
		}
		gone, err := w.poll(left)
		if err != nil {
			return 0, opError("wait", err)
		}
		// Events first: what the peer did before it ended is still told.
		if n, err := w.read(events); n > 0 || err != nil {
			return n, err
		}
		if gone {
			return 0, opError("wait", ErrPeerGone)
		}
	}
}

// spinRead asks until something is there, or it has been long enough.
func (w *Waiter) spinRead(events []Event, begin time.Time, timeout time.Duration) (int, error) {
	limit := spinFor
	if timeout >= 0 {
		limit = min(limit, timeout)
	}
	for !w.nudge.Load() && !w.isClosed() {
		if n, err := w.read(events); n > 0 || err != nil {
			return n, err
		}
		if time.Since(begin) >= limit {
			break
		}
	}
	return 0, nil
}

func (w *Waiter) read(events []Event) (int, error) {
	n, err := w.f.read(events)
	w.more = n > 1
	return n, err
}

func (w *Waiter) isClosed() bool { return w.wake.isClosed() || w.f.h.isClosed() }

// poll sleeps until the userfaultfd, the eventfd or the peer has something.
func (w *Waiter) poll(left time.Duration) (gone bool, err error) {
	set := [3]unix.PollFd{
		{Fd: int32(w.f.h.fd), Events: unix.POLLIN},
		{Fd: int32(w.wake.fd), Events: unix.POLLIN},
		{Fd: int32(w.peer.Load()), Events: unix.POLLIN}, // negative: ignored
	}
	var ts *unix.Timespec
	if left >= 0 {
		t := unix.NsecToTimespec(int64(left))
		ts = &t
	}
	if _, err := unix.Ppoll(set[:], ts, nil); err != nil && !errors.Is(err, unix.EINTR) {
		return false, fmt.Errorf("poll: %w", err)
	}
	if set[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(w.wake.fd, count[:]) // EAGAIN: another reader was first
	}
	switch bad := int16(unix.POLLERR | unix.POLLNVAL | unix.POLLHUP); {
	case set[0].Revents&bad != 0:
		// Somebody took O_NONBLOCK off the description that we share.
		return false, fmt.Errorf("userfaultfd polls as broken (%#x): %w", set[0].Revents, unix.EIO)
	case set[2].Revents&unix.POLLNVAL != 0:
		return false, fmt.Errorf("the watched descriptor: %w", unix.EBADF)
	}
	return set[2].Revents != 0, nil
}

// Nudge has the Wait that is under way, or else the next one, return without an
// event.
func (w *Waiter) Nudge() {
	w.nudge.Store(true)
	if w.wake.acquire() {
		w.signal()
		w.wake.release()
	}
}

// signal makes the eventfd readable. Its callers know that it is open.
func (w *Waiter) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wake.fd, one[:]) // EAGAIN: it is readable as it is
}

// Close ends a Wait, which returns ErrClosed, and those after it. It may be
// called again.
func (w *Waiter) Close() error {
	// While the Waiter is in the map FD.Close may signal it: it leaves first.
	w.f.mu.Lock()
	delete(w.f.waiters, w)
	w.f.mu.Unlock()
	if !w.wake.acquire() {
		return nil
	}
	_, err := w.wake.close()
	w.signal() // we are counted in: the descriptor is open still
	w.wake.release()
	return opError("close waiter", err)
}
