//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"
)

func sysGetpid(t *Task, _ args) (uint64, error) { return uint64(t.proc.pid), nil }
func sysGettid(t *Task, _ args) (uint64, error) { return uint64(t.tid), nil }

func sysGetppid(t *Task, _ args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if t.proc.parent == nil {
		return initPID, nil
	}
	return uint64(t.proc.parent.pid), nil
}

// processArgLocked finds a process by an argument that means oneself when 0.
func (t *Task) processArgLocked(pid uint64) (*Process, error) {
	if int32(pid) == 0 {
		return t.proc, nil
	}
	return t.k.processLocked(int(int32(pid)))
}

func sysGetpgrp(t *Task, _ args) (uint64, error) { return sysGetpgid(t, args{}) }

func sysGetpgid(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p, err := t.processArgLocked(a[0])
	if err != nil {
		return 0, err
	}
	return uint64(p.pgid), nil
}

func sysGetsid(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p, err := t.processArgLocked(a[0])
	if err != nil {
		return 0, err
	}
	return uint64(p.sid), nil
}

func sysSetpgid(t *Task, a args) (uint64, error) {
	pgid := int(int32(a[1]))
	if pgid < 0 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p, err := t.processArgLocked(a[0])
	switch {
	case err != nil:
		return 0, err
	case p != t.proc && p.parent != t.proc:
		return 0, unix.ESRCH
	case p.sid != t.proc.sid, p.sid == p.pid:
		return 0, unix.EPERM
	case p != t.proc && p.hasExeced:
		return 0, unix.EACCES
	}
	if pgid == 0 {
		pgid = p.pid
	}
	if pgid != p.pid && !t.groupInSessionLocked(pgid) {
		return 0, unix.EPERM
	}
	p.pgid = pgid
	return 0, nil
}

func (t *Task) groupInSessionLocked(pgid int) bool {
	for _, p := range t.k.processes {
		if p.pgid == pgid && p.sid == t.proc.sid {
			return true
		}
	}
	return false
}

func sysSetsid(t *Task, _ args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p := t.proc
	for _, other := range t.k.processes {
		if other.pgid == p.pid {
			return 0, unix.EPERM // it leads a group
		}
	}
	p.sid, p.pgid = p.pid, p.pid
	return uint64(p.pid), nil
}

// The guest has the user and group of whoever runs the sandbox, and keeps them.
func sysGetuid(*Task, args) (uint64, error)  { return uint64(unix.Getuid()), nil }
func sysGeteuid(*Task, args) (uint64, error) { return uint64(unix.Geteuid()), nil }
func sysGetgid(*Task, args) (uint64, error)  { return uint64(unix.Getgid()), nil }
func sysGetegid(*Task, args) (uint64, error) { return uint64(unix.Getegid()), nil }

// own allows ids that are all -1 or the one given.
func own(id int, ids ...uint64) (uint64, error) {
	for _, v := range ids {
		if uint32(v) != ^uint32(0) && uint32(v) != uint32(id) {
			return 0, unix.EPERM
		}
	}
	return 0, nil
}

func sysSetuid(_ *Task, a args) (uint64, error)    { return own(unix.Getuid(), a[0]) }
func sysSetgid(_ *Task, a args) (uint64, error)    { return own(unix.Getgid(), a[0]) }
func sysSetreuid(_ *Task, a args) (uint64, error)  { return own(unix.Getuid(), a[0], a[1]) }
func sysSetregid(_ *Task, a args) (uint64, error)  { return own(unix.Getgid(), a[0], a[1]) }
func sysSetresuid(_ *Task, a args) (uint64, error) { return own(unix.Getuid(), a[0], a[1], a[2]) }
func sysSetresgid(_ *Task, a args) (uint64, error) { return own(unix.Getgid(), a[0], a[1], a[2]) }

func sysSetfsuid(*Task, args) (uint64, error) { return uint64(unix.Getuid()), nil }
func sysSetfsgid(*Task, args) (uint64, error) { return uint64(unix.Getgid()), nil }

func sysGetresuid(t *Task, a args) (uint64, error) {
	return t.putThree(a, uint32(unix.Getuid()), uint32(unix.Geteuid()))
}

func sysGetresgid(t *Task, a args) (uint64, error) {
	return t.putThree(a, uint32(unix.Getgid()), uint32(unix.Getegid()))
}

func (t *Task) putThree(a args, real, effective uint32) (uint64, error) {
	for i, v := range []uint32{real, effective, effective} {
		if err := put(t, a[i], v); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

func sysGetgroups(*Task, args) (uint64, error) { return 0, nil }
func sysSetgroups(*Task, args) (uint64, error) { return 0, unix.EPERM }

func sysSetTidAddress(t *Task, a args) (uint64, error) {
	t.clearTID = gva(a[0])
	return uint64(t.tid), nil
}

func sysArchPrctl(t *Task, a args) (uint64, error) {
	const setGS, setFS, getFS, getGS = 0x1001, 0x1002, 0x1003, 0x1004
	regs := &t.cpu.Regs
	switch a[0] {
	case setFS, setGS:
		if a[1] >= stackTop+pageSize {
			return 0, unix.EPERM
		}
		if a[0] == setFS {
			regs.FSBase = a[1]
		} else {
			regs.GSBase = a[1]
		}
		return 0, nil
	case getFS:
		return 0, put(t, a[1], regs.FSBase)
	case getGS:
		return 0, put(t, a[1], regs.GSBase)
	}
	return 0, unix.EINVAL
}

func sysPrctl(t *Task, a args) (uint64, error) {
	switch a[0] {
	case unix.PR_SET_NAME:
		b := make([]byte, 16)
		if err := t.readGuest(b, a[1]); err != nil {
			return 0, err
		}
		t.k.mu.Lock()
		defer t.k.mu.Unlock()
		t.name = commName(unix.ByteSliceToString(b))
		return 0, nil
	case unix.PR_GET_NAME:
		b := make([]byte, 16)
		copy(b, t.comm())
		return 0, t.writeGuest(b, a[1])
	case prSetVMA:
		return 0, t.setAreaName(a)
	}
	return t.prctlTrait(a)
}
