//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"
)

// Nice values are kept and shown: which thread gets a vCPU is not by them.
const (
	niceMin, niceMax = -20, 19
	priorityZero     = 20 // getpriority answers this less the nice value
)

// hostNice is the sandbox's own, which its first program starts with.
func hostNice() int {
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
	if err != nil {
		return 0
	}
	return priorityZero - raw
}

// byPriority calls f with the threads that a call is about: a thread's own by its id,
// those of a group of processes, or all, who are one user's. EINVAL, ESRCH.
func (t *Task) byPriority(which, who uint64, f func(*Task)) error {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	id := int(int32(who))
	var chosen func(*Task) bool
	switch int32(which) {
	case unix.PRIO_PROCESS:
		one, err := t.taskArgLocked(who)
		if err != nil {
			return err
		}
		f(one)
		return nil
	case unix.PRIO_PGRP:
		if id == 0 {
			id = t.proc.pgid
		}
		chosen = func(other *Task) bool { return other.proc.pgid == id }
	case unix.PRIO_USER:
		chosen = func(*Task) bool { return id == 0 || id == unix.Getuid() }
	default:
		return unix.EINVAL
	}
	found := false
	for _, other := range t.k.tasks {
		if chosen(other) {
			found = true
			f(other)
		}
	}
	if !found {
		return unix.ESRCH
	}
	return nil
}

func sysGetpriority(t *Task, a args) (uint64, error) {
	least := niceMax
	err := t.byPriority(a[0], a[1], func(t *Task) { least = min(least, t.nice) })
	return uint64(priorityZero - least), err
}

// sysSetpriority: only root may have more than it had. EACCES.
func sysSetpriority(t *Task, a args) (uint64, error) {
	nice := min(max(int(int32(a[2])), niceMin), niceMax)
	refused := false
	err := t.byPriority(a[0], a[1], func(t *Task) {
		if nice < t.nice && unix.Geteuid() != 0 {
			refused = true
			return
		}
		t.nice = nice
	})
	if err == nil && refused {
		err = unix.EACCES
	}
	return 0, err
}
