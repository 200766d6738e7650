//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"
)

// Threads of a process come and go by these rules:
//
//	clone(CLONE_THREAD)   a Task more in Process.tasks, unless the process is ending
//	exit                  the Task leaves; the last one takes the process with it
//	exit_group, signal    Process.exiting is set and every Task is notified
//	execve                Process.execer is set, every other Task is notified, and
//	                      the caller waits until it is the only one
//
// Notified means: out of KVM_RUN or out of its sleep, and then beforeUser finds
// out. A Task is removed from Process.tasks at the very end of its goroutine,
// when it touches neither the memory nor a vCPU any more, so that who finds
// itself alone may replace the memory and who finds itself the last may free it.

// doomedLocked reports whether the task has to end because of another one.
func (t *Task) doomedLocked() bool {
	p := t.proc
	return p.exiting || (p.execer != nil && p.execer != t)
}

// newThread returns a task beside t, in the same process. Nobody knows it yet.
func (t *Task) newThread(c *cloneArgs) (*Task, error) {
	ct := newTask(t.proc)
	var err error
	if ct.cpu, err = t.cpu.Clone(); err != nil {
		ct.end()
		return nil, unix.EAGAIN
	}
	ct.inheritFiles(t, c.flags)
	ct.startAs(t, c)
	return ct, nil
}

// cloneThread is clone(CLONE_THREAD).
func (t *Task) cloneThread(c *cloneArgs) (uint64, error) {
	tid, err := t.k.reserveThread()
	if err != nil {
		return 0, err
	}
	ct, err := t.newThread(c)
	if err != nil {
		t.k.unreserve()
		return 0, err
	}
	ct.tid = tid
	ct.storeTIDs(t, c)

	t.k.mu.Lock()
	t.k.reserved--
	if t.k.ending || t.doomedLocked() {
		t.k.mu.Unlock()
		ct.files.release()
		ct.cpu.Close()
		ct.end()
		return 0, unix.EAGAIN
	}
	ct.inheritLocked(t)
	done := ct.vforkDone
	t.k.startLocked(ct)
	t.k.mu.Unlock()
	if done != nil {
		t.waitVfork(done)
	}
	return uint64(tid), nil
}

// inheritLocked copies what a new task, of whichever process, has from t.
func (ct *Task) inheritLocked(t *Task) {
	ct.mask, ct.name, ct.affinity, ct.nice = t.mask, t.name, t.affinity, t.nice
}

// startLocked makes a task known and lets it run.
func (k *Kernel) startLocked(t *Task) {
	t.proc.tasks[t.tid] = t
	k.tasks[t.tid] = t
	k.stats.threads.Add(1)
	k.running.Go(t.run)
}

// reserveThread is reservePIDLocked for a thread. EAGAIN when there are too many.
func (k *Kernel) reserveThread() (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if tid := k.reserveTIDLocked(); tid != 0 {
		return tid, nil
	}
	return 0, unix.EAGAIN
}

func (k *Kernel) unreserve() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reserved--
}

// becomeOnly ends every other thread of the process, for execve: past the point
// of no return. The caller takes over the process's id, whoever had it, and is
// done with its old memory. False if the process ends meanwhile, or another
// thread was first.
func (t *Task) becomeOnly() bool {
	t.k.mu.Lock()
	only := t.becomeOnlyLocked()
	t.k.mu.Unlock()
	if only {
		t.leaveMemory()
	}
	return only
}

func (t *Task) becomeOnlyLocked() bool {
	k, p := t.k, t.proc
	if t.doomedLocked() {
		return false
	}
	if p.execer = t; len(p.tasks) > 1 {
		for _, other := range p.tasks {
			if other != t {
				other.end()
				other.notify()
			}
		}
	}
	for len(p.tasks) > 1 && !p.exiting {
		k.mu.Unlock()
		<-t.wake
		k.mu.Lock()
	}
	if p.execer = nil; p.exiting {
		return false
	}
	delete(p.tasks, t.tid)
	delete(k.tasks, t.tid)
	t.tid = p.pid
	p.tasks[t.tid], k.tasks[t.tid] = t, t
	return true
}
