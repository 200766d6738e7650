//go:build linux && amd64

package kernel

import (
	"errors"
	"fmt"
	"maps"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// A program can be run again and again from one point: its memory goes back by
// guestmem's rollback, in time for what a run has written, and all else is small
// and made anew.
//
//	memory                  SpaceSnapshot, rolled back
//	registers, vector state copied
//	descriptors             the same descriptions, with the offsets and flags of then
//	directory, umask        copied
//	signals                 actions, mask, what was pending, alternate stack
//	threads, processes      all ended between two runs; the first has its pid again
//	timers                  none after: those that were armed then are not armed again
//	/tmp                    empty again AtEntry; AtStdin it stays as a run leaves it
//
// What goes on beyond the program is not undone: what was written to pipes and to
// the host's streams, pages of shared areas, clocks.

// CheckpointAt is where a program is kept, to be run from again.
type CheckpointAt int

// Places of a checkpoint.
const (
	NoCheckpoint CheckpointAt = iota
	AtEntry                   // loaded, before its first instruction
	AtStdin                   // at its first read of what Options.Stdin is
)

// Checkpoint is the first process as it was at one instant. It is alone then, with
// one thread.
type Checkpoint struct {
	mm       *mm // a user of its own, so that the memory outlives the process
	memory   *guestmem.SpaceSnapshot
	table    bool // mm.table
	regs     kvm.Regs
	xsave    []byte
	limits   rlimits
	files    *fdTable
	states   map[*vfs.Open]vfs.OpenState
	fs       *fsContext
	actions  *actions
	pending  [2]pending // the process's, the task's
	mask     uint64
	alt      altStack
	clearTID addr.GVA
	robust   addr.GVA
	affinity cpuSet
	nice     int
	traits   traits
	name     string
	pid      int
	nextPID  int

	working workingSet
}

// Checkpoint returns the checkpoint that was taken, nil if the program has not got
// there.
func (k *Kernel) Checkpoint() *Checkpoint {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.checkpoint
}

// capture takes the checkpoint and ends the program, which the runs to come are of.
// It is the task's own goroutine, or nobody's yet.
func (k *Kernel) capture(t *Task) error {
	p := t.proc
	k.mu.Lock()
	processes, tasks, users := len(k.processes), len(k.tasks), p.mm.users
	k.mu.Unlock()
	if processes > 1 || tasks > 1 || users > 1 {
		return fmt.Errorf("a checkpoint is of one thread; there are %d processes and %d threads", processes, tasks)
	}
	c := &Checkpoint{
		mm: p.mm, table: p.mm.table, regs: t.cpu.Regs,
		states: make(map[*vfs.Open]vfs.OpenState), fs: t.fs.clone(), alt: t.alt, clearTID: t.clearTID,
	}
	var err error
	if c.xsave, err = t.cpu.XSave(); err != nil {
		return err
	}
	if c.memory, err = p.mm.as.Snapshot(); err != nil {
		return err
	}
	c.files = t.files.clone()
	for _, s := range c.files.slots {
		c.states[s.open] = s.open.State()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	c.mm.refLocked()
	c.actions, c.limits, c.traits = p.actions.clone(), maps.Clone(p.limits), p.traits
	c.pending = [2]pending{p.pending.clone(), t.pending.clone()}
	c.mask, c.robust, c.affinity, c.name, c.nice = t.mask, t.robust, t.affinity, t.name, t.nice
	c.pid, c.nextPID = p.pid, k.nextPID
	k.checkpoint = c
	return nil
}

func (p *pending) clone() pending {
	return pending{p.set, append([]sigInfo(nil), p.queue...)}
}

// captureAtStdin is capture at a read of stdin. The call is executed again by each
// run: its SYSCALL instruction is two bytes long.
func (t *Task) captureAtStdin() error {
	err := t.k.capture(t)
	if err != nil {
		t.k.fail(fmt.Errorf("checkpoint at stdin: %w", err))
		t.die(int(unix.SIGKILL))
		return errNoReturn
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.k.checkpoint.regs.RIP -= 2
	t.k.exitGroupLocked(t.proc, exitStatus(0))
	return errNoReturn
}

// isCheckpoint reports whether a read of o is where the program is to be kept.
func (k *Kernel) isCheckpoint(o *vfs.Open) bool {
	return k.Options.Checkpoint == AtStdin && o == k.Stdin && k.Checkpoint() == nil
}

// Again runs the program from a checkpoint: everything that a run before has
// left ends first. Wait waits for it.
func (k *Kernel) Again(c *Checkpoint) error {
	k.clear()
	if k.Options.Checkpoint == AtEntry && k.NewTmp != nil {
		k.Namespace.Tmp.ClosePages()
		k.Namespace.Tmp = k.NewTmp()
	}
	if err := c.mm.as.Rollback(k.ctx, c.memory); err != nil {
		return err
	}
	k.again.Store(c)
	c.working.bring(k, c.mm.as, 0, guestmem.DefaultHighest)
	p := k.newProcess()
	t := newTask(p)
	t.cpu = k.Platform.NewContext()
	t.cpu.Regs = c.regs
	if err := t.cpu.SetXSave(c.xsave); err != nil {
		t.cpu.Close()
		return err
	}
	t.fs, t.files = c.fs.clone(), c.files.clone()
	for o, s := range c.states {
		o.SetState(s)
	}
	t.alt, t.clearTID = c.alt, c.clearTID
	k.mu.Lock()
	defer k.mu.Unlock()
	p.mm = c.mm.refLocked()
	p.mm.table, p.limits, p.traits = c.table, maps.Clone(c.limits), c.traits
	p.mm.limitLocked(p)
	p.actions, p.hasExeced = c.actions.clone(), true
	p.pending, t.pending = c.pending[0].clone(), c.pending[1].clone()
	t.mask, t.robust, t.affinity, t.name, t.nice = c.mask, c.robust, c.affinity, c.name, c.nice
	p.pid, t.tid, p.pgid, p.sid = c.pid, c.pid, c.pid, c.pid
	k.first, k.foreground, k.nextPID = p, c.pid, c.nextPID
	k.addLocked(p, t)
	return nil
}

// clear ends every process and forgets that there was one.
func (k *Kernel) clear() {
	k.mu.Lock()
	k.ending = true
	for _, p := range k.processes {
		k.exitGroupLocked(p, signalStatus(int(unix.SIGKILL)))
	}
	k.mu.Unlock()
	k.running.Wait()
	k.again.Store(nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	clear(k.processes)
	clear(k.tasks)
	k.first, k.nextPID, k.ending = nil, firstPID, k.failure != nil
	k.over = make(chan struct{})
	if k.failure != nil {
		close(k.over)
	}
}

// Release gives back what a checkpoint holds. No run is in progress.
func (k *Kernel) Release(c *Checkpoint) error {
	k.clear()
	c.files.release()
	err := c.memory.Close()
	c.mm.release()
	k.mu.Lock()
	defer k.mu.Unlock()
	k.checkpoint = nil
	return err
}

// errCaptured says that a program was kept at its entry and not started.
var errCaptured = errors.New("kept")
