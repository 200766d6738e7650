//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

func sysEventfd(t *Task, a args) (uint64, error) { return sysEventfd2(t, args{a[0]}) }

func sysEventfd2(t *Task, a args) (uint64, error) {
	o, err := vfs.NewEventFD(uint32(a[0]), int(uint32(a[1])))
	if err != nil {
		return 0, err
	}
	return t.addFile(o, int(a[1]))
}

func sysTimerfdCreate(t *Task, a args) (uint64, error) {
	clock := int32(a[0])
	switch clock {
	case unix.CLOCK_REALTIME, unix.CLOCK_MONOTONIC, unix.CLOCK_BOOTTIME:
	case unix.CLOCK_REALTIME_ALARM, unix.CLOCK_BOOTTIME_ALARM:
		return 0, unix.EPERM
	default:
		return 0, unix.EINVAL
	}
	o, err := vfs.NewTimerFD(clock, int(uint32(a[1])))
	if err != nil {
		return 0, err
	}
	return t.addFile(o, int(a[1]))
}

// itimerspec is struct itimerspec.
type itimerspec struct{ Interval, Value unix.Timespec }

func itimerspecOf(left, interval time.Duration) itimerspec {
	return itimerspec{unix.NsecToTimespec(int64(interval)), unix.NsecToTimespec(int64(left))}
}

func (t *Task) timerFD(fd uint64) (*vfs.TimerFD, *vfs.Open, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return nil, nil, err
	}
	f, ok := o.File.(*vfs.TimerFD)
	if !ok {
		o.Unref()
		return nil, nil, unix.EINVAL
	}
	return f, o, nil
}

func sysTimerfdSettime(t *Task, a args) (uint64, error) {
	v, err := get[itimerspec](t, a[2])
	if err != nil {
		return 0, err
	}
	if a[1]&^(unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET) != 0 || !validTimespec(v.Value) || !validTimespec(v.Interval) {
		return 0, unix.EINVAL
	}
	f, o, err := t.timerFD(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	var next time.Time
	if after := clampDuration(v.Value.Sec, v.Value.Nsec); after != 0 {
		if a[1]&unix.TFD_TIMER_ABSTIME != 0 {
			now, err := t.clockNow(f.Clock)
			if err != nil {
				return 0, err
			}
			after -= clampDuration(now.Sec, now.Nsec)
		}
		next = time.Now().Add(after)
	}
	left, interval := f.Set(next, clampDuration(v.Interval.Sec, v.Interval.Nsec))
	if a[3] != 0 {
		return 0, put(t, a[3], itimerspecOf(left, interval))
	}
	return 0, nil
}

func sysTimerfdGettime(t *Task, a args) (uint64, error) {
	f, o, err := t.timerFD(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, put(t, a[1], itimerspecOf(f.Left()))
}
