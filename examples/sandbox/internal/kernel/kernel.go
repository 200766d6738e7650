//go:build linux && amd64

package kernel

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/profile"
	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

const (
	// initPID is the parent of orphans: the sandbox itself. The first program
	// is an ordinary process beside it, since a process with the pid 1 would be
	// immune to the signals that it sends to itself.
	initPID  = 1
	firstPID = 2
	maxPID   = 32768

	// DefaultMaxProcesses bounds a guest that forks without end.
	DefaultMaxProcesses = 1024

	// maxTasks bounds a guest that makes threads without end, over all
	// processes: at some 30 KiB of the host's each, a quarter of a gigabyte.
	maxTasks = 8192
)

// Options says what a Kernel runs on.
type Options struct {
	Memory       *guestmem.Memory
	Platform     *kvm.Platform
	Namespace    *vfs.Namespace
	MemorySize   uint64 // shown to the guest
	VCPUs        int    // shown to the guest
	MaxProcesses int    // 0: DefaultMaxProcesses
	Trace        *slog.Logger
	Profile      *profile.Recorder // nil: off
	Messages     io.Writer         // one line per process that dies of lack of memory

	// Checkpoint is where the first program is kept instead of being run on;
	// Again runs it from there.
	Checkpoint CheckpointAt
	Stdin      *vfs.Open         // the first program's, instead of the sandbox's own
	NewTmp     func() *vfs.Tmpfs // nil: /tmp is not emptied between runs

	// AtEnd, if not nil, is called when the first program ends, with its memory
	// still there.
	AtEnd func()

	Unseen bool // what the first program prints goes nowhere
}

// Kernel runs one family of processes.
type Kernel struct {
	Options
	started time.Time
	ctx     context.Context // done when the sandbox ends: faults that read files stop
	cancel  context.CancelFunc
	objects objectCache
	locks   *fileLocks // immutable
	clocks  *clocks    // immutable once a program runs; nil: no vDSO
	futexes futexes
	stats   counters
	running sync.WaitGroup             // the tasks' goroutines
	over    chan struct{}              // closed when the first process is gone
	again   atomic.Pointer[Checkpoint] // that the first process runs from; nil: none

	mu         sync.Mutex
	processes  map[int]*Process // zombies too
	tasks      map[int]*Task    // that run
	nextPID    int
	reserved   int // processes and threads on their way
	first      *Process
	foreground int   // process group that the terminal's signals go to
	ending     bool  // no process starts any more
	failure    error // why the sandbox itself failed
	checkpoint *Checkpoint
}

// New returns a Kernel without processes.
func New(o Options) *Kernel {
	if o.MaxProcesses == 0 {
		o.MaxProcesses = DefaultMaxProcesses
	}
	k := &Kernel{
		Options: o, started: time.Now(), over: make(chan struct{}),
		processes: make(map[int]*Process), tasks: make(map[int]*Task), nextPID: firstPID,
	}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	k.objects.mem = o.Memory
	k.locks = newFileLocks()
	return k
}

// Start makes the first process. File is the program, path what it is called;
// the descriptors 0 to 2 are those of the sandbox, as far as they are open.
// The error says why the program cannot run.
func (k *Kernel) Start(file *vfs.Open, cwd string, argv, env []string) error {
	k.clocks = newClocks(k)
	p := k.newProcess()
	t := newTask(p)
	t.fs = newFSContext(cwd)
	t.nice = hostNice()
	t.files = newFDTable(k.locks)
	k.openStreams(t.files)
	prog, err := k.resolveProgram(t, file, file.Path, argv, env)
	if err == nil {
		err = k.startFirst(p, t, prog)
	}
	if err != nil {
		t.files.release()
	}
	if err == errCaptured {
		return nil
	}
	return err
}

func (k *Kernel) startFirst(p *Process, t *Task, prog *program) error {
	m, start, err := k.load(prog)
	if err != nil {
		prog.release()
		return err
	}
	t.cpu = k.Platform.NewContext()
	t.enter(m, start, prog)
	k.mu.Lock()
	p.pid = k.reservePIDLocked()
	k.reserved--
	t.tid, p.pgid, p.sid = p.pid, p.pid, p.pid
	k.mu.Unlock()
	if k.Options.Checkpoint == AtEntry && k.Checkpoint() == nil {
		err := k.capture(t)
		t.cpu.Close()
		p.mm.release()
		if err == nil {
			err = errCaptured
		}
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.first, k.foreground = p, p.pid
	k.addLocked(p, t)
	return nil
}

// addLocked makes a process known and starts its task.
func (k *Kernel) addLocked(p *Process, t *Task) {
	k.processes[p.pid] = p
	if p.parent != nil {
		p.parent.children[p.pid] = p
	}
	k.stats.processes.Add(1)
	k.stats.peak.Store(max(k.stats.peak.Load(), uint64(len(k.processes))))
	k.startLocked(t)
}

// reservePIDLocked returns a free pid and counts the process that will have it
// in reserved; 0 if there are too many. A pid does not come again before 32 000
// others, so that nobody else takes it meanwhile.
func (k *Kernel) reservePIDLocked() int {
	if len(k.processes)+k.reserved >= k.MaxProcesses {
		return 0
	}
	return k.reserveTIDLocked()
}

// reserveTIDLocked is reservePIDLocked with the limit on tasks alone.
func (k *Kernel) reserveTIDLocked() int {
	if len(k.tasks)+k.reserved >= maxTasks || k.ending {
		return 0
	}
	k.reserved++
	for {
		pid := k.nextPID
		if k.nextPID++; k.nextPID > maxPID {
			k.nextPID = firstPID
		}
		if k.processes[pid] == nil && k.tasks[pid] == nil && !k.isGroupLocked(pid) {
			return pid
		}
	}
}

func (k *Kernel) isGroupLocked(pgid int) bool {
	for _, p := range k.processes {
		if p.pgid == pgid || p.sid == pgid {
			return true
		}
	}
	return false
}

// Wait waits for the first process and returns its exit status, 128+n if
// signal n killed it. The error is the sandbox's own failure.
func (k *Kernel) Wait() (int, error) {
	<-k.over
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return 0, k.failure
	}
	return k.first.status.shell(), nil
}

// Signal sends a signal from outside: to the foreground group, as a terminal does.
func (k *Kernel) Signal(sig unix.Signal) {
	k.mu.Lock()
	defer k.mu.Unlock()
	sent := false
	for _, p := range k.processes {
		if p.pgid == k.foreground && !p.zombie {
			k.sendLocked(p, nil, kernelSignal(int(sig)))
			sent = true
		}
	}
	if !sent && k.first != nil {
		k.sendLocked(k.first, nil, kernelSignal(int(sig)))
	}
}

// Close ends every process, waits for their tasks and returns their memory.
func (k *Kernel) Close() {
	k.mu.Lock()
	k.ending = true
	for _, p := range k.processes {
		k.exitGroupLocked(p, signalStatus(int(unix.SIGKILL)))
	}
	k.mu.Unlock()
	k.cancel()
	k.running.Wait()
	if k.clocks != nil {
		if err := k.clocks.close(); err != nil {
			k.say("%v", err)
		}
	}
	vfs.DropMessages()
	k.objects.clear()
	k.Namespace.Tmp.ClosePages()
}

// fail ends the sandbox because of itself.
func (k *Kernel) fail(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure == nil && !k.ending {
		k.failure = err
		k.endLocked()
	}
}

// endLocked lets Wait return.
func (k *Kernel) endLocked() {
	select {
	case <-k.over:
	default:
		close(k.over)
	}
}

func (k *Kernel) say(format string, args ...any) {
	if k.Messages != nil {
		fmt.Fprintf(k.Messages, "sandbox: "+format+"\n", args...)
	}
}
