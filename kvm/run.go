//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// runAs is Run, on anything that has a root.
func (p *Platform) runAs(ctx context.Context, as rooted, c *Context) (Exit, error) {
	if !c.running.CompareAndSwap(false, true) {
		return Exit{}, opError("Run", ErrBusy)
	}
	defer c.running.Store(false)
	c.watch(ctx)
	if c.told() {
		return c.kickedExit(ctx, 0)
	}
	if !c.Regs.enterable() {
		return Exit{Kind: ExitException, Vector: vectorGP}, nil
	}
	var spent time.Duration
	for {
		v, s, err := p.acquire(c, as)
		if err != nil {
			return Exit{}, err
		}
		if v == nil {
			return c.kickedExit(ctx, spent)
		}
		// The thread in KVM_RUN is the one that a kick signals. Who waits for a
		// vCPU needs none.
		runtime.LockOSThread()
		v.tid.Store(int32(unix.Gettid()))
		exit, err := p.cycle(v, s, c, &spent)
		if err != nil {
			v.broken = true
		}
		p.release(v, c)
		runtime.UnlockOSThread()
		if err != nil {
			return Exit{}, err
		}
		if exit.Kind != ExitKicked {
			exit.RunTime = spent
			return exit, nil
		}
		if c.told() {
			return c.kickedExit(ctx, spent)
		}
		// Preempted: queue for a vCPU again.
	}
}

// kickedExit consumes a kick. The end of ctx is an error as well, so that a
// loop of Runs ends by itself.
func (c *Context) kickedExit(ctx context.Context, spent time.Duration) (Exit, error) {
	c.kicked.Store(false)
	return Exit{Kind: ExitKicked, RunTime: spent}, context.Cause(ctx)
}

// cycle runs c on v until an exit that is the caller's; ExitKicked if it was
// told to leave or the vCPU is wanted elsewhere.
func (p *Platform) cycle(v *vcpu, s *space, c *Context, spent *time.Duration) (Exit, error) {
	for {
		if !p.pass(v, s, c) {
			return Exit{Kind: ExitKicked}, nil
		}
		if p.stale.Load() {
			if err := p.heal(); err != nil {
				p.leave(v)
				return Exit{}, err
			}
		}
		root := s.as.Root()
		if root == 0 {
			p.leave(v)
			return Exit{}, opError("Run", ErrClosed)
		}
		generation := p.generation.Load()
		flush := max(s.generation.Load(), p.flushed.Load()) > v.flushed
		v.load(&c.Regs, root, flush && p.traits.invalidate == byFlush)
		start := time.Now()
		errno := p.execute(v, s, c)
		*spent += time.Since(start)
		if flush && !v.entering() {
			v.flushed = generation
		}
		exit, done, err := p.decode(v, c, errno)
		p.leave(v)
		if done || err != nil {
			return exit, err
		}
		if v.preempt.Load() || c.told() {
			return Exit{Kind: ExitKicked}, nil
		}
	}
}

// execute enters the guest until it exits, or until there is a reason to leave
// it (EINTR). A signal without a reason is the runtime's: go on.
func (p *Platform) execute(v *vcpu, s *space, c *Context) syscall.Errno {
	for {
		atomic.StoreUint32(&v.run.interruptWindow, 0)
		if p.mustLeave(v, s, c) {
			if v.run.dirtyRegs == 0 {
				return unix.EINTR
			}
			// What was loaded goes in without running, so that the vCPU is in one
			// state and not between two.
			atomic.StoreUint32(&v.run.interruptWindow, immediateExit)
		}
		errno := v.kvmRun()
		if errno != unix.EINTR && errno != unix.EAGAIN && v.run.exitReason != exitIntr {
			return errno
		}
		if p.mustLeave(v, s, c) {
			return unix.EINTR
		}
	}
}

// decode turns where the vCPU stopped into an exit and c.Regs. done is false
// if there is nothing for the caller in it.
func (p *Platform) decode(v *vcpu, c *Context, errno syscall.Errno) (exit Exit, done bool, err error) {
	if errno == unix.EINTR {
		return p.interrupted(v, c)
	}
	if errno == unix.EFAULT {
		// What is mapped in the slot is not there: a file that somebody has cut short,
		// or no memory on the host. Newer kernels say where.
		err = fmt.Errorf("%w: %w", guestmem.ErrBus, errno)
		if v.run.exitReason == exitMemoryFault {
			err = fmt.Errorf("at guest-physical %#x: %w", v.run.exit[1], err)
		}
		return Exit{}, false, opError("KVM_RUN", err)
	}
	if errno != 0 {
		return Exit{}, false, opError("KVM_RUN", errno)
	}
	switch reason := v.run.exitReason; {
	case reason == exitIO && !v.inUser:
		return p.stubExit(v, c, v.run.regs.rip)
	case reason == exitIO || reason == exitHLT && v.inUser:
		// in, out, hlt of ring 3: #GP on a processor, an exit where KVM does not
		// check. The registers are those before KVM finishes the instruction.
		c.Regs.capture(v)
		v.completeIO()
		return Exit{Kind: ExitException, Vector: vectorGP}, true, nil
	case reason == exitInternalError && v.inUser:
		// An instruction that KVM cannot emulate (x87 on an I/O page, and the
		// like): to the guest, one that does not exist.
		c.Regs.capture(v)
		v.broken = true
		return Exit{Kind: ExitException, Vector: vectorUD}, true, nil
	case reason == exitFailEntry:
		err = fmt.Errorf("%w: entry failed, hardware reason %#x", ErrGuestState, v.run.exit[0])
	case reason == exitInternalError:
		err = fmt.Errorf("%w: KVM internal error, suberror %d, ring 0 at %#x", ErrGuestState, uint32(v.run.exit[0]), v.run.regs.rip)
	case reason == exitShutdown:
		err = fmt.Errorf("%w: shutdown (triple fault), RIP %#x", ErrGuestState, v.run.regs.rip)
	case reason == exitMMIO:
		err = fmt.Errorf("%w: access to guest-physical %#x, outside all memory", ErrGuestState, v.run.exit[0])
	default:
		err = fmt.Errorf("%w: exit reason %d, RIP %#x", ErrGuestState, reason, v.run.regs.rip)
	}
	return Exit{}, false, opError("KVM_RUN", err)
}

// capture takes the registers of a vCPU that is in ring 3.
func (r *Regs) capture(v *vcpu) {
	k, s := &v.run.regs, &v.run.sregs
	r.loadFrom(k)
	r.RIP, r.RSP, r.RFLAGS = k.rip, k.rsp, userFlags(k.rflags)
	r.FSBase, r.GSBase = s.fs.base, s.gs.base
}

// interrupted is decode for a vCPU that a kick stopped anywhere.
func (p *Platform) interrupted(v *vcpu, c *Context) (Exit, bool, error) {
	rip := v.run.regs.rip
	if v.entering() {
		return Exit{}, false, nil // c.Regs still holds
	}
	if !v.inUser {
		return p.stubExit(v, c, rip)
	}
	c.Regs.capture(v)
	if p.traits.syscall == byFault && rip == uint64(stubGVA+stubSyscall) {
		// The fault at LSTAR may be on its way; it has said what it had to say.
		v.takeBack = true
		return c.syscallExit()
	}
	return v.pendingExit()
}

// pendingExit deals with an exception that KVM was about to deliver when it was
// interrupted. It must not reach the next thread, so the next entry takes it back
// (even if none is seen here: KVM hides what it means to raise again). Faults,
// and int3, come again when the instruction does; a single step would be lost,
// so it is delivered here.
func (v *vcpu) pendingExit() (Exit, bool, error) {
	v.takeBack = true
	e := &v.run.events
	if e.ExceptionInjected|e.ExceptionPending != 0 && e.ExceptionNr == vectorDB {
		return Exit{Kind: ExitException, Vector: vectorDB}, true, nil
	}
	return Exit{}, false, nil
}

// stubExit is an exit of the stub at rip.
func (p *Platform) stubExit(v *vcpu, c *Context, rip uint64) (Exit, bool, error) {
	off := rip - uint64(stubGVA)
	if off >= stubSyscall && off < stubEntry {
		k := &v.run.regs
		c.Regs.loadFrom(k)
		c.Regs.RSP = k.rsp
		c.Regs.FSBase, c.Regs.GSBase = v.run.sregs.fs.base, v.run.sregs.gs.base
		return c.syscallExit()
	}
	if off >= nVectors*stubStride {
		return Exit{}, false, opError("KVM_RUN", fmt.Errorf("%w: ring 0 at %#x, outside the stubs", ErrGuestState, rip))
	}
	return p.exceptionExit(v, c, uint8(off/stubStride))
}

// syscallExit is the state after SYSCALL as Linux sees it: where to return to is
// in RCX and R11.
func (c *Context) syscallExit() (Exit, bool, error) {
	c.Regs.RIP, c.Regs.RFLAGS = c.Regs.RCX, userFlags(c.Regs.R11)
	return Exit{Kind: ExitSyscall}, true, nil
}

// exceptionExit reads the frame that the exception left on the stack.
func (p *Platform) exceptionExit(v *vcpu, c *Context, vector uint8) (Exit, bool, error) {
	k, s := &v.run.regs, &v.run.sregs
	size, code := uint64(frameSize), uint32(0)
	off := k.rsp - uint64(vcpuPageGVA(v.id))
	if pushesCode(vector) {
		size += 8
	}
	if off > addr.PageSize-size {
		return Exit{}, false, opError("KVM_RUN", fmt.Errorf("%w: exception %d with stack %#x", ErrGuestState, vector, k.rsp))
	}
	frame := v.page[off : off+size]
	if pushesCode(vector) {
		code = binary.LittleEndian.Uint32(frame)
		frame = frame[8:]
	}
	word := func(i int) uint64 { return binary.LittleEndian.Uint64(frame[8*i:]) }
	if cs := word(1); cs&3 != 3 {
		return Exit{}, false, opError("KVM_RUN", fmt.Errorf("%w: exception %d (error %#x, CR2 %#x) in ring 0 at %#x", ErrGuestState, vector, code, s.cr2, word(0)))
	}
	r := &c.Regs
	r.loadFrom(k)
	r.RIP, r.RFLAGS, r.RSP = word(0), userFlags(word(2)), word(3)
	r.FSBase, r.GSBase = s.fs.base, s.gs.base
	if vector != vectorPF {
		return Exit{Kind: ExitException, Vector: vector, ErrorCode: code}, true, nil
	}
	if p.isSyscall(addr.GVA(s.cr2), addr.GVA(r.RIP), code) {
		return c.syscallExit()
	}
	return Exit{Kind: ExitPageFault, Vector: vector, ErrorCode: code, Access: faultAccess(code), Addr: addr.GVA(s.cr2)}, true, nil
}

// isSyscall reports whether a page fault is how SYSCALL arrives: at the gate,
// or at an entry that is not there.
func (p *Platform) isSyscall(at, rip addr.GVA, code uint32) bool {
	if p.traits.syscall != byFault || at != rip || code&^pfPresent != pfUser|pfExecute {
		return false
	}
	return at == SyscallGate || at == p.lstar
}
