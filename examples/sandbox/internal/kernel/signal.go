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
	if len(p.queue) >= maxQueued {
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
	blocked := t != nil && t.mask&b != 0
	if t == nil {
		blocked = p.blocksLocked(b)
	}
	if p.actions.ignores(info.sig) && !blocked {
		return nil
	}
	queue := &p.pending
	if t != nil {
		queue = &t.pending
	}
	if !queue.add(info) {
		return unix.EAGAIN
	}
	if t != nil {
		t.notify()
		return nil
	}
	for _, t := range p.tasks {
		if t.mask&b == 0 || t.suspended.waiting&b != 0 {
			t.notify()
		}
	}
	return nil
}

// blocksLocked reports whether every task blocks the signal.
func (p *Process) blocksLocked(b uint64) bool {
	for _, t := range p.tasks {
		if t.mask&b == 0 {
			return false
		}
	}
	return true
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

// stopLocked stops a process and tells its parent.
func (k *Kernel) stopLocked(p *Process, sig int) {
	p.stopped, p.stopUnreported, p.contUnreported = true, true, false
	p.status = stopStatus(sig)
	if parent := p.parent; parent != nil {
		if parent.actions[unix.SIGCHLD].Flags&saNoChildStop == 0 {
			_ = k.sendLocked(parent, nil, childSignal(p))
		}
		parent.childQueue.Wake()
	}
}

// interruptedLocked reports whether a sleep has to end: the process ends or
// stops, or a signal waits that is not blocked.
func (t *Task) interruptedLocked() bool {
	p := t.proc
	return p.exiting || (t.pending.set|p.pending.set)&^t.mask != 0
}
