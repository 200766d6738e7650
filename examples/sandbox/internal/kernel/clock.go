//go:build linux && amd64

package kernel

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// clampDuration is sec and nsec as a Duration, the longest there is if they are more.
func clampDuration(sec, nsec int64) time.Duration {
	if sec >= math.MaxInt64/int64(time.Second)-1 {
		return math.MaxInt64 / 2
	}
	return time.Duration(sec)*time.Second + time.Duration(nsec)
}

func validTimespec(ts unix.Timespec) bool { return ts.Sec >= 0 && ts.Nsec >= 0 && ts.Nsec < 1e9 }

// timeoutAt reads a relative timeout and returns its deadline; the zero time at 0.
func (t *Task) timeoutAt(at uint64) (time.Time, error) {
	if at == 0 {
		return time.Time{}, nil
	}
	ts, err := get[unix.Timespec](t, at)
	if err != nil {
		return time.Time{}, err
	}
	if !validTimespec(ts) {
		return time.Time{}, unix.EINVAL
	}
	return t.deadlineIn(clampDuration(ts.Sec, ts.Nsec)), nil
}

// clockNow reads a clock: as the vDSO does where it can, the host's otherwise,
// but for the time that the guest has spent.
func (t *Task) clockNow(id int32) (ts unix.Timespec, err error) {
	if id < 0 || id == unix.CLOCK_PROCESS_CPUTIME_ID || id == unix.CLOCK_THREAD_CPUTIME_ID {
		t.k.mu.Lock()
		c, err := t.cpuClockLocked(id)
		t.k.mu.Unlock()
		if err != nil {
			return ts, err
		}
		return unix.NsecToTimespec(int64(c.spent())), nil
	}
	if id > unix.CLOCK_TAI {
		return ts, unix.EINVAL
	}
	if t.k.clocks != nil {
		if ts, ok := t.k.clocks.read(id); ok {
			return ts, nil
		}
	}
	err = unix.ClockGettime(id, &ts)
	return ts, err
}

func sysClockGettime(t *Task, a args) (uint64, error) {
	ts, err := t.clockNow(int32(a[0]))
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[1], ts)
}

func sysClockGetres(t *Task, a args) (uint64, error) {
	if _, err := t.clockNow(int32(a[0])); err != nil || a[1] == 0 {
		return 0, err
	}
	return 0, put(t, a[1], unix.Timespec{Nsec: 1})
}

func sysGettimeofday(t *Task, a args) (uint64, error) {
	now, err := t.clockNow(unix.CLOCK_REALTIME)
	if err != nil {
		return 0, err
	}
	if a[0] != 0 {
		if err := put(t, a[0], unix.NsecToTimeval(now.Nano())); err != nil {
			return 0, err
		}
	}
	if a[1] != 0 {
		return 0, put(t, a[1], [2]int32{})
	}
	return 0, nil
}

func sysTime(t *Task, a args) (uint64, error) {
	now, err := t.clockNow(unix.CLOCK_REALTIME)
	if err != nil {
		return 0, err
	}
	if a[0] != 0 {
		return uint64(now.Sec), put(t, a[0], now.Sec)
	}
	return uint64(now.Sec), nil
}

func sysNanosleep(t *Task, a args) (uint64, error) {
	return t.nanosleep(unix.CLOCK_MONOTONIC, 0, a[0], a[1])
}

func sysClockNanosleep(t *Task, a args) (uint64, error) {
	return t.nanosleep(int32(a[0]), int(int32(a[1])), a[2], a[3])
}

// nanosleep sleeps relative or (TIMER_ABSTIME) until a reading of the clock.
// Interrupted, it is EINTR with the rest at remAt.
func (t *Task) nanosleep(clock int32, flags int, at, remAt uint64) (uint64, error) {
	ts, err := get[unix.Timespec](t, at)
	if err != nil {
		return 0, err
	}
	if !validTimespec(ts) || flags&^unix.TIMER_ABSTIME != 0 {
		return 0, unix.EINVAL
	}
	d := clampDuration(ts.Sec, ts.Nsec)
	if flags&unix.TIMER_ABSTIME != 0 {
		now, err := t.clockNow(clock)
		if err != nil {
			return 0, err
		}
		d -= clampDuration(now.Sec, now.Nsec)
	} else if clock == unix.CLOCK_THREAD_CPUTIME_ID {
		return 0, unix.EOPNOTSUPP
	} else if clock < 0 || clock > unix.CLOCK_TAI {
		return 0, unix.EINVAL
	}
	deadline := time.Now().Add(d)
	if flags&unix.TIMER_ABSTIME == 0 {
		deadline = t.deadlineIn(d)
	}
	timer, stop := timerChannel(deadline)
	defer stop()
	switch err := t.sleep(nil, timer); {
	case err == errTimeout:
		return 0, nil
	case flags&unix.TIMER_ABSTIME != 0:
		return 0, errInterruptedNoHandler
	}
	if remAt != 0 {
		rest := unix.NsecToTimespec(int64(max(0, time.Until(deadline))))
		if err := put(t, remAt, rest); err != nil {
			return 0, err
		}
	}
	return 0, errInterruptedNoHandler
}

func (t *Task) childrenTime() cpuTime {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return t.proc.childrenTime
}

func sysTimes(t *Task, a args) (uint64, error) {
	const tick = 10 * time.Millisecond
	if a[0] != 0 {
		own, children := t.proc.clock.now(), t.childrenTime()
		b := [4]int64{int64(own.user / tick), int64(own.system / tick), int64(children.user / tick), int64(children.system / tick)}
		if err := put(t, a[0], b); err != nil {
			return 0, err
		}
	}
	return uint64(time.Since(t.k.started) / tick), nil
}
