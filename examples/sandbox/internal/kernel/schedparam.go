//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"
)

// Scheduling policies. All threads are SCHED_OTHER: which of them gets a vCPU is not
// by priority.
const (
	schedOther, schedFIFO, schedRR, schedBatch, schedIdle = 0, 1, 2, 3, 5
	schedResetOnFork                                      = 0x40000000
)

// schedTarget finds the thread that a call on scheduling is about.
func (t *Task) schedTarget(tid uint64) error {
	if int32(tid) < 0 {
		return unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	_, err := t.taskArgLocked(tid)
	return err
}

func sysSchedGetscheduler(t *Task, a args) (uint64, error) { return schedOther, t.schedTarget(a[0]) }

func sysSchedGetparam(t *Task, a args) (uint64, error) {
	if err := t.schedTarget(a[0]); err != nil {
		return 0, err
	}
	return 0, put(t, a[1], int32(0))
}

func sysSchedSetparam(t *Task, a args) (uint64, error) {
	return sysSchedSetscheduler(t, args{a[0], schedOther, a[1]})
}

// sysSchedSetscheduler lets a thread have the policy that it has. EPERM for others.
func sysSchedSetscheduler(t *Task, a args) (uint64, error) {
	priority, err := get[int32](t, a[2])
	if err != nil {
		return 0, err
	}
	if err := t.schedTarget(a[0]); err != nil {
		return 0, err
	}
	switch int32(a[1]) &^ schedResetOnFork {
	case schedOther:
		if priority != 0 {
			return 0, unix.EINVAL
		}
		return 0, nil
	case schedFIFO, schedRR, schedBatch, schedIdle:
		return 0, unix.EPERM
	}
	return 0, unix.EINVAL
}

func sysSchedGetPriorityMax(_ *Task, a args) (uint64, error) { return priorityBound(a[0], 99) }
func sysSchedGetPriorityMin(_ *Task, a args) (uint64, error) { return priorityBound(a[0], 1) }

func priorityBound(policy, ofRealtime uint64) (uint64, error) {
	switch int32(policy) {
	case schedFIFO, schedRR:
		return ofRealtime, nil
	case schedOther, schedBatch, schedIdle:
		return 0, nil
	}
	return 0, unix.EINVAL
}

func sysSchedRRGetInterval(t *Task, a args) (uint64, error) {
	if err := t.schedTarget(a[0]); err != nil {
		return 0, err
	}
	return 0, put(t, a[1], unix.NsecToTimespec(int64(4*time.Millisecond)))
}
