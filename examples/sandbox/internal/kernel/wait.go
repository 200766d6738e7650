//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"
)

const (
	waitNoHang    = unix.WNOHANG
	waitUntraced  = unix.WUNTRACED // WSTOPPED
	waitExited    = unix.WEXITED
	waitContinued = unix.WCONTINUED
	waitNoWait    = unix.WNOWAIT
	waitClone     = unix.WALL | unix.WCLONE | unix.WNOTHREAD
)

// waitFor says which children a call waits for: pid > 0 one of them, 0 any of
// the group pgid, -1 any.
type waitFor struct {
	pid, pgid int
	options   int
}

func (w waitFor) matches(p *Process) bool {
	isClone := p.exitSignal != int(unix.SIGCHLD)
	switch {
	case w.options&unix.WALL == 0 && isClone != (w.options&unix.WCLONE != 0):
		return false
	case w.pid > 0:
		return p.pid == w.pid
	case w.pid == 0:
		return p.pgid == w.pgid
	}
	return true
}

// waited is what was found.
type waited struct {
	pid    int
	status waitStatus
	time   cpuTime
	usage  *usage
}

func (w *waited) rusage() rusage { return rusageOf(w.time, w.usage.most.Load(), w.usage.faults.Load()) }

func sysWait4(t *Task, a args) (uint64, error) {
	options := int(uint32(a[2])) // WCLONE is the highest bit
	if options&^(waitNoHang|waitUntraced|waitContinued|waitClone) != 0 {
		return 0, unix.EINVAL
	}
	w := waitFor{pid: int(int32(a[0])), options: options | waitExited}
	t.k.mu.Lock()
	if w.pid == 0 {
		w.pgid = t.proc.pgid
	}
	t.k.mu.Unlock()
	if w.pid < -1 {
		w.pgid, w.pid = -w.pid, 0
	}
	got, err := t.wait(w)
	if err != nil || got.pid == 0 {
		return 0, err
	}
	if a[1] != 0 {
		if err := put(t, a[1], uint32(got.status)); err != nil {
			return 0, err
		}
	}
	if a[3] != 0 {
		if err := put(t, a[3], got.rusage()); err != nil {
			return 0, err
		}
	}
	return uint64(got.pid), nil
}

func sysWaitid(t *Task, a args) (uint64, error) {
	const idAll, idPID, idGroup = 0, 1, 2
	options := int(uint32(a[3]))
	if options&^(waitNoHang|waitUntraced|waitExited|waitContinued|waitNoWait|waitClone) != 0 ||
		options&(waitUntraced|waitExited|waitContinued) == 0 {
		return 0, unix.EINVAL
	}
	w := waitFor{options: options, pid: int(int32(a[1]))}
	switch a[0] {
	case idAll:
		w.pid = -1
	case idPID:
		if w.pid <= 0 {
			return 0, unix.EINVAL
		}
	case idGroup:
		if w.pgid, w.pid = w.pid, 0; w.pgid == 0 {
			w.pgid = t.proc.pgid
		}
	default:
		return 0, unix.EINVAL
	}
	got, err := t.wait(w)
	if err != nil {
		return 0, err
	}
	if a[2] != 0 {
		info := sigInfo{}
		if got.pid != 0 {
			info = childInfo(got.pid, got.status)
		}
		if err := t.writeGuest(info.encode(), a[2]); err != nil {
			return 0, err
		}
	}
	if a[4] != 0 && got.pid != 0 {
		return 0, put(t, a[4], got.rusage())
	}
	return 0, nil
}

// wait waits for a child; a pid of 0 means that there is none yet and WNOHANG
// was asked for. ECHILD without any that could come.
func (t *Task) wait(w waitFor) (waited, error) {
	ready := make(chan struct{}, 1)
	stop := t.proc.childQueue.Watch(ready)
	defer stop()
	for {
		t.k.mu.Lock()
		got, any := t.findChildLocked(w)
		t.k.mu.Unlock()
		switch {
		case got.pid != 0:
			return got, nil
		case !any:
			return waited{}, unix.ECHILD
		case w.options&waitNoHang != 0:
			return waited{}, nil
		}
		if err := t.sleep(ready, nil); err != nil {
			return waited{}, err
		}
	}
}

func (t *Task) findChildLocked(w waitFor) (got waited, any bool) {
	for _, c := range t.proc.children {
		if !w.matches(c) {
			continue
		}
		any = true
		keep := w.options&waitNoWait != 0
		switch {
		case c.zombie && w.options&waitExited != 0:
			got = waited{c.pid, c.status, c.clock.now().plus(c.childrenTime), &c.usage}
			if !keep {
				t.k.reapLocked(c)
			}
			return got, true
		case c.stopUnreported && w.options&waitUntraced != 0:
			c.stopUnreported = keep
			return waited{c.pid, stopStatus(c.stopSignal), c.clock.now(), &c.usage}, true
		case c.contUnreported && w.options&waitContinued != 0:
			c.contUnreported = keep
			return waited{c.pid, continuedStatus, c.clock.now(), &c.usage}, true
		}
	}
	return waited{}, any
}
