//go:build linux && amd64

package kernel

import (
	"math/bits"

	"golang.org/x/sys/unix"
)

const (
	maxSignal   = 64
	firstQueued = 32 // signals from here on queue; lower ones only pend

	// maxQueued bounds the queued signals of one process.
	maxQueued = 1024

	sigDefault = 0
	sigIgnore  = 1

	saNoChildStop = 1
	saNoChildWait = 2
	saRestorer    = 0x04000000
	saOnStack     = 0x08000000
	saRestart     = 0x10000000
	saNoDefer     = 0x40000000
	saResetHand   = 0x80000000
)

func bit(sig int) uint64 { return 1 << (sig - 1) }

func set(sigs ...unix.Signal) (s uint64) {
	for _, sig := range sigs {
		s |= bit(int(sig))
	}
	return s
}

var (
	unblockable   = set(unix.SIGKILL, unix.SIGSTOP)
	stopSignals   = set(unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	ignoreDefault = set(unix.SIGCHLD, unix.SIGCONT, unix.SIGURG, unix.SIGWINCH)
	synchronous   = set(unix.SIGSEGV, unix.SIGBUS, unix.SIGILL, unix.SIGTRAP, unix.SIGFPE, unix.SIGSYS)
)

// action is what a process does about a signal.
type action struct{ Handler, Flags, Restorer, Mask uint64 }

// actions is a process's table; a nil entry of the zero value is the default.
type actions [maxSignal + 1]action

func (a *actions) get(sig int) action { return a[sig] }

func (a *actions) clone() *actions {
	c := *a
	return &c
}

// afterExec keeps what is ignored and resets the rest.
func (a *actions) afterExec() *actions {
	var c actions
	for sig := range a {
		if a[sig].Handler == sigIgnore {
			c[sig].Handler = sigIgnore
		}
	}
	return &c
}

// ignores reports whether the signal has no effect.
func (a *actions) ignores(sig int) bool {
	h := a[sig].Handler
	return h == sigIgnore || (h == sigDefault && bit(sig)&ignoreDefault != 0)
}

// kills reports whether the signal ends a process that does not block it.
func (a *actions) kills(sig int) bool {
	return a[sig].Handler == sigDefault && bit(sig)&(ignoreDefault|stopSignals) == 0
}

// pending is a set of signals with what is known about each.
type pending struct {
	set   uint64
	queue []sigInfo // in order of arrival
}

// add reports whether there was room.
func (p *pending) add(info sigInfo) bool {
	if p.set&bit(info.sig) != 0 && info.sig < firstQueued {
		return true
	}
	if len(p.queue) >= maxQueued && info.sig >= firstQueued {
		return false
	}
	p.set |= bit(info.sig)
	p.queue = append(p.queue, info)
	return true
}

// take removes the first signal of those allowed: synchronous ones first, then
// the lowest number, as Linux does.
func (p *pending) take(allowed uint64) (sigInfo, bool) {
	candidates := p.set & allowed
	if candidates == 0 {
		return sigInfo{}, false
	}
	if s := candidates & synchronous; s != 0 {
		candidates = s
	}
	sig := bits.TrailingZeros64(candidates) + 1
	found, more := -1, false
	for i, info := range p.queue {
		if info.sig == sig {
			if found >= 0 {
				more = true
				break
			}
			found = i
		}
	}
	info := p.queue[found]
	p.queue = append(p.queue[:found], p.queue[found+1:]...)
	if !more {
		p.set &^= bit(sig)
	}
	return info, true
}

// dropTimer forgets the signal of a timer.
func (p *pending) dropTimer(x *posixTimer) {
	for i, info := range p.queue {
		if info.timer != x {
			continue
		}
		p.queue = append(p.queue[:i], p.queue[i+1:]...)
		if !p.has(info.sig) {
			p.set &^= bit(info.sig)
		}
		return
	}
}

func (p *pending) has(sig int) bool {
	for _, info := range p.queue {
		if info.sig == sig {
			return true
		}
	}
	return false
}

// drop forgets all signals of a set.
func (p *pending) drop(which uint64) {
	kept := p.queue[:0]
	for _, info := range p.queue {
		if bit(info.sig)&which == 0 {
			kept = append(kept, info)
		}
	}
	p.queue, p.set = kept, p.set&^which
}

// sendLocked sends a signal to a process, or to one of its tasks. EAGAIN when
// its queue is full. A signal that would be ignored is dropped here, so that it
// interrupts nothing.
func (k *Kernel) sendLocked(p *Process, t *Task, info sigInfo) error {
	if info.sig == 0 || p.zombie || p.exiting {
		return nil
	}
	b := bit(info.sig)
	switch {
	case info.sig == int(unix.SIGKILL):
		k.exitGroupLocked(p, signalStatus(info.sig))
		return nil
	case info.sig == int(unix.SIGCONT):
		k.continueLocked(p)
	case b&stopSignals != 0:
		p.dropLocked(set(unix.SIGCONT))
	}
	queue, target := &p.pending, t
	if t == nil {
		target = p.takerLocked(b)
	} else {
		queue = &t.pending
	}
	blocked := target == nil || target.mask&b != 0
	undecided := target != nil && target.unsettled.Load()
	switch {
	case undecided && !blocked:
		// It may have another action by now than is known here.
		if target.deferred |= b; !queue.add(info) {
			return unix.EAGAIN
		}
		target.notify()
	case p.actions.ignores(info.sig) && !blocked:
		return nil
	case p.actions.kills(info.sig) && !blocked:
		// At once, whatever the task that would take it waits for.
		k.exitGroupLocked(p, signalStatus(info.sig))
		return nil
	case !queue.add(info):
		return unix.EAGAIN
	case target != nil:
		target.notify()
	}
	return nil
}

// takerLocked picks the task that is to take a signal of the process's: the
// first if it can, as under Linux; nil if all block it. One is enough, since
// whoever comes by takes it, and each one notified is a call interrupted.
func (p *Process) takerLocked(b uint64) *Task {
	if t := p.tasks[p.pid]; t != nil && t.takesLocked(b) {
		return t
	}
	for _, t := range p.tasks {
		if t.takesLocked(b) {
			return t
		}
	}
	return nil
}

// takesLocked reports whether the task does not block a signal, or waits for it.
func (t *Task) takesLocked(b uint64) bool {
	return t.mask&b == 0 || t.suspended.waiting&b != 0
}

// retargetLocked finds other tasks for pending signals of a set, because the
// one that was picked blocks them now or is gone.
func (p *Process) retargetLocked(which uint64) {
	for which &= p.pending.set; which != 0; which &= which - 1 {
		if t := p.takerLocked(which & -which); t != nil {
			t.notify()
		}
	}
}

func (p *Process) dropLocked(which uint64) {
	p.pending.drop(which)
	for _, t := range p.tasks {
		t.pending.drop(which)
	}
}

// continueLocked resumes a stopped process, whatever it does about SIGCONT.
func (k *Kernel) continueLocked(p *Process) {
	p.dropLocked(stopSignals)
	if !p.stopped {
		return
	}
	p.stopped, p.stopUnreported, p.contUnreported = false, false, true
	if p.parent != nil {
		p.parent.childQueue.Wake()
	}
	for _, t := range p.tasks {
		t.notify()
	}
}

// stopLocked stops a process and tells its parent: at once, while the other
// tasks are on their way out of ring 3. One that sleeps in a call stops when
// the call is over.
func (k *Kernel) stopLocked(p *Process, sig int) {
	p.stopped, p.stopUnreported, p.contUnreported = true, true, false
	p.stopSignal = sig
	for _, t := range p.tasks {
		t.notify()
	}
	if parent := p.parent; parent != nil {
		if parent.actions[unix.SIGCHLD].Flags&saNoChildStop == 0 {
			_ = k.sendLocked(parent, nil, childInfo(p.pid, stopStatus(sig)))
		}
		parent.childQueue.Wake()
	}
}

// interruptedLocked reports whether a sleep has to end: the task has to, or a
// signal waits that is not blocked.
func (t *Task) interruptedLocked() bool {
	return t.doomedLocked() || (t.pending.set|t.proc.pending.set)&^t.mask != 0
}
