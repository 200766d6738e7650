//go:build linux && amd64

package kernel

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// Process is what Linux calls a thread group.
type Process struct {
	k          *Kernel
	childQueue vfs.Queue // woken when a child changes state

	clock processClock
	usage usage

	// Guarded by k.mu from here on.
	pid, pgid, sid int
	parent         *Process // nil: init
	children       map[int]*Process
	tasks          map[int]*Task
	execer         *Task    // whose program all other tasks have to make way for
	mm             *mm      // changed under k.mu by its only task; nil once it is gone
	actions        *actions // shared by CLONE_SIGHAND
	pending        pending
	exitSignal     int // what the parent is sent
	hasExeced      bool
	exiting        bool
	zombie         bool
	status         waitStatus
	stopped        bool
	stopSignal     int
	stopUnreported bool // WUNTRACED has something to say
	contUnreported bool // WCONTINUED
	childrenTime   cpuTime
	itimers        itimers
	timers         map[int]*posixTimer // of timer_create, by id
	limits         rlimits             // that were set
	traits         traits
	cpuLimit       alarm
	nextTimer      int
}

func (k *Kernel) newProcess() *Process {
	p := &Process{
		k: k, children: make(map[int]*Process), tasks: make(map[int]*Task),
		actions: new(actions), exitSignal: int(unix.SIGCHLD),
	}
	p.initTimers()
	p.initCPULimit()
	return p
}

// fsContext is the current directory and the file mode mask; CLONE_FS shares it.
type fsContext struct {
	mu    sync.Mutex
	cwd   string // canonical, guarded by mu
	umask uint32 // guarded by mu
}

func newFSContext(cwd string) *fsContext { return &fsContext{cwd: cwd, umask: 0o022} }

func (c *fsContext) clone() *fsContext {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &fsContext{cwd: c.cwd, umask: c.umask}
}

func (c *fsContext) dir() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cwd
}

func (c *fsContext) setDir(dir string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cwd = dir
}

func (c *fsContext) mask(mode uint32) uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return mode &^ c.umask
}

// processClock is the time that a process has spent: in ring 3, and being served.
type processClock struct{ user, system atomic.Int64 } // nanoseconds

type cpuTime struct{ user, system time.Duration }

func (c *processClock) now() cpuTime {
	return cpuTime{time.Duration(c.user.Load()), time.Duration(c.system.Load())}
}

func (a cpuTime) plus(b cpuTime) cpuTime { return cpuTime{a.user + b.user, a.system + b.system} }

// waitStatus is what wait4(2) stores.
type waitStatus uint32

func exitStatus(code int) waitStatus  { return waitStatus(code&0xff) << 8 }
func signalStatus(sig int) waitStatus { return waitStatus(sig) }
func stopStatus(sig int) waitStatus   { return waitStatus(sig)<<8 | 0x7f }
func (s waitStatus) signal() int      { return int(s & 0x7f) }
func (s waitStatus) code() int        { return int(s>>8) & 0xff }

const continuedStatus waitStatus = 0xffff

// shell returns the status as a shell shows it.
func (s waitStatus) shell() int {
	if sig := s.signal(); sig != 0 {
		return 128 + sig
	}
	return s.code()
}

// processLocked returns a living process or zombie by pid.
func (k *Kernel) processLocked(pid int) (*Process, error) {
	if p := k.processes[pid]; p != nil {
		return p, nil
	}
	return nil, unix.ESRCH
}

// leader returns the process's first task, nil if all are gone.
func (p *Process) leaderLocked() *Task {
	if t := p.tasks[p.pid]; t != nil {
		return t
	}
	for _, t := range p.tasks {
		return t
	}
	return nil
}
