//go:build linux && amd64

package kernel

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// Results of a call that are no errno.
var (
	// errNoReturn: the call has set the registers itself.
	errNoReturn = errors.New("no return value")

	// errInterrupted: a signal ended the wait. The call starts over if the
	// handler says SA_RESTART or none runs, else it is EINTR.
	errInterrupted = errors.New("interrupted")

	// errInterruptedNoHandler: as above, but EINTR if any handler runs.
	errInterruptedNoHandler = errors.New("interrupted, restarts without a handler")

	// errInterruptedAlways: as above, but the call starts over whatever runs.
	errInterruptedAlways = errors.New("interrupted, restarts")

	errTimeout = errors.New("time is up")
)

// sleep waits for ready, the timer (errTimeout) or a signal (errInterrupted).
// Either channel may be nil.
func (t *Task) sleep(ready <-chan struct{}, timer <-chan time.Time) error {
	defer t.asleep(time.Now())
	for {
		t.k.mu.Lock()
		interrupted := t.interruptedLocked()
		t.k.mu.Unlock()
		if interrupted {
			return errInterrupted
		}
		select {
		case <-ready:
			return nil
		case <-timer:
			return errTimeout
		case <-t.wake:
		}
	}
}

// asleep says that the task has done nothing since: no time of a processor's.
func (t *Task) asleep(since time.Time) { t.slept += time.Since(since) }

// deadlineIn turns a duration into a deadline; a call that starts over keeps
// the one that it had.
func (t *Task) deadlineIn(d time.Duration) time.Time {
	if !t.restart.over {
		t.restart.deadline = time.Now().Add(d)
	}
	return t.restart.deadline
}

// timerChannel returns a channel that receives at the deadline, nil for the
// zero time. Stop must be called.
func timerChannel(deadline time.Time) (<-chan time.Time, func()) {
	if deadline.IsZero() {
		return nil, func() {}
	}
	timer := time.NewTimer(time.Until(deadline))
	return timer.C, func() { timer.Stop() }
}

// untilReady tries until the file does not answer EAGAIN, or limit, if it is not 0, is
// over; only once if the description is nonblocking.
func (t *Task) untilReady(o *vfs.Open, limit time.Duration, try func() (int, error)) (int, error) {
	n, err := try()
	if err != unix.EAGAIN || o.Flags()&unix.O_NONBLOCK != 0 {
		return n, err
	}
	ready := make(chan struct{}, 1)
	var over <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		over = timer.C
	}
	for {
		stop := o.Watch(ready)
		n, err = try() // it may have become ready just before
		if err == unix.EAGAIN {
			switch err := t.sleep(ready, over); {
			case err == errTimeout:
				stop()
				return 0, unix.EAGAIN
			case err == errInterrupted && limit > 0:
				stop()
				return 0, unix.EINTR // whatever the handler says: signal(7)
			case err != nil:
				stop()
				return 0, err
			}
		}
		stop()
		if err != unix.EAGAIN {
			return n, err
		}
	}
}
