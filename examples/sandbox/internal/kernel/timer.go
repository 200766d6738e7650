//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// realTimer is ITIMER_REAL, which alarm(2) shares. Guarded by k.mu, but for stop.
type realTimer struct {
	timer    *time.Timer
	deadline time.Time
	interval time.Duration
	serial   int // of the setting: a timer that fires late finds another one
}

// minInterval keeps a guest from arming a timer that fires all the time.
const minInterval = 100 * time.Microsecond

// setTimerLocked arms the timer, or disarms it with 0, and returns what was
// left of the old setting.
func (p *Process) setTimerLocked(after, interval time.Duration) (left, oldInterval time.Duration) {
	r := &p.timer
	left, oldInterval = p.timerLeftLocked()
	if r.timer != nil {
		r.timer.Stop()
	}
	*r = realTimer{serial: r.serial + 1}
	if after > 0 && !p.exiting {
		r.deadline, r.interval = time.Now().Add(after), interval
		serial := r.serial
		r.timer = time.AfterFunc(after, func() { p.timerFired(serial) })
	}
	return left, oldInterval
}

func (p *Process) timerLeftLocked() (left, interval time.Duration) {
	if p.timer.timer == nil {
		return 0, 0
	}
	return max(time.Until(p.timer.deadline), time.Microsecond), p.timer.interval
}

func (p *Process) timerFired(serial int) {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	r := &p.timer
	if r.serial != serial || r.timer == nil {
		return
	}
	_ = p.k.sendLocked(p, nil, kernelSignal(int(unix.SIGALRM)))
	if r.interval == 0 {
		r.timer = nil
		return
	}
	next := max(r.interval, minInterval)
	r.deadline = time.Now().Add(next)
	r.timer.Reset(next)
}

// stopTimer disarms it for good.
func (p *Process) stopTimer() {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	p.setTimerLocked(0, 0)
}

func sysAlarm(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	left, _ := t.proc.setTimerLocked(clampDuration(int64(uint32(a[0])), 0), 0)
	return uint64((left + time.Second/2) / time.Second), nil
}

// itimerval is struct itimerval.
type itimerval struct{ Interval, Value unix.Timeval }

func durationOf(tv unix.Timeval) (time.Duration, bool) {
	return clampDuration(tv.Sec, tv.Usec*1000), tv.Sec >= 0 && tv.Usec >= 0 && tv.Usec < 1e6
}

func itimervalOf(left, interval time.Duration) itimerval {
	return itimerval{unix.NsecToTimeval(int64(interval)), unix.NsecToTimeval(int64(left))}
}

func sysSetitimer(t *Task, a args) (uint64, error) {
	if a[0] != uint64(unix.ITIMER_REAL) {
		return 0, unix.EINVAL
	}
	v, err := itimerval{}, error(nil)
	if a[1] != 0 {
		if v, err = get[itimerval](t, a[1]); err != nil {
			return 0, err
		}
	}
	after, ok := durationOf(v.Value)
	interval, ok2 := durationOf(v.Interval)
	if !ok || !ok2 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	left, old := t.proc.setTimerLocked(after, interval)
	t.k.mu.Unlock()
	if a[2] != 0 {
		return 0, put(t, a[2], itimervalOf(left, old))
	}
	return 0, nil
}

func sysGetitimer(t *Task, a args) (uint64, error) {
	if a[0] != uint64(unix.ITIMER_REAL) {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	left, interval := t.proc.timerLeftLocked()
	t.k.mu.Unlock()
	return 0, put(t, a[1], itimervalOf(left, interval))
}
