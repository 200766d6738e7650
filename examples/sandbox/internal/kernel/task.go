//go:build linux && amd64

package kernel

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// Task is a thread. Fields without a note belong to its own goroutine.
type Task struct {
	k     *Kernel
	proc  *Process // immutable
	tid   int      // changed by its own goroutine under k.mu, when it executes a program
	cpu   *kvm.Context
	clock processClock

	// Shared with other tasks, or its own; changed under k.mu.
	files *fdTable
	fs    *fsContext

	entered atomic.Int64  // when it entered ring 3, in ns since the sandbox began; 0: it is out
	slept   time.Duration // during the call under way

	// call is what accesses to memory are made with: it ends when the task has to,
	// so that it waits for no monitor (userfaultfd) any more.
	call context.Context
	end  context.CancelFunc // safe from any goroutine; immutable

	// wake has room for one: something changed that the task should look at.
	wake chan struct{}

	mask    uint64  // blocked signals; guarded by k.mu
	pending pending // guarded by k.mu

	// unsettled: in ring 3, where it may set actions that the kernel has not seen.
	unsettled atomic.Bool // stored by its own goroutine; false is stored under k.mu
	deferred  uint64      // signals sent meanwhile; guarded by k.mu

	name        string // guarded by k.mu
	nice        int    // guarded by k.mu
	deathSignal int    // PR_SET_PDEATHSIG; guarded by k.mu

	suspended  restoreMask // rt_sigsuspend, ppoll, pselect: the mask to go back to
	alt        altStack
	restart    restart
	trap       trap          // what faulted last, for the frames of signals
	goneFromPI bool          // no mutex is its any more; guarded by futexes.mu
	exited     bool          // exit(2): this thread goes, the others stay
	clearTID   addr.GVA      // CLONE_CHILD_CLEARTID
	robust     addr.GVA      // set_robust_list; guarded by k.mu
	affinity   cpuSet        // of sched_setaffinity, all if empty; guarded by k.mu
	vforkDone  chan struct{} // closed when this task lets go of its parent's memory
	buf        []byte        // bounce buffer between files and guest memory, made on first use
}

func newTask(p *Process) *Task {
	t := &Task{k: p.k, proc: p, wake: make(chan struct{}, 1)}
	t.call, t.end = context.WithCancel(p.k.ctx)
	return t
}

// notify makes the task look around: out of ring 3, out of any sleep. Safe
// from any goroutine.
func (t *Task) notify() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
	t.cpu.Kick()
}

// run is the task's goroutine.
func (t *Task) run() {
	defer t.exit()
	t.call = guestmem.WithThreadID(t.call, uint32(t.tid))
	for t.beforeUser() {
		t.unsettled.Store(t.proc.mm.table)
		t.entered.Store(int64(time.Since(t.k.started)))
		exit, err := t.k.Platform.Run(t.k.ctx, t.proc.mm.as, t.cpu)
		entered := time.Now()
		t.entered.Store(0)
		exit = t.settle(exit)
		t.spend(&t.proc.clock.user, &t.clock.user, exit.RunTime)
		t.guestTime(exit)
		if err != nil {
			t.runFailed(err)
			return
		}
		switch exit.Kind {
		case kvm.ExitSyscall:
			t.syscall()
		case kvm.ExitPageFault:
			t.pageFault(exit)
		case kvm.ExitException:
			t.exception(exit)
		case kvm.ExitKicked:
		}
		t.spend(&t.proc.clock.system, &t.clock.system, time.Since(entered)-t.slept)
		t.slept = 0
	}
}

// spend counts time for the process and for the thread.
func (t *Task) spend(process, thread *atomic.Int64, d time.Duration) {
	process.Add(int64(d))
	thread.Add(int64(d))
}

// runFailed ends the process that cannot go on, and the sandbox if it is not
// the process's fault.
func (t *Task) runFailed(err error) {
	sig := unix.SIGKILL
	switch {
	case t.k.ctx.Err() != nil: // the sandbox is ending
	case errors.Is(err, guestmem.ErrBus): // a file of the host was cut short
		t.k.say("process %d (%s) killed: %v", t.proc.pid, t.comm(), err)
		sig = unix.SIGBUS
	case errors.Is(err, kvm.ErrGuestState):
		t.k.say("process %d (%s) killed: %v", t.proc.pid, t.comm(), err)
	default:
		t.k.fail(fmt.Errorf("running process %d: %w", t.proc.pid, err))
	}
	t.die(int(sig))
}

// die ends the whole process as a signal would.
func (t *Task) die(sig int) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.k.exitGroupLocked(t.proc, signalStatus(sig))
}
