//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"
)

// maxTimers bounds those of one process.
const maxTimers = 1024

// sigevent's sigev_notify.
const (
	sigevSignal, sigevNone, sigevThread, sigevThreadID = 0, 1, 2, 4

	sigeventSize = 64
)

// posixTimer is one of timer_create. Guarded by k.mu.
type posixTimer struct {
	alarm
	id     int
	wall   int32 // CLOCK_REALTIME and the like, for absolute times; -1: alarm.clock; immutable
	notify int32
	sig    int
	value  uint64
	target *Task // SIGEV_THREAD_ID, else nil
	missed int   // expirations besides the one that was delivered last
}

// expired sends the signal, or counts where the last one is still pending.
func (x *posixTimer) expired(missed int) {
	if x.notify == sigevNone {
		return
	}
	queue := &x.p.pending
	if x.target != nil {
		if x.p.tasks[x.target.tid] != x.target {
			return // nobody is left to be told
		}
		queue = &x.target.pending
	}
	for i := range queue.queue {
		if info := &queue.queue[i]; info.timer == x {
			info.missed = min(info.missed+missed+1, maxOverrun)
			return
		}
	}
	_ = x.p.k.sendLocked(x.p, x.target, sigInfo{sig: x.sig, code: siTimer, value: x.value, timer: x, missed: missed})
}

func (p *Process) dropTimersLocked() {
	for _, x := range p.timers {
		x.stopLocked()
	}
	p.timers = nil
}

func (p *Process) timerLocked(id uint64) (*posixTimer, error) {
	if x := p.timers[int(int32(id))]; x != nil {
		return x, nil
	}
	return nil, unix.EINVAL
}

func sysTimerCreate(t *Task, a args) (uint64, error) {
	x := &posixTimer{wall: int32(a[0]), sig: int(unix.SIGALRM)}
	x.p, x.fire = t.proc, x.expired
	ev := make([]byte, sigeventSize)
	if a[1] != 0 {
		if err := t.readGuest(ev, a[1]); err != nil {
			return 0, err
		}
		le := binary.LittleEndian
		x.value, x.sig, x.notify = le.Uint64(ev), int(int32(le.Uint32(ev[8:]))), int32(le.Uint32(ev[12:]))
	}
	t.k.mu.Lock()
	err := t.addTimerLocked(x, int(int32(binary.LittleEndian.Uint32(ev[16:]))))
	if err == nil && a[1] == 0 {
		x.value = uint64(x.id)
	}
	t.k.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if err := put(t, a[2], uint32(x.id)); err != nil {
		t.k.mu.Lock()
		delete(t.proc.timers, x.id)
		t.k.mu.Unlock()
		return 0, err
	}
	return 0, nil
}

func (t *Task) addTimerLocked(x *posixTimer, tid int) error {
	switch x.wall {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME, unix.CLOCK_TAI:
		x.clock = hostClock{t.k}
	case unix.CLOCK_MONOTONIC_RAW, unix.CLOCK_REALTIME_COARSE, unix.CLOCK_MONOTONIC_COARSE,
		unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
		return unix.EOPNOTSUPP
	default:
		c, err := t.cpuClockLocked(x.wall)
		if err != nil {
			return err
		}
		x.clock, x.wall = c, -1
	}
	switch x.notify {
	case sigevNone:
	case sigevThreadID:
		if x.target = t.proc.tasks[tid]; x.target == nil {
			return unix.EINVAL
		}
		fallthrough
	case sigevSignal, sigevThread:
		if x.sig < 1 || x.sig > maxSignal {
			return unix.EINVAL
		}
	default:
		return unix.EINVAL
	}
	p := t.proc
	if len(p.timers) >= maxTimers {
		return unix.EAGAIN
	}
	for p.timers[p.nextTimer] != nil {
		p.nextTimer = (p.nextTimer + 1) & maxOverrun
	}
	x.id = p.nextTimer
	p.nextTimer = (p.nextTimer + 1) & maxOverrun
	if p.timers == nil {
		p.timers = make(map[int]*posixTimer)
	}
	p.timers[x.id] = x
	return nil
}

// cpuClockLocked finds a clock of time spent by its id: the two that have names,
// or ~pid << 3 | (4 for a thread) | kind, as clock_getcpuclockid makes them.
func (t *Task) cpuClockLocked(id int32) (cpuClock, error) {
	const profile, virtual, scheduled, thread = 0, 1, 2, 4
	switch id {
	case unix.CLOCK_PROCESS_CPUTIME_ID:
		return cpuClock{p: t.proc}, nil
	case unix.CLOCK_THREAD_CPUTIME_ID:
		return cpuClock{p: t.proc, t: t}, nil
	}
	kind, pid := id&3, int(^(id >> 3))
	if id >= 0 || kind > scheduled {
		return cpuClock{}, unix.EINVAL
	}
	c := cpuClock{p: t.proc, userOnly: kind == virtual}
	if id&thread != 0 {
		if c.t = t; pid != 0 {
			c.t = t.proc.tasks[pid]
		}
		if c.t == nil {
			return c, unix.EINVAL
		}
	} else if pid != 0 {
		if c.p = t.k.processes[pid]; c.p == nil {
			return c, unix.EINVAL
		}
	}
	return c, nil
}

func sysTimerSettime(t *Task, a args) (uint64, error) {
	if a[2] == 0 {
		return 0, unix.EINVAL
	}
	v, err := get[itimerspec](t, a[2])
	if err != nil {
		return 0, err
	}
	if !validTimespec(v.Value) || !validTimespec(v.Interval) {
		return 0, unix.EINVAL
	}
	left, old, err := t.setTimer(a[0], v, a[1]&unix.TIMER_ABSTIME != 0)
	if err == nil && a[3] != 0 {
		err = put(t, a[3], itimerspecOf(left, old))
	}
	return 0, err
}

func (t *Task) setTimer(id uint64, v itimerspec, absolute bool) (left, interval time.Duration, err error) {
	t.k.mu.Lock()
	x, err := t.proc.timerLocked(id)
	t.k.mu.Unlock()
	if err != nil {
		return 0, 0, err
	}
	var wall time.Duration
	if x.wall >= 0 {
		ts, err := t.clockNow(x.wall)
		if err != nil {
			return 0, 0, err
		}
		wall = clampDuration(ts.Sec, ts.Nsec)
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if t.proc.timers[x.id] != x {
		return 0, 0, unix.EINVAL
	}
	after := clampDuration(v.Value.Sec, v.Value.Nsec)
	if absolute && after > 0 {
		if x.wall < 0 {
			wall = x.clock.nowLocked()
		}
		after = max(after-wall, 1) // in the past: at once
	}
	// A signal of the old setting that is still pending is not of the new one.
	for _, queue := range []*pending{&t.proc.pending, x.pendingOfTarget()} {
		queue.dropTimer(x)
	}
	x.missed = 0
	left, interval = x.setLocked(after, clampDuration(v.Interval.Sec, v.Interval.Nsec))
	return left, interval, nil
}

func (x *posixTimer) pendingOfTarget() *pending {
	if x.target != nil {
		return &x.target.pending
	}
	return &x.p.pending
}

func sysTimerGettime(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	x, err := t.proc.timerLocked(a[0])
	var v itimerspec
	if err == nil {
		v = itimerspecOf(x.leftLocked())
	}
	t.k.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[1], v)
}

func sysTimerGetoverrun(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	x, err := t.proc.timerLocked(a[0])
	if err != nil {
		return 0, err
	}
	return uint64(x.missed), nil
}

func sysTimerDelete(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	x, err := t.proc.timerLocked(a[0])
	if err != nil {
		return 0, err
	}
	x.stopLocked()
	x.pendingOfTarget().dropTimer(x)
	delete(t.proc.timers, x.id)
	return 0, nil
}
