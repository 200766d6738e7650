//go:build linux && amd64

package kernel

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// futexKey names a futex word: by its address space, since threads, which are
// not here yet, share one, and processes that share a page are rare. A futex in
// memory that two processes share is therefore not found by the other.
type futexKey struct {
	mm *mm
	at uint64
}

// futexes are the waiters of all words.
type futexes struct {
	mu      sync.Mutex
	waiters map[futexKey][]*futexWaiter // in order of arrival; guarded by mu
}

type futexWaiter struct {
	bitset uint32
	woken  chan struct{} // has room for one
}

const (
	futexWait, futexWake             = 0, 1
	futexWaitBitset, futexWakeBitset = 9, 10
	futexPrivate, futexRealtime      = 128, 256
)

func sysFutex(t *Task, a args) (uint64, error) {
	at, value := a[0], uint32(a[2])
	bitset := uint32(a[5])
	op := a[1] &^ (futexPrivate | futexRealtime)
	if op == futexWait || op == futexWake {
		bitset = ^uint32(0)
	}
	switch {
	case at%4 != 0:
		return 0, unix.EINVAL
	case at >= stackTop:
		return 0, unix.EFAULT
	}
	switch op {
	case futexWait, futexWaitBitset:
		if bitset == 0 {
			return 0, unix.EINVAL
		}
		deadline, err := t.futexDeadline(op, a)
		if err != nil {
			return 0, err
		}
		return t.futexWait(futexKey{t.proc.mm, at}, value, bitset, deadline)
	case futexWake, futexWakeBitset:
		if bitset == 0 {
			return 0, unix.EINVAL
		}
		return uint64(t.k.futexes.wake(futexKey{t.proc.mm, at}, int(int32(value)), bitset)), nil
	}
	return 0, unix.ENOSYS
}

// futexDeadline: FUTEX_WAIT's timeout is relative, FUTEX_WAIT_BITSET's absolute.
func (t *Task) futexDeadline(op uint64, a args) (time.Time, error) {
	if op == futexWait || a[3] == 0 {
		return t.timeoutAt(a[3])
	}
	ts, err := get[unix.Timespec](t, a[3])
	if err != nil {
		return time.Time{}, err
	}
	if !validTimespec(ts) {
		return time.Time{}, unix.EINVAL
	}
	clock := int32(unix.CLOCK_MONOTONIC)
	if a[1]&futexRealtime != 0 {
		clock = unix.CLOCK_REALTIME
	}
	now, err := t.clockNow(clock)
	if err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(clampDuration(ts.Sec, ts.Nsec) - clampDuration(now.Sec, now.Nsec)), nil
}

// futexWait sleeps while the word holds value. The waiter is queued before the
// word is read, so that a wake between the two finds it.
func (t *Task) futexWait(key futexKey, value, bitset uint32, deadline time.Time) (uint64, error) {
	w := &futexWaiter{bitset: bitset, woken: make(chan struct{}, 1)}
	f := &t.k.futexes
	f.mu.Lock()
	if f.waiters == nil {
		f.waiters = make(map[futexKey][]*futexWaiter)
	}
	f.waiters[key] = append(f.waiters[key], w)
	f.mu.Unlock()
	defer f.remove(key, w)

	now, err := t.space().Load32(t.k.ctx, gva(key.at))
	if err != nil {
		return 0, copyError(err)
	}
	if now != value {
		return 0, unix.EAGAIN
	}
	timer, stop := timerChannel(deadline)
	defer stop()
	switch err := t.sleep(w.woken, timer); err {
	case errTimeout:
		return 0, unix.ETIMEDOUT
	default:
		return 0, err
	}
}

// wake wakes up to n waiters whose bits meet bitset.
func (f *futexes) wake(key futexKey, n int, bitset uint32) (woken int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.waiters[key][:0]
	for _, w := range f.waiters[key] {
		if woken < n && w.bitset&bitset != 0 {
			w.woken <- struct{}{} // it has room: a waiter is woken once
			woken++
			continue
		}
		kept = append(kept, w)
	}
	f.setLocked(key, kept)
	return woken
}

func (f *futexes) remove(key futexKey, w *futexWaiter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := f.waiters[key][:0]
	for _, other := range f.waiters[key] {
		if other != w {
			kept = append(kept, other)
		}
	}
	f.setLocked(key, kept)
}

func (f *futexes) setLocked(key futexKey, list []*futexWaiter) {
	if len(list) == 0 {
		delete(f.waiters, key)
		return
	}
	f.waiters[key] = list
}
