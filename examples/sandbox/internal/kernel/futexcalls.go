//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	futexWait, futexWake             = 0, 1
	futexRequeue, futexCmpRequeue    = 3, 4
	futexWakeOp                      = 5
	futexWaitBitset, futexWakeBitset = 9, 10
	futexPrivate, futexRealtime      = 128, 256

	anyBit = ^uint32(0)
)

// sysFutex is futex(2) but for requeueing to mutexes with priority inheritance
// (ENOSYS), which C libraries have stopped to use.
func sysFutex(t *Task, a args) (uint64, error) {
	op, private := uint32(a[1])&^(futexPrivate|futexRealtime), a[1]&futexPrivate != 0
	if a[1]&futexRealtime != 0 && op != futexWaitBitset && op != futexLockPI2 {
		return 0, unix.ENOSYS
	}
	if err := checkFutex(a[0]); err != nil {
		return 0, err
	}
	bitset := anyBit
	if op == futexWaitBitset || op == futexWakeBitset {
		if bitset = uint32(a[5]); bitset == 0 {
			return 0, unix.EINVAL
		}
	}
	switch op {
	case futexWait, futexWaitBitset:
		deadline, err := t.futexDeadline(op, a)
		if err != nil {
			return 0, err
		}
		return t.futexWait(a[0], private, uint32(a[2]), bitset, deadline)
	case futexWake, futexWakeBitset:
		key, release, err := t.futexKey(a[0], private)
		if err != nil {
			return 0, err
		}
		defer release()
		return uint64(t.k.futexes.wake(key, atLeastOne(a[2]), bitset)), nil
	case futexLockPI, futexLockPI2, futexUnlockPI, futexTrylockPI:
		return t.futexPI(op, a, private)
	case futexRequeue, futexCmpRequeue, futexWakeOp:
		return t.futexTwo(op, a, private)
	}
	return 0, unix.ENOSYS
}

func checkFutex(at uint64) error {
	switch {
	case at%4 != 0:
		return unix.EINVAL
	case at >= stackTop:
		return unix.EFAULT
	}
	return nil
}

// atLeastOne: Linux wakes one waiter however few it was asked to wake.
func atLeastOne(n uint64) int { return max(1, int(int32(n))) }

// futexDeadline: FUTEX_WAIT's timeout is relative, FUTEX_WAIT_BITSET's absolute.
func (t *Task) futexDeadline(op uint32, a args) (time.Time, error) {
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

// futexWait sleeps while the word holds value.
func (t *Task) futexWait(at uint64, private bool, value, bitset uint32, deadline time.Time) (uint64, error) {
	key, release, err := t.futexKey(at, private)
	if err != nil {
		return 0, err
	}
	defer release()
	if err := t.wantWord(at, value); err != nil { // brings the page in, too
		return 0, err
	}
	w, err := t.k.futexes.wait(key, bitset, func() error { return t.wantWord(at, value) })
	if err != nil {
		return 0, err
	}
	timer, stop := timerChannel(deadline)
	defer stop()
	err = t.sleep(w.woken, timer)
	switch {
	case err == nil || !t.k.futexes.leave(w):
		return 0, nil
	case err == errTimeout:
		return 0, unix.ETIMEDOUT
	case err == errInterrupted && !deadline.IsZero():
		return 0, errInterruptedNoHandler
	}
	return 0, err
}

// wantWord is EAGAIN if the word does not hold value.
func (t *Task) wantWord(at uint64, value uint32) error {
	now, err := t.space().Load32(t.call, gva(at))
	if err != nil {
		return copyError(err)
	}
	if now != value {
		return unix.EAGAIN
	}
	return nil
}

// futexTwo is the calls about two words: a[0] and a[4].
func (t *Task) futexTwo(op uint32, a args, private bool) (uint64, error) {
	if err := checkFutex(a[4]); err != nil {
		return 0, err
	}
	from, release, err := t.futexKey(a[0], private)
	if err != nil {
		return 0, err
	}
	defer release()
	to, release2, err := t.futexKey(a[4], private)
	if err != nil {
		return 0, err
	}
	defer release2()
	if op == futexWakeOp {
		return t.futexWakeOp(from, to, a)
	}
	wake, move := int32(a[2]), int32(a[3])
	if wake < 0 || move < 0 {
		return 0, unix.EINVAL
	}
	f := &t.k.futexes
	if op == futexCmpRequeue {
		if err := t.wantWord(a[0], uint32(a[5])); err != nil {
			return 0, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if op == futexCmpRequeue {
		if err := t.wantWord(a[0], uint32(a[5])); err != nil {
			return 0, err
		}
	}
	return uint64(f.requeueLocked(from, to, int(wake), int(move))), nil
}

// futexWakeOp changes the second word, wakes waiters of the first, and waiters
// of the second if its old value compares as asked.
func (t *Task) futexWakeOp(first, second futexKey, a args) (uint64, error) {
	change, compare, err := decodeWakeOp(uint32(a[5]))
	if err != nil {
		return 0, err
	}
	if _, err := t.space().Load32(t.call, gva(a[4])); err != nil {
		return 0, copyError(err)
	}
	f := &t.k.futexes
	f.mu.Lock()
	defer f.mu.Unlock()
	var old uint32
	for swapped := false; !swapped; {
		if old, err = t.space().Load32(t.call, gva(a[4])); err == nil {
			swapped, err = t.space().CompareAndSwap32(t.call, gva(a[4]), old, change(old))
		}
		if err != nil {
			return 0, copyError(err)
		}
	}
	woken := f.wakeLocked(first, atLeastOne(a[2]), anyBit)
	if compare(old) {
		woken += f.wakeLocked(second, atLeastOne(a[3]), anyBit)
	}
	return uint64(woken), nil
}

// decodeWakeOp reads FUTEX_WAKE_OP's description of what to do:
// op (4 bits), comparison (4), both arguments (12 each, signed).
func decodeWakeOp(v uint32) (change func(uint32) uint32, compare func(uint32) bool, err error) {
	const shift = 8
	op, cmp := v>>28, v>>24&0xf
	arg := uint32(int32(v<<8) >> 20)
	cmpArg := int32(v<<20) >> 20
	if op&shift != 0 {
		if op &^= shift; arg > 31 {
			arg &= 31 // as Linux does, with a complaint in its log
		}
		arg = 1 << arg
	}
	changes := []func(uint32) uint32{
		func(uint32) uint32 { return arg },
		func(old uint32) uint32 { return old + arg },
		func(old uint32) uint32 { return old | arg },
		func(old uint32) uint32 { return old &^ arg },
		func(old uint32) uint32 { return old ^ arg },
	}
	compares := []func(int32) bool{
		func(old int32) bool { return old == cmpArg },
		func(old int32) bool { return old != cmpArg },
		func(old int32) bool { return old < cmpArg },
		func(old int32) bool { return old <= cmpArg },
		func(old int32) bool { return old > cmpArg },
		func(old int32) bool { return old >= cmpArg },
	}
	if op >= uint32(len(changes)) || cmp >= uint32(len(compares)) {
		return nil, nil, unix.ENOSYS
	}
	return changes[op], func(old uint32) bool { return compares[cmp](int32(old)) }, nil
}
