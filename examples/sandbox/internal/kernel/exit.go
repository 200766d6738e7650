//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

// sysExit ends a thread. The process's status is that of the last one to call it, in
// whichever order they are gone then.
func sysExit(t *Task, a args) (uint64, error) {
	t.exited = true
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	if !t.proc.exiting {
		t.proc.status = exitStatus(int(a[0]))
	}
	return 0, errNoReturn
}

func sysExitGroup(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.k.exitGroupLocked(t.proc, exitStatus(int(a[0])))
	return 0, errNoReturn
}

// exitGroupLocked ends a process: its tasks leave ring 3 or their sleep and
// find out. The first reason given stays.
func (k *Kernel) exitGroupLocked(p *Process, status waitStatus) {
	if p.exiting {
		return
	}
	p.exiting, p.status = true, status
	for _, t := range p.tasks {
		t.end()
		t.notify()
	}
}

// exit is the end of a task's goroutine; the last task takes the process with
// it. A first task that ends before the others leaves its id to the process.
func (t *Task) exit() {
	p, k := t.proc, t.k
	t.end()
	t.call = guestmem.WithoutMonitors(k.ctx) // nobody may be left to answer
	t.endPI()
	t.leaveMemory()
	t.cpu.Close() // before anybody may think that the address space is free of it
	k.mu.Lock()
	delete(p.tasks, t.tid)
	delete(k.tasks, t.tid)
	last := len(p.tasks) == 0
	switch {
	case last && !p.exiting:
		p.exiting = true
	case p.execer != nil:
		p.execer.notify()
	}
	p.retargetLocked(^uint64(0)) // signals that it was to take
	k.mu.Unlock()
	t.files.release()
	if last {
		p.exit()
	}
	t.releaseParent()
}

// exit gives back what the process owns and makes it a zombie, or nothing at
// all if nobody will ask. The memory goes first: whoever is told that the
// process has ended may rely on its frames being free.
func (p *Process) exit() {
	k := p.k
	p.stopTimers()
	if k.AtEnd != nil && p.isFirst() {
		k.AtEnd()
	}
	k.mu.Lock()
	m := p.mm
	p.mm = nil
	k.mu.Unlock()
	if m != nil {
		m.release()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	p.exiting, p.zombie = true, true
	k.orphanLocked(p)
	if p == k.first {
		delete(k.processes, p.pid)
		k.endLocked()
		return
	}
	if !k.notifyParentLocked(p) {
		k.reapLocked(p)
	}
}

func (p *Process) isFirst() bool {
	p.k.mu.Lock()
	defer p.k.mu.Unlock()
	return p == p.k.first
}

// orphanLocked gives a process's children to its nearest ancestor that asked for them,
// or to init, which reaps at once.
func (k *Kernel) orphanLocked(p *Process) {
	heir := p.parent
	for heir != nil && (!heir.traits.subreaper || heir.exiting) {
		heir = heir.parent
	}
	for _, c := range p.children {
		c.parent = heir
		for _, t := range c.tasks {
			if t.deathSignal != 0 {
				_ = k.sendLocked(c, t, userSignal(t.deathSignal, siUser, p.pid))
			}
		}
		switch {
		case heir != nil:
			heir.children[c.pid] = c
			if c.zombie && !k.notifyParentLocked(c) {
				k.reapLocked(c)
			}
		case c.zombie:
			delete(k.processes, c.pid)
		}
	}
	clear(p.children)
}

// notifyParentLocked tells the parent that a child has ended, and reports
// whether the zombie has to stay until it is waited for.
func (k *Kernel) notifyParentLocked(p *Process) (stays bool) {
	parent := p.parent
	if parent == nil {
		return false
	}
	act := parent.actions.get(int(unix.SIGCHLD))
	stays = p.exitSignal != int(unix.SIGCHLD) || (act.Handler != sigIgnore && act.Flags&saNoChildWait == 0)
	if p.exitSignal != 0 {
		info := childInfo(p.pid, p.status)
		info.sig = p.exitSignal
		k.sendLocked(parent, nil, info)
	}
	parent.childQueue.Wake()
	return stays
}

func (k *Kernel) reapLocked(p *Process) {
	delete(k.processes, p.pid)
	if p.parent != nil {
		delete(p.parent.children, p.pid)
		p.parent.usage.waitFor(&p.usage)
		p.parent.childrenTime = p.parent.childrenTime.plus(p.clock.now()).plus(p.childrenTime)
	}
}
