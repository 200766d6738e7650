//go:build linux && amd64

package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func sysKill(t *Task, a args) (uint64, error) {
	pid, sig := int(int32(a[0])), int(int32(a[1]))
	if sig < 0 || sig > maxSignal {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if target := t.k.tasks[pid]; target != nil {
		pid = target.proc.pid // any thread's id stands for its process
	}
	info := userSignal(sig, siUser, t.proc.pid)
	sent := 0
	var failure error
	for _, p := range t.k.processes {
		switch {
		case pid > 0 && p.pid != pid,
			pid == 0 && p.pgid != t.proc.pgid,
			pid == -1 && p == t.proc, // the caller is spared, as under Linux
			pid < -1 && p.pgid != -pid:
			continue
		}
		sent++
		if err := t.k.sendLocked(p, nil, info); err != nil {
			failure = err
		}
	}
	if sent == 0 {
		return 0, unix.ESRCH
	}
	return 0, failure
}

func sysTkill(t *Task, a args) (uint64, error) {
	return t.tgkill(0, int(int32(a[0])), userSignal(int(int32(a[1])), siTkill, t.proc.pid))
}

func sysTgkill(t *Task, a args) (uint64, error) {
	if int32(a[0]) <= 0 {
		return 0, unix.EINVAL
	}
	return t.tgkill(int(int32(a[0])), int(int32(a[1])), userSignal(int(int32(a[2])), siTkill, t.proc.pid))
}

// tgkill sends to one task; tgid 0 is any process.
func (t *Task) tgkill(tgid, tid int, info sigInfo) (uint64, error) {
	if info.sig < 0 || info.sig > maxSignal || tid <= 0 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if target := t.k.tasks[tid]; target != nil && (tgid == 0 || tgid == target.proc.pid) {
		return 0, t.k.sendLocked(target.proc, target, info)
	}
	if t.k.processes[tid] != nil && (tgid == 0 || tgid == tid) {
		return 0, nil // a first thread that has ended before the others, or a zombie
	}
	return 0, unix.ESRCH
}

func sysRtSigqueueinfo(t *Task, a args) (uint64, error) {
	raw := make([]byte, sigInfoSize)
	if err := t.readGuest(raw, a[2]); err != nil {
		return 0, err
	}
	pid, sig := int(int32(a[0])), int(int32(a[1]))
	code := int(int32(binary.LittleEndian.Uint32(raw[8:])))
	if sig < 0 || sig > maxSignal {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if (code >= 0 || code == siTkill) && pid != t.proc.pid {
		return 0, unix.EPERM // only the kernel says so of itself
	}
	binary.LittleEndian.PutUint32(raw, uint32(sig))
	p, err := t.k.processLocked(pid)
	if err != nil {
		return 0, err
	}
	return 0, t.k.sendLocked(p, nil, sigInfo{sig: sig, code: code, pid: t.proc.pid, raw: raw})
}
