//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// itimers are ITIMER_REAL, which alarm(2) shares, ITIMER_VIRTUAL and ITIMER_PROF.
type itimers [3]alarm

func (p *Process) initTimers() {
	for which, sig := range []unix.Signal{unix.SIGALRM, unix.SIGVTALRM, unix.SIGPROF} {
		a := &p.itimers[which]
		a.p, a.clock = p, cpuClock{p: p, userOnly: sig == unix.SIGVTALRM}
		if sig == unix.SIGALRM {
			a.clock = hostClock{p.k}
		}
		a.fire = func(int) { _ = p.k.sendLocked(p, nil, kernelSignal(int(sig))) }
	}
}

// stopTimers disarms all of them for good.
func (p *Process) stopTimers() {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	for i := range p.itimers {
		p.itimers[i].stopLocked()
	}
	p.cpuLimit.stopLocked()
	p.dropTimersLocked()
}

func sysAlarm(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	left, _ := t.proc.itimers[unix.ITIMER_REAL].setLocked(clampDuration(int64(uint32(a[0])), 0), 0)
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
	if a[0] >= uint64(len(t.proc.itimers)) {
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
	left, old := t.proc.itimers[a[0]].setLocked(after, interval)
	t.k.mu.Unlock()
	if a[2] != 0 {
		return 0, put(t, a[2], itimervalOf(left, old))
	}
	return 0, nil
}

func sysGetitimer(t *Task, a args) (uint64, error) {
	if a[0] >= uint64(len(t.proc.itimers)) {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	left, interval := t.proc.itimers[a[0]].leftLocked()
	t.k.mu.Unlock()
	return 0, put(t, a[1], itimervalOf(left, interval))
}
