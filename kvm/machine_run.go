//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"syscall"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// pendingAccess says what of the last exit KVM waits for.
type pendingAccess struct {
	kind   VMExitKind // VMExitIO or VMExitMMIO; VMExitUnknown: nothing
	isRead bool       // data is to be handed over
	off    uint64     // of IO: where, in the mapping of kvm_run
}

// Run runs the guest until its next exit. A kick, the end of ctx and a Pause of
// the VM reach it at every point. A full dirty ring is harvested and not an exit.
//
// The answer to a read (VMExitIO or VMExitMMIO with Access Read) goes into the
// exit's Data before the next Run or state access.
//
// The end of ctx is VMExitKicked with its cause as error. Other errors: ErrBusy
// if a Run is in progress; ErrClosed; ErrHostState after a failed SetState that left the vCPU in
// between; the errno of KVM_RUN where it is no exit. The vCPU is unharmed by
// each. It does not allocate once a vCPU has run with a given ctx, but for the rare exits
// that carry Details.
//
// A goroutine that does nothing but Run does well to lock itself to its OS thread:
// older kernels wait for an RCU grace period whenever a vCPU changes threads.
//
// KVM_RUN.
func (v *VCPU) Run(ctx context.Context) (VCPUExit, error) {
	if !v.running.CompareAndSwap(false, true) {
		return VCPUExit{}, opError("Run", ErrBusy)
	}
	defer v.running.Store(false)
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fd < 0 {
		return VCPUExit{}, opError("Run", ErrClosed)
	}
	v.watch(ctx)
	// The thread in KVM_RUN is the one that a kick signals.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	v.tid.Store(int32(unix.Gettid()))
	defer v.tid.Store(0)
	// Whatever ends this goroutine, nobody goes on waiting for the vCPU.
	defer v.leave()
	return v.loop(ctx)
}

// loop enters the guest until there is an exit for the caller.
//
// Preconditions: mu is held, and held again when it returns.
func (v *VCPU) loop(ctx context.Context) (VCPUExit, error) {
	for {
		if v.fd < 0 || v.vm.closing.Load() {
			return VCPUExit{}, opError("Run", ErrClosed)
		}
		// Cleared before the reasons are looked at: who gives one afterwards
		// stores it again.
		atomic.StoreUint32(&v.run.interruptWindow, v.window)
		if v.kicked.Swap(false) {
			return VCPUExit{Kind: VMExitKicked, Reason: exitIntr}, nil
		}
		if ctx.Err() != nil {
			return VCPUExit{Kind: VMExitKicked, Reason: exitIntr}, context.Cause(ctx)
		}
		if v.queued {
			return v.takeQueued(), nil
		}
		if v.halfSet != nil {
			return VCPUExit{}, opError("Run", v.halfSet)
		}
		if !v.pass() {
			v.mu.Unlock()
			v.park(ctx)
			v.mu.Lock()
			continue
		}
		errno := v.enter()
		v.leave()
		exit, done, err := v.decode(errno)
		if done || err != nil {
			return exit, err
		}
	}
}

func (v *VCPU) takeQueued() VCPUExit {
	e := v.queue
	v.queue, v.queued = VCPUExit{}, false
	return e
}

// enter hands over the answer of the last exit and is KVM_RUN.
func (v *VCPU) enter() syscall.Errno {
	v.answer()
	v.hasRun = true
	return ioctlRun(v.fd)
}

// answer copies Data of a read to where KVM looks for it. After an entry that
// ends in EINTR it may be done again, with the same bytes.
func (v *VCPU) answer() {
	p := &v.pending
	if p.isRead {
		if p.kind == VMExitIO {
			copy(v.mem[p.off:], v.data)
		} else {
			var b [8]byte
			copy(b[:], v.data)
			v.run.exit[1] = binary.LittleEndian.Uint64(b[:])
		}
	}
}

// settle completes the last exit, so that the vCPU's state is one between two
// instructions. KVM would otherwise finish the instruction in the middle of the
// state that is loaded.
//
// Errors: ErrUnfinished if the instruction has another part, which the next Run
// returns.
//
// Preconditions: mu is held.
func (v *VCPU) settle() error {
	if v.queued {
		return ErrUnfinished
	}
	if v.pending.kind == VMExitUnknown {
		return nil
	}
	for {
		atomic.OrUint32(&v.run.interruptWindow, immediateExit)
		errno := v.enter()
		if errno == unix.EINTR {
			v.pending = pendingAccess{}
			return nil
		}
		exit, done, err := v.decode(errno)
		if err != nil {
			return err
		}
		if done {
			v.queue, v.queued = exit, true
			return ErrUnfinished
		}
	}
}

// decode says what an entry ended in; done is false where Run goes on.
func (v *VCPU) decode(errno syscall.Errno) (exit VCPUExit, done bool, err error) {
	switch errno {
	case 0:
	case unix.EINTR, unix.EAGAIN:
		// A kick, or the runtime's own signal: the loop looks for a reason. EAGAIN: an
		// application processor that has just had its INIT. The access of the last
		// exit is still pending where KVM_RUN did not get as far, and answered again.
		return VCPUExit{}, false, nil
	case unix.EFAULT, unix.EHWPOISON:
		v.pending = pendingAccess{}
		return v.memoryFault(errno), true, nil
	default:
		return VCPUExit{}, false, opError("KVM_RUN", errno)
	}
	v.pending = pendingAccess{}
	exit = VCPUExit{Reason: v.run.exitReason}
	x := &v.run.exit
	switch exit.Reason {
	case exitIntr:
		return exit, false, nil
	case exitIO:
		v.decodeIO(&exit)
	case exitMMIO:
		v.decodeMMIO(&exit)
	case exitHLT:
		exit.Kind = VMExitHLT
	case exitShutdown:
		exit.Kind = VMExitShutdown
	case exitSystemEvent:
		exit.Kind, exit.Code = VMExitSystemEvent, uint64(uint32(x[0]))
		exit.Details = v.words(x[0]>>32, 1)
	case exitFailEntry:
		exit.Kind, exit.Code = VMExitFailEntry, x[0]
	case exitInternalError:
		v.decodeInternal(&exit)
	case exitIRQWindow:
		exit.Kind, v.window = VMExitIRQWindow, 0
	case exitDebug:
		exit.Kind, exit.Details = VMExitDebug, v.words(4, 0)
	case exitDirtyRingFull:
		if v.vm.dirty.makeRoom(v) == nil || v.vm.closing.Load() {
			return exit, false, nil
		}
		exit.Kind = VMExitDirtyRingFull
	default:
		exit.Kind, exit.Details = VMExitUnknown, v.words(8, 0)
	}
	return exit, true, nil
}

// decodeIO is struct { u8 direction, size; u16 port; u32 count; u64 offset }.
func (v *VCPU) decodeIO(e *VCPUExit) {
	x := &v.run.exit
	e.Kind, e.Size, e.Port, e.Count = VMExitIO, uint8(x[0]>>8), uint16(x[0]>>16), uint32(x[0]>>32)
	n, off := uint64(e.Size)*uint64(e.Count), x[1]
	if off > uint64(len(v.mem)) || n > uint64(len(v.mem))-off {
		panic("kvm: the data of an exit lies outside the mapping of kvm_run")
	}
	isRead := uint8(x[0]) != ioDirectionOut
	v.exitData(e, v.mem[off:off+n], isRead)
	v.pending = pendingAccess{kind: VMExitIO, isRead: isRead, off: off}
}

// decodeMMIO is struct { u64 address; u8 data[8]; u32 length; u8 isWrite }.
func (v *VCPU) decodeMMIO(e *VCPUExit) {
	x := &v.run.exit
	e.Kind, e.GPA, e.HasGPA, e.Count = VMExitMMIO, addr.GPA(x[0]), true, 1
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], x[1])
	e.Size = uint8(min(uint32(x[2]), 8))
	isRead := uint8(x[2]>>32) == 0
	v.exitData(e, b[:e.Size], isRead)
	v.pending = pendingAccess{kind: VMExitMMIO, isRead: isRead}
}

// exitData gives the exit its Data: a copy, so that nothing of the embedder's
// leads into a mapping that Close takes away.
func (v *VCPU) exitData(e *VCPUExit, b []byte, isRead bool) {
	v.data = append(v.data[:0], b...)
	e.Data, e.Access = v.data, guestmem.Write
	if isRead {
		clear(v.data)
		e.Access = guestmem.Read
	}
}

// memoryFault is KVM_EXIT_MEMORY_FAULT { u64 flags, gpa, size }, or a bare EFAULT
// of an older kernel.
func (v *VCPU) memoryFault(errno syscall.Errno) VCPUExit {
	e := VCPUExit{Kind: VMExitMemoryFault, Reason: v.run.exitReason, Errno: errno}
	if e.Reason == exitMemoryFault {
		e.GPA, e.HasGPA = addr.GPA(v.run.exit[1]), true
	}
	return e
}

// decodeInternal is struct { u32 suberror, nData; u64 data[16] }, where a failed
// emulation has { u64 flags; u8 size, bytes[15] } for data.
func (v *VCPU) decodeInternal(e *VCPUExit) {
	x := &v.run.exit
	e.Kind, e.Code = VMExitInternalError, uint64(uint32(x[0]))
	e.Details = v.words(x[0]>>32, 1)
	if e.Code != internalErrEmulation {
		return
	}
	if len(e.Details) >= 3 && e.Details[0]&emulationHasBytes != 0 {
		var b [16]byte
		binary.LittleEndian.PutUint64(b[:], e.Details[1])
		binary.LittleEndian.PutUint64(b[8:], e.Details[2])
		e.Instruction = append([]byte(nil), b[1:1+min(b[0], 15)]...)
	}
	if len(e.Instruction) == 0 {
		e.Instruction = v.instruction()
	}
}

// words copies n words of the exit's details.
func (v *VCPU) words(n uint64, from int) []uint64 {
	x := v.run.exit[from:]
	return append([]uint64(nil), x[:min(n, uint64(len(x)))]...)
}

// instruction reads the bytes at RIP through the guest's tables, as many of 15
// as can be read.
func (v *VCPU) instruction() []byte {
	var r GeneralRegs
	var s SpecialRegs
	if vcpuIoctl(v, "KVM_GET_REGS", reqGetRegs, &r) != nil || v.getSregs(&s) != nil {
		return nil
	}
	at := r.RIP + s.CS.Base
	b := make([]byte, 0, 15)
	for len(b) < cap(b) {
		linear := at + uint64(len(b))
		t := uTranslation{linear: linear}
		if vcpuIoctl(v, "KVM_TRANSLATE", reqTranslate, &t) != nil || t.valid == 0 {
			break
		}
		n := min(uint64(cap(b)-len(b)), addr.PageSize-linear%addr.PageSize)
		part := make([]byte, n)
		if _, err := v.vm.mem.ReadAt(part, addr.GPA(t.physical)); err != nil {
			break
		}
		b = append(b, part...)
	}
	return b
}
