//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func sysRtSigaction(t *Task, a args) (uint64, error) {
	sig, newAt, oldAt := int(int32(a[0])), a[1], a[2]
	if a[3] != 8 || sig < 1 || sig > maxSignal || (newAt != 0 && bit(sig)&unblockable != 0) {
		return 0, unix.EINVAL
	}
	var act action
	if newAt != 0 {
		var err error
		if act, err = get[action](t, newAt); err != nil {
			return 0, err
		}
	}
	t.k.mu.Lock()
	old := t.proc.actions[sig]
	if newAt != 0 {
		act.Mask &^= unblockable
		t.proc.actions[sig] = act
		if t.proc.actions.ignores(sig) {
			t.proc.dropLocked(bit(sig))
		}
	}
	t.k.mu.Unlock()
	if newAt != 0 {
		t.publishAction(sig)
	}
	if oldAt != 0 {
		return 0, put(t, oldAt, old)
	}
	return 0, nil
}

func sysRtSigprocmask(t *Task, a args) (uint64, error) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	old := t.mask
	t.k.mu.Unlock()
	if a[1] != 0 {
		s, err := get[uint64](t, a[1])
		if err != nil {
			return 0, err
		}
		switch a[0] {
		case unix.SIG_BLOCK:
			t.setMask(old | s)
		case unix.SIG_UNBLOCK:
			t.setMask(old &^ s)
		case unix.SIG_SETMASK:
			t.setMask(s)
		default:
			return 0, unix.EINVAL
		}
	}
	if a[2] != 0 {
		return 0, put(t, a[2], old)
	}
	return 0, nil
}

func sysRtSigpending(t *Task, a args) (uint64, error) {
	if a[1] > 8 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	s := (t.pending.set | t.proc.pending.set) & t.mask
	t.k.mu.Unlock()
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], s)
	return 0, t.writeGuest(b[:a[1]], a[0])
}

func sysPause(t *Task, _ args) (uint64, error) {
	return 0, t.sleepForever()
}

func sysRtSigsuspend(t *Task, a args) (uint64, error) {
	if a[1] != 8 {
		return 0, unix.EINVAL
	}
	s, err := get[uint64](t, a[0])
	if err != nil {
		return 0, err
	}
	t.waitWithMask(s)
	return 0, t.sleepForever()
}

// waitWithMask blocks s until the call has returned; the mask of before comes
// back then, or with the frame of the handler that interrupts it.
func (t *Task) waitWithMask(s uint64) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if !t.suspended.active {
		t.suspended.mask, t.suspended.active = t.mask, true
	}
	t.setMaskLocked(s)
}

func (t *Task) sleepForever() error {
	if err := t.sleep(nil, nil); err != errInterrupted {
		return err
	}
	return errInterruptedNoHandler
}

func sysRtSigtimedwait(t *Task, a args) (uint64, error) {
	if a[3] != 8 {
		return 0, unix.EINVAL
	}
	s, err := get[uint64](t, a[0])
	if err != nil {
		return 0, err
	}
	deadline, err := t.timeoutAt(a[2])
	if err != nil {
		return 0, err
	}
	info, err := t.waitSignal(s&^unblockable, deadline)
	if err != nil {
		return 0, err
	}
	if a[1] != 0 {
		if err := t.writeGuest(info.encode(), a[1]); err != nil {
			return 0, err
		}
	}
	return uint64(info.sig), nil
}

// waitSignal takes one of the signals s, which need not be unblocked. A zero
// deadline waits for ever. EAGAIN at the deadline.
func (t *Task) waitSignal(s uint64, deadline time.Time) (sigInfo, error) {
	defer t.asleep(time.Now())
	timer, stop := timerChannel(deadline)
	defer stop()
	defer t.setWaiting(0)
	for {
		t.k.mu.Lock()
		t.suspended.waiting = s
		info, ok := t.takeSignalLocked(s)
		interrupted := t.interruptedLocked()
		t.k.mu.Unlock()
		switch {
		case ok:
			return info, nil
		case interrupted:
			return info, unix.EINTR
		}
		select {
		case <-t.wake:
		case <-timer:
			return info, unix.EAGAIN
		}
	}
}

func (t *Task) setWaiting(s uint64) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.suspended.waiting = s
}

func sysSigaltstack(t *Task, a args) (uint64, error) {
	old := make([]byte, 24)
	t.alt.encode(old, t.cpu.Regs.RSP)
	if a[0] != 0 {
		b := make([]byte, 24)
		if err := t.readGuest(b, a[0]); err != nil {
			return 0, err
		}
		if err := t.setAltStack(b, t.cpu.Regs.RSP); err != nil {
			return 0, err
		}
	}
	if a[1] != 0 {
		return 0, t.writeGuest(old, a[1])
	}
	return 0, nil
}

// setAltStack takes a stack_t. EPERM while the task runs on the old one.
func (t *Task) setAltStack(b []byte, sp uint64) error {
	const minSize = 2048
	next := altStack{
		base: addr.GVA(binary.LittleEndian.Uint64(b)),
		size: binary.LittleEndian.Uint64(b[16:]),
	}
	flags := int32(binary.LittleEndian.Uint32(b[8:]))
	next.flags = flags & ssAutoDisarm
	if t.alt.contains(sp) && t.alt.flags&ssAutoDisarm == 0 {
		return unix.EPERM
	}
	switch flags &^ ssAutoDisarm {
	case ssDisable:
		next = altStack{}
	case 0, ssOnStack:
		if next.size < minSize {
			return unix.ENOMEM
		}
		if uint64(next.base) > stackTop || next.size > stackTop-uint64(next.base) {
			return unix.EFAULT
		}
	default:
		return unix.EINVAL
	}
	t.alt = next
	return nil
}
