//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// restart says how a call that a signal interrupted goes on.
type restart struct {
	kind     restartKind
	nr       uint64    // the call's number, to put back into RAX
	deadline time.Time // of a timeout that was given as a duration
	over     bool      // the call starts over: that deadline still holds
}

type restartKind uint8

const (
	restartNone      restartKind = iota
	restartSys                   // again, if the handler has SA_RESTART or there is none
	restartNoHandler             // again, if no handler ran
	restartAlways                // again
)

// restoreMask is the mask to go back to after a call that waits with another one.
type restoreMask struct {
	mask    uint64
	active  bool
	waiting uint64 // rt_sigtimedwait: blocked signals that wake it all the same; guarded by k.mu
}

// beforeUser deals with signals, stops and the end of the process. False when
// the task has to end.
func (t *Task) beforeUser() bool {
	for {
		t.k.mu.Lock()
		if t.exited || t.doomedLocked() {
			t.k.mu.Unlock()
			return false
		}
		if t.proc.stopped {
			t.k.mu.Unlock()
			<-t.wake
			continue
		}
		info, ok := t.takeSignalLocked(^t.mask)
		var act action
		if ok {
			act = t.proc.actions[info.sig]
			if !t.actLocked(info, act) {
				t.k.mu.Unlock()
				continue
			}
			if act.Flags&saResetHand != 0 {
				t.proc.actions[info.sig].Handler = sigDefault
			}
		}
		t.k.mu.Unlock()
		if !ok {
			t.finishCall()
			return true
		}
		if act.Flags&saResetHand != 0 {
			t.publishAction(info.sig)
		}
		t.interruptCall(act)
		t.callHandler(info, act)
	}
}

// takeSignalLocked takes the task's own signals before the process's.
func (t *Task) takeSignalLocked(allowed uint64) (sigInfo, bool) {
	info, ok := t.pending.take(allowed)
	if !ok {
		info, ok = t.proc.pending.take(allowed)
	}
	if ok && info.timer != nil {
		info.timer.missed = min(info.missed+info.timer.catchUpLocked(), maxOverrun)
		info.missed = info.timer.missed
	}
	return info, ok
}

// actLocked does what needs no handler, and reports whether one has to run.
func (t *Task) actLocked(info sigInfo, act action) (handler bool) {
	switch {
	case t.proc.actions.ignores(info.sig):
	case act.Handler != sigDefault:
		return true
	case bit(info.sig)&stopSignals != 0:
		t.k.stopLocked(t.proc, info.sig)
	default:
		t.k.exitGroupLocked(t.proc, signalStatus(info.sig))
	}
	return false
}

// interruptCall settles the interrupted call before a handler runs.
func (t *Task) interruptCall(act action) {
	switch t.restart.kind {
	case restartNone:
		return
	case restartAlways:
		t.again()
		return
	case restartSys:
		if act.Flags&saRestart != 0 {
			t.again()
			return
		}
	}
	t.restart.kind = restartNone
	t.cpu.Regs.RAX = errnoResult(unix.EINTR)
}

// finishCall goes back to ring 3 without a handler: an interrupted call starts
// over, and the mask that it had set aside comes back.
func (t *Task) finishCall() {
	if t.restart.kind != restartNone {
		t.again()
	}
	if t.suspended.active {
		t.suspended.active = false
		t.setMask(t.suspended.mask)
	}
}

// again makes the task execute its SYSCALL instruction once more.
func (t *Task) again() {
	t.restart.kind = restartNone
	t.restart.over = true
	t.cpu.Regs.RIP -= 2
	t.cpu.Regs.RAX = t.restart.nr
}

func (t *Task) setMask(mask uint64) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.setMaskLocked(mask)
}

// setMaskLocked blocks signals. What the process has pending of them, and this
// task was perhaps to take, another one is.
func (t *Task) setMaskLocked(mask uint64) {
	mask &^= unblockable
	blocked := mask &^ t.mask
	t.mask = mask
	t.proc.retargetLocked(blocked)
}

// callHandler puts a frame on the stack and the registers at the handler. With
// no room for the frame the process dies of SIGSEGV.
func (t *Task) callHandler(info sigInfo, act action) {
	t.k.mu.Lock()
	frameMask := t.mask
	t.k.mu.Unlock()
	if t.suspended.active {
		t.suspended.active = false
		frameMask = t.suspended.mask
	}
	if err := t.pushFrame(info, act, frameMask); err != nil {
		t.forceSignal(sigInfo{sig: int(unix.SIGSEGV), code: siKernel}, info.sig == int(unix.SIGSEGV))
		return
	}
	t.restart.over = false // the handler's calls have deadlines of their own
	mask := t.mask | act.Mask
	if act.Flags&saNoDefer == 0 {
		mask |= bit(info.sig)
	}
	t.setMask(mask)
}

// forceSignal delivers a signal that the task has brought upon itself. Where
// it is blocked or ignored, or certain to come again, the process dies of it.
func (t *Task) forceSignal(info sigInfo, fatal bool) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	b := bit(info.sig)
	act := &t.proc.actions[info.sig]
	if fatal || t.mask&b != 0 || act.Handler == sigIgnore || act.Handler == sigDefault {
		t.k.exitGroupLocked(t.proc, signalStatus(info.sig))
		return
	}
	t.pending.drop(b)
	t.pending.add(info) // there is room for those that are not queued
}

// altStack is sigaltstack(2)'s. The zero value is none.
type altStack struct {
	base  addr.GVA
	size  uint64
	flags int32 // SS_AUTODISARM
}

func (s altStack) contains(sp uint64) bool {
	return s.size != 0 && sp > uint64(s.base) && sp-uint64(s.base) <= s.size
}
