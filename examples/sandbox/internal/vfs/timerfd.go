//go:build linux && amd64

package vfs

import (
	"encoding/binary"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// TimerFD counts how often a timer has run out since the last read.
type TimerFD struct {
	Clock int32 // immutable

	mu       sync.Mutex
	timer    *time.Timer   // guarded by mu; nil: not set; next says whether it is armed
	next     time.Time     // when it runs out, zero if it does not any more; guarded by mu
	interval time.Duration // 0: once; guarded by mu
	count    uint64        // guarded by mu
	fired    uint64        // guarded by mu
	serial   uint64        // of the setting: one that fires late finds another; guarded by mu

	queue Queue
}

// NewTimerFD is timerfd_create(2) for a clock that the caller has checked.
func NewTimerFD(clock int32, flags int) (*Open, error) {
	if flags&^(unix.TFD_CLOEXEC|unix.TFD_NONBLOCK) != 0 {
		return nil, unix.EINVAL
	}
	return NewOpen(&TimerFD{Clock: clock}, "anon_inode:[timerfd]", unix.O_RDWR|flags&unix.TFD_NONBLOCK), nil
}

// Set arms the timer, or disarms it with the zero time, and returns the old setting.
func (t *TimerFD) Set(next time.Time, interval time.Duration) (left, old time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	left, old = t.leftLocked()
	t.stopLocked()
	if !next.IsZero() {
		t.next, t.interval = next, interval
		serial := t.serial
		t.timer = time.AfterFunc(time.Until(next), func() { t.fire(serial) })
	}
	return left, old
}

// Left returns the time until it runs out, 0 if it is disarmed, and the interval.
func (t *TimerFD) Left() (left, interval time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.leftLocked()
}

func (t *TimerFD) leftLocked() (left, interval time.Duration) {
	t.settleLocked()
	if t.next.IsZero() {
		return 0, 0
	}
	return max(time.Until(t.next), 1), t.interval
}

func (t *TimerFD) stopLocked() {
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	t.serial, t.count, t.interval, t.next = t.serial+1, 0, 0, time.Time{}
}

// settleLocked counts what has run out by now. Whoever looks does it: on a busy host
// the goroutine of the host's timer may be late. That one wakes who waits, and so is
// left to come, whatever is counted before it does.
func (t *TimerFD) settleLocked() {
	if t.next.IsZero() {
		return
	}
	late := time.Since(t.next)
	if late < 0 {
		return
	}
	n := uint64(1)
	if t.interval == 0 {
		t.next = time.Time{}
	} else {
		n += uint64(late / t.interval)
		t.next = t.next.Add(time.Duration(n) * t.interval)
	}
	t.count += n
	t.fired++
}

// minTimer keeps a guest from having the host's timers fire all the time; what
// has run out meanwhile is counted when it does.
const minTimer = 100 * time.Microsecond

func (t *TimerFD) fire(serial uint64) {
	t.mu.Lock()
	if serial != t.serial || t.timer == nil {
		t.mu.Unlock()
		return
	}
	t.settleLocked()
	if !t.next.IsZero() {
		t.timer.Reset(max(time.Until(t.next), minTimer))
	}
	t.mu.Unlock()
	t.queue.Wake()
}

func (t *TimerFD) ReadAt(p []byte, _ int64) (int, error) {
	if len(p) < 8 {
		return 0, unix.EINVAL
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settleLocked()
	if t.count == 0 {
		return 0, unix.EAGAIN
	}
	binary.LittleEndian.PutUint64(p, t.count)
	t.count = 0
	return 8, nil
}

func (t *TimerFD) WriteAt([]byte, int64) (int, error) { return 0, unix.EINVAL }

func (t *TimerFD) Ready() Events {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.settleLocked()
	if t.count > 0 {
		return unix.POLLIN
	}
	return 0
}

func (t *TimerFD) Watch(ready chan<- struct{}) (stop func()) { return t.queue.Watch(ready) }

func (t *TimerFD) EdgeSource() (EdgeSource, error) {
	return edges{&t.queue, func() uint64 {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.settleLocked()
		return t.fired
	}, never}, nil
}

func never() uint64 { return 0 }

func (t *TimerFD) Stat() (unix.Stat_t, error) { return anonymousStat, nil }

// Close disarms it.
func (t *TimerFD) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopLocked()
	return nil
}
