//go:build linux && amd64

package kernel

import (
	"maps"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// startFlags are RFLAGS as a program finds them.
const startFlags = 0x202

func startRegs(e entry) kvm.Regs {
	return kvm.Regs{RIP: e.rip, RSP: e.rsp, RFLAGS: startFlags}
}

func sysFork(t *Task, _ args) (uint64, error) {
	return t.clone(cloneArgs{flags: uint64(unix.SIGCHLD)})
}

func sysVfork(t *Task, _ args) (uint64, error) {
	return t.clone(cloneArgs{flags: unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)})
}

func sysClone(t *Task, a args) (uint64, error) {
	return t.clone(cloneArgs{flags: a[0], stack: a[1], parentTID: a[2], childTID: a[3], tls: a[4]})
}

type cloneArgs struct{ flags, stack, parentTID, childTID, tls uint64 }

const (
	cloneKnown = 0xff | unix.CLONE_VM | unix.CLONE_VFORK | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SETTLS |
		unix.CLONE_SIGHAND | unix.CLONE_THREAD |
		unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_SETTID | unix.CLONE_CHILD_CLEARTID |
		unix.CLONE_SYSVSEM | unix.CLONE_IO | unix.CLONE_DETACHED | unix.CLONE_UNTRACED
)

// check refuses what Linux refuses, and what is not here, with EINVAL.
func (c *cloneArgs) check() error {
	switch f := c.flags; {
	case f&unix.CLONE_SIGHAND != 0 && f&unix.CLONE_VM == 0,
		f&unix.CLONE_THREAD != 0 && f&unix.CLONE_SIGHAND == 0,
		f&0xff > maxSignal:
		return unix.EINVAL
	case f&^uint64(cloneKnown) != 0:
		return unix.EINVAL // namespaces, ptrace, pidfd
	case f&unix.CLONE_SETTLS != 0 && c.tls >= stackTop:
		return unix.EPERM
	}
	return nil
}

// clone makes a thread, or a process: with a copy of the memory, or with the
// memory itself, beside its parent or (vfork) while the parent waits.
func (t *Task) clone(c cloneArgs) (uint64, error) {
	if err := c.check(); err != nil {
		return 0, err
	}
	t.leaveTable()
	if c.flags&unix.CLONE_THREAD != 0 {
		return t.cloneThread(&c)
	}
	// The pid comes first: a guest at its limit is refused before it costs anything.
	t.k.mu.Lock()
	pid := t.k.reservePIDLocked()
	t.k.mu.Unlock()
	if pid == 0 {
		return 0, unix.EAGAIN
	}
	child, ct, err := t.newChild(&c)
	if err != nil {
		t.k.unreserve()
		return 0, err
	}
	done := ct.vforkDone
	child.pid, ct.tid = pid, pid
	ct.storeTIDs(t, &c)

	t.k.mu.Lock()
	t.k.reserved--
	if t.k.ending || t.doomedLocked() {
		t.k.mu.Unlock()
		ct.discard()
		return 0, unix.EAGAIN
	}
	child.pgid, child.sid = t.proc.pgid, t.proc.sid
	ct.inheritLocked(t)
	t.k.addLocked(child, ct)
	child.limitCPULocked()
	t.k.mu.Unlock()
	if done != nil {
		t.waitVfork(done)
		t.useLimits()
	}
	return uint64(pid), nil
}

// newChild copies or shares what the child gets; nothing of it is known to
// anybody else yet.
func (t *Task) newChild(c *cloneArgs) (*Process, *Task, error) {
	p := t.proc
	child := t.k.newProcess()
	child.parent, child.exitSignal = p, int(c.flags&0xff)
	ct := newTask(child)
	var err error
	if ct.cpu, err = t.cpu.Clone(); err != nil {
		ct.end()
		return nil, nil, unix.EAGAIN
	}
	if c.flags&unix.CLONE_VM != 0 {
		t.k.mu.Lock()
		child.mm = p.mm.refLocked()
		t.k.mu.Unlock()
	} else if child.mm, err = p.mm.fork(t.call); err != nil {
		ct.cpu.Close()
		ct.end()
		return nil, nil, err
	}
	ct.inheritFiles(t, c.flags)
	t.k.mu.Lock()
	child.limits, child.traits = maps.Clone(p.limits), p.traits.forked()
	if child.actions = p.actions; c.flags&unix.CLONE_SIGHAND == 0 {
		child.actions = p.actions.clone()
	}
	t.k.mu.Unlock()
	ct.startAs(t, c)
	return child, ct, nil
}

// startAs sets what a new task, a copy of t, starts with.
func (ct *Task) startAs(t *Task, c *cloneArgs) {
	if c.flags&unix.CLONE_VFORK != 0 {
		ct.vforkDone = make(chan struct{})
	}
	if ct.alt = t.alt; c.flags&unix.CLONE_VM != 0 && c.flags&unix.CLONE_VFORK == 0 {
		ct.alt = altStack{}
	}
	ct.cpu.Regs.RAX = 0
	if c.stack != 0 {
		ct.cpu.Regs.RSP = c.stack
	}
	if c.flags&unix.CLONE_SETTLS != 0 {
		ct.cpu.Regs.FSBase = c.tls
	}
	if c.flags&unix.CLONE_CHILD_CLEARTID != 0 {
		ct.clearTID = addr.GVA(c.childTID)
	}
}

// inheritFiles gives a new task the table and the directory of t, or copies.
func (ct *Task) inheritFiles(t *Task, flags uint64) {
	if ct.files = t.files; flags&unix.CLONE_FILES == 0 {
		ct.files = t.files.clone()
	} else {
		ct.files.ref()
	}
	if ct.fs = t.fs; flags&unix.CLONE_FS == 0 {
		ct.fs = t.fs.clone()
	}
}

// sysUnshare gives the caller a table or a directory of its own. EINVAL for
// namespaces, and for what only a single thread may ask.
func sysUnshare(t *Task, a args) (uint64, error) {
	if a[0]&^uint64(unix.CLONE_FILES|unix.CLONE_FS|unix.CLONE_SYSVSEM) != 0 {
		return 0, unix.EINVAL
	}
	old := t.files
	t.k.mu.Lock()
	if a[0]&unix.CLONE_FILES != 0 {
		t.files = t.files.clone()
	}
	if a[0]&unix.CLONE_FS != 0 {
		t.fs = t.fs.clone()
	}
	t.k.mu.Unlock()
	if old != t.files {
		old.release()
	}
	return 0, nil
}

// discard undoes newChild.
func (t *Task) discard() {
	t.files.release()
	t.proc.mm.release()
	t.cpu.Close()
	t.end()
}

// storeTIDs writes the ids where clone was asked to. A bad address is ignored,
// as Linux does.
func (t *Task) storeTIDs(parent *Task, c *cloneArgs) {
	if c.flags&unix.CLONE_PARENT_SETTID != 0 {
		_ = put(parent, c.parentTID, uint32(t.tid))
	}
	if c.flags&unix.CLONE_CHILD_SETTID != 0 {
		_ = put(t, c.childTID, uint32(t.tid))
	}
}

// waitVfork waits until the child has let go of the memory. Only the end of
// the process interrupts it.
func (t *Task) waitVfork(done <-chan struct{}) {
	defer t.asleep(time.Now())
	for {
		select {
		case <-done:
			return
		case <-t.wake:
			t.k.mu.Lock()
			doomed := t.doomedLocked()
			t.k.mu.Unlock()
			if doomed {
				return
			}
		}
	}
}
