//go:build linux && amd64

package kernel

import "time"

// alarm is a timer that does something when its clock has got somewhere: the
// three of setitimer, and those of timer_create. Guarded by k.mu, all of it.
type alarm struct {
	p     *Process
	clock alarmClock
	fire  func(missed int) // called with k.mu; missed: expirations besides this one

	host     *time.Timer // nil: disarmed
	serial   int         // of host: one that fires late finds another
	due      time.Duration
	interval time.Duration
	span     time.Duration // from when due was set until due
	polled   time.Duration // the clock when host was set
}

// alarmClock is a clock that alarms go by. It may stand still, but never goes
// faster than speed host's clocks.
type alarmClock interface {
	nowLocked() time.Duration
	speedLocked() int
	aliveLocked() bool // it may go on some day
}

const (
	// minInterval keeps a guest from arming an alarm that fires all the time.
	minInterval = 100 * time.Microsecond

	// idlePoll is how often a clock that stands still is looked at.
	idlePoll = 2 * time.Millisecond
)

// setLocked arms the alarm, or disarms it with 0, and returns what was left of
// the old setting.
func (a *alarm) setLocked(after, interval time.Duration) (left, oldInterval time.Duration) {
	left, oldInterval = a.leftLocked()
	a.stopLocked()
	if after > 0 && !a.p.exiting {
		a.due, a.interval, a.span = a.clock.nowLocked()+after, interval, after
		a.waitLocked(0)
	}
	return left, oldInterval
}

func (a *alarm) stopLocked() {
	if a.host != nil {
		a.host.Stop()
		a.host = nil
	}
	a.serial++
}

// leftLocked returns 0 for an alarm that is not armed.
func (a *alarm) leftLocked() (left, interval time.Duration) {
	if a.host == nil {
		return 0, 0
	}
	// A clock of time spent may have been ahead of itself when due was set.
	return min(max(a.due-a.clock.nowLocked(), time.Microsecond), a.span), a.interval
}

// waitLocked has the host wake the alarm when it may be due at the earliest.
func (a *alarm) waitLocked(least time.Duration) {
	now := a.clock.nowLocked()
	if now == a.polled {
		least = max(least, idlePoll)
	}
	a.polled = now
	a.serial++
	serial := a.serial
	a.host = time.AfterFunc(max((a.due-now)/time.Duration(a.clock.speedLocked()), least), func() { a.woken(serial) })
}

func (a *alarm) woken(serial int) {
	k := a.p.k
	k.mu.Lock()
	defer k.mu.Unlock()
	if a.host == nil || a.serial != serial {
		return
	}
	now := a.clock.nowLocked()
	switch {
	case !a.clock.aliveLocked():
		a.host = nil
	case now < a.due:
		a.waitLocked(minInterval)
	case a.interval <= 0:
		a.host = nil
		a.fire(0)
	default:
		missed := (now - a.due) / a.interval
		a.due += (missed + 1) * a.interval
		a.span = a.interval
		a.waitLocked(minInterval)
		a.fire(int(min(missed, maxOverrun)))
	}
}

// catchUpLocked moves an alarm with an interval past what has expired and was not told
// of yet, since the goroutine of the host's timer is late, and returns how often it has.
func (a *alarm) catchUpLocked() int {
	if a.host == nil || a.interval <= 0 {
		return 0
	}
	late := a.clock.nowLocked() - a.due
	if late < 0 {
		return 0
	}
	n := late/a.interval + 1
	a.due += n * a.interval
	a.span = a.interval
	a.host.Stop()
	a.waitLocked(minInterval)
	return int(min(n, maxOverrun))
}

// maxOverrun is DELAYTIMER_MAX.
const maxOverrun = 1<<31 - 1

// hostClock is the time since the sandbox began, for CLOCK_REALTIME too: when
// somebody sets the host's clock, absolute alarms are not moved.
type hostClock struct{ k *Kernel }

func (c hostClock) nowLocked() time.Duration { return time.Since(c.k.started) }
func (hostClock) speedLocked() int           { return 1 }
func (hostClock) aliveLocked() bool          { return true }

// cpuClock is what a process, or one thread, has spent.
type cpuClock struct {
	p        *Process
	t        *Task // nil: the whole process
	userOnly bool
}

// spent leaves out what the threads that are in ring 3 now have spent there, so
// that it never goes back.
func (c cpuClock) spent() time.Duration {
	clock := &c.p.clock
	if c.t != nil {
		clock = &c.t.clock
	}
	now := clock.now()
	if c.userOnly {
		return now.user
	}
	return now.user + now.system
}

// nowLocked is spent and about what is left out there. Threads that wait for a
// vCPU seem to be in ring 3 as well; together they get no more than there are.
func (c cpuClock) nowLocked() time.Duration {
	now := c.spent()
	if c.t != nil {
		return now + c.t.inRing3()
	}
	sum, running := time.Duration(0), 0
	for _, t := range c.p.tasks {
		if d := t.inRing3(); d > 0 {
			sum, running = sum+d, running+1
		}
	}
	if vcpus := max(1, c.p.k.VCPUs); running > vcpus {
		sum = sum * time.Duration(vcpus) / time.Duration(running)
	}
	return now + sum
}

func (c cpuClock) speedLocked() int {
	if c.t != nil {
		return 1
	}
	return max(1, min(len(c.p.tasks), c.p.k.VCPUs))
}

func (c cpuClock) aliveLocked() bool {
	if c.t != nil {
		return c.p.k.tasks[c.t.tid] == c.t
	}
	return !c.p.exiting
}

// inRing3 is for how long the task has been in ring 3 or waiting for a vCPU.
func (t *Task) inRing3() time.Duration {
	since := t.entered.Load()
	if since == 0 {
		return 0
	}
	return max(0, time.Since(t.k.started)-time.Duration(since))
}
