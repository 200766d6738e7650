//go:build linux && amd64

package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vdso"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// A Go program sets the action of every signal when it starts: 114 calls of
// rt_sigaction, and on the hosts where a system call costs 38 µs a quarter of
// what such a program costs. There (kvm.PlatformOptions.SyscallEntry) the code of
// vdso.Entry answers them in ring 3, from a table in the process's own memory.
//
//	program            entry.s                  kernel
//	SYSCALL ─────────► stores in the table,
//	        ◄───────── marks it changed
//	...
//	whatever exits ───────────────────────────► settle: Process.actions = table
//
// Only handlers are stored there: what makes a process ignore a signal also drops
// those that are pending, which is the kernel's to do in order.
//
// While a task is out of ring 3 Process.actions holds, and the table is the same.
// While it is in ring 3 the table may be newer, so that who sends it a signal
// leaves the decision to the task (sendLocked). The table is used from execve
// until the first clone of whatever kind, so nobody else has an interest in it:
// no thread, no child whose end it may ignore, no sharer of actions.
//
// The page is the guest's to write, and the guest its only victim: what is read
// from it is checked as the call's argument is.

// mapEntry maps both pages into the template.
func (k *Kernel) mapEntry(as *guestmem.AddressSpace) error {
	const flags = guestmem.MapAnonymous | guestmem.MapFixed | guestmem.MapPrivate
	const rw = guestmem.ProtRead | guestmem.ProtWrite
	if len(vdso.Entry) > pageSize {
		return fmt.Errorf("the entry of system calls is %d bytes, more than a page", len(vdso.Entry))
	}
	if _, err := as.Map(k.ctx, guestmem.MapOptions{Addr: SyscallEntry, Length: 2 * pageSize, Prot: rw, Flags: flags, Kind: guestmem.KindVDSO}); err != nil {
		return err
	}
	if _, err := as.WriteAt(k.ctx, vdso.Entry, SyscallEntry); err != nil {
		return err
	}
	enabled := uint32(1)
	if k.Trace != nil {
		enabled = 0 // each call is to be seen
	}
	if err := as.Store32(k.ctx, actionsAddr+vdso.EntryEnabled, enabled); err != nil {
		return err
	}
	if err := as.Protect(SyscallEntry, pageSize, guestmem.ProtRead|guestmem.ProtExec); err != nil {
		return err
	}
	return as.Fault(k.ctx, SyscallEntry, guestmem.ProtExec)
}

// hasEntry reports whether system calls of processes begin at vdso.Entry.
func (k *Kernel) hasEntry() bool { return k.clocks != nil && k.Platform.SyscallEntry() != 0 }

// checkSealed refuses to put something else where SYSCALL leads: EPERM, as of a
// sealed mapping. To unmap it is allowed: the platform does without.
func (k *Kernel) checkSealed(start, length uint64) error {
	if k.clocks != nil && start < actionsAddr+pageSize && start+roundUp(length) > SyscallEntry {
		return unix.EPERM
	}
	return nil
}

// settle deals with what ring 3 may have done by itself, first thing after
// every exit. One in the middle of vdso.Entry becomes the call that was on its
// way, so that nothing ever goes on in there.
func (t *Task) settle(exit kvm.Exit) kvm.Exit {
	halfSet := 0
	if off := t.cpu.Regs.RIP - SyscallEntry; off < uint64(len(vdso.Entry)) && t.k.hasEntry() {
		regs := &t.cpu.Regs
		if off >= vdso.EntryTaken {
			regs.RAX, regs.R11 = unix.SYS_RT_SIGACTION, startFlags
		}
		if off >= vdso.EntryCommit && regs.RSI != 0 {
			halfSet = int(regs.RDI & 0x7f) // and the call that follows cannot fail
		}
		regs.RIP, regs.RFLAGS = regs.RCX, regs.R11
		exit = kvm.Exit{Kind: kvm.ExitSyscall, RunTime: exit.RunTime}
	}
	if t.unsettled.Load() {
		t.adoptActions(halfSet)
	}
	return exit
}

// adoptActions takes over what changed in the table, but for a signal whose
// action was being set, and decides about signals that were sent meanwhile.
func (t *Task) adoptActions(halfSet int) {
	table, changed := t.readTable()
	k, p := t.k, t.proc
	k.mu.Lock()
	defer k.mu.Unlock()
	if changed {
		for sig := 1; sig <= maxSignal; sig++ {
			act := table[sig]
			act.Mask &^= unblockable
			if sig == halfSet || bit(sig)&unblockable != 0 || act == p.actions[sig] {
				continue
			}
			if p.actions[sig] = act; p.actions.ignores(sig) {
				p.dropLocked(bit(sig))
			}
		}
	}
	for sig := 1; t.deferred != 0; sig, t.deferred = sig+1, t.deferred>>1 {
		if t.deferred&1 != 0 && t.mask&bit(sig) == 0 && p.actions.ignores(sig) {
			p.dropLocked(bit(sig))
		}
	}
	t.unsettled.Store(false)
}

// readTable returns the table if it has changed.
func (t *Task) readTable() (table actions, changed bool) {
	as, ctx := t.space(), t.call
	word, err := as.Load32(ctx, actionsAddr+vdso.EntryChanged)
	if err != nil || word == 0 {
		return table, false
	}
	var raw [len(table) * actionSize]byte
	if _, err := as.ReadAt(ctx, raw[:], actionsAddr+vdso.EntryActions); err != nil {
		return table, false
	}
	if err := as.Store32(ctx, actionsAddr+vdso.EntryChanged, 0); err != nil {
		return table, false
	}
	for sig := range table {
		b := raw[sig*actionSize:]
		word := func(i int) uint64 { return binary.LittleEndian.Uint64(b[8*i:]) }
		table[sig] = action{word(0), word(1), word(2), word(3)}
	}
	return table, true
}

const actionSize = 32 // of an action, in the table and in the call's argument

// publishAction writes an action that the kernel has set to the table.
func (t *Task) publishAction(sig int) {
	if !t.proc.mm.table {
		return
	}
	t.k.mu.Lock()
	act := t.proc.actions[sig]
	t.k.mu.Unlock()
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, act)
	if _, err := t.space().WriteAt(t.call, b.Bytes(), addr.GVA(actionsAddr+vdso.EntryActions+sig*actionSize)); err != nil {
		t.leaveTable() // no memory for the page
	}
}

// leaveTable has every further call come to the kernel, for as long as the
// program runs.
func (t *Task) leaveTable() {
	if !t.proc.mm.table {
		return
	}
	t.proc.mm.table = false
	// Without memory for the page: then there is none to store an action in either.
	_ = t.space().Store32(t.call, actionsAddr+vdso.EntryEnabled, 0)
}
