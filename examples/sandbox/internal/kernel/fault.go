//go:build linux && amd64

package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// pageFault has guestmem resolve a fault, or signals what Linux would.
func (t *Task) pageFault(exit kvm.Exit) {
	t.k.stats.fault(exit.Access)
	err := t.fault(exit.Addr, exit.Access)
	if errors.Is(err, guestmem.ErrNoMemory) && t.k.objects.shrink() {
		err = t.fault(exit.Addr, exit.Access)
	}
	if err == nil {
		t.proc.usage.faults.Add(1)
		if t.replays() {
			t.k.again.Load().working.add(exit.Addr, exit.Access)
		}
		return
	}
	t.k.stats.faultsRefused.Add(1)
	t.trap = trapOf(exit, uint64(exit.Addr))
	info := sigInfo{sig: int(unix.SIGSEGV), code: segvMapErr, addr: uint64(exit.Addr)}
	switch {
	case errors.Is(err, guestmem.ErrNoMemory):
		t.outOfMemory()
		return
	case t.k.ctx.Err() != nil:
		return // the sandbox is ending
	case t.vsyscall(exit):
		return
	case t.call.Err() != nil:
		return // the task is ending
	case errors.Is(err, guestmem.ErrPoison):
		info.sig, info.code = int(unix.SIGBUS), busMCEErrAR
	case errors.Is(err, guestmem.ErrBus):
		info.sig, info.code = int(unix.SIGBUS), busAdrErr
	case errors.Is(err, guestmem.ErrAccess):
		info.code = segvAccErr
	case errors.Is(err, guestmem.ErrNotMapped):
	default: // the object's data cannot be read
		info.sig, info.code = int(unix.SIGBUS), busAdrErr
	}
	t.forceSignal(info, false)
}

func (t *Task) fault(at addr.GVA, access guestmem.Access) error {
	if t.k.Profile != nil {
		return t.profiledFault(at, access)
	}
	for {
		w, err := t.limitedSpace().TryFault(t.call, at, access)
		if w == nil {
			return err
		}
		// As under Linux, a signal is taken first, and then the access made again.
		if t.sleep(w.Done(), nil) != nil {
			w.Cancel()
			return nil
		}
	}
}

// outOfMemory kills the process that asked for what is not there. Linux would
// pick the largest; here the one that asks is the one that grows.
func (t *Task) outOfMemory() {
	t.k.stats.outOfMemory.Add(1)
	t.k.say("out of memory: killed process %d (%s); -mem gives the guest more", t.proc.pid, t.comm())
	t.die(int(unix.SIGKILL))
}

func (t *Task) comm() string {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	return t.name
}

// Exceptions of the processor.
const (
	vectorDE, vectorDB, vectorBP, vectorOF, vectorBR = 0, 1, 3, 4, 5
	vectorUD, vectorNP, vectorSS, vectorGP           = 6, 11, 12, 13
	vectorMF, vectorAC, vectorXM                     = 16, 17, 19
)

// exception turns an exception into the signal that Linux sends for it.
func (t *Task) exception(exit kvm.Exit) {
	rip := t.cpu.Regs.RIP
	info := sigInfo{sig: int(unix.SIGSEGV), code: siKernel} // #GP and the rest
	t.trap = trapOf(exit, t.trap.cr2)
	switch exit.Vector {
	case vectorDE:
		info = sigInfo{sig: int(unix.SIGFPE), code: fpeIntDiv, addr: rip}
	case vectorDB:
		info = sigInfo{sig: int(unix.SIGTRAP), code: trapTrace, addr: rip}
	case vectorBP:
		info = sigInfo{sig: int(unix.SIGTRAP), code: siKernel}
	case vectorUD:
		if n, ok := t.intNumber(rip); ok {
			const inIDT = 2
			t.trap.vector, t.trap.code = vectorGP, uint64(n)<<3|inIDT
			break
		}
		info = sigInfo{sig: int(unix.SIGILL), code: illIllOpn, addr: rip}
	case vectorNP, vectorSS:
		info = sigInfo{sig: int(unix.SIGBUS), code: siKernel}
	case vectorMF, vectorXM:
		info = sigInfo{sig: int(unix.SIGFPE), code: t.floatingCode(exit.Vector), addr: rip}
	case vectorAC:
		info = sigInfo{sig: int(unix.SIGBUS), code: busAdrAln}
	}
	t.forceSignal(info, false)
}

// intNumber reports whether the instruction is "int n", which is #GP on a processor
// and #UD where KVM emulates it.
func (t *Task) intNumber(rip uint64) (n byte, ok bool) {
	var code [2]byte
	return code[1], t.readGuest(code[:], rip) == nil && code[0] == 0xcd
}

// floatingCode says which of the exceptions that are not masked it was, from the
// state of the unit that had it: the one that Linux would name.
func (t *Task) floatingCode(vector uint8) int {
	x, err := t.cpu.XSave()
	if err != nil {
		return fpeFltInv
	}
	const controlAt, statusAt, mxcsrAt, maskShift = 0, 2, 24, 7
	status, masked := uint32(binary.LittleEndian.Uint16(x[statusAt:])), uint32(binary.LittleEndian.Uint16(x[controlAt:]))
	if vector == vectorXM {
		status = binary.LittleEndian.Uint32(x[mxcsrAt:])
		masked = status >> maskShift
	}
	switch raised := status &^ masked; {
	case raised&0x01 != 0:
		return fpeFltInv
	case raised&0x04 != 0:
		return fpeFltDiv
	case raised&0x08 != 0:
		return fpeFltOvf
	case raised&0x12 != 0: // a denormal operand too
		return fpeFltUnd
	case raised&0x20 != 0:
		return fpeFltRes
	}
	return fpeFltInv
}

// The three calls of the vsyscall page, which is not mapped: very old static
// programs jump there, and find gettimeofday, time and getcpu.
const (
	vsyscallPage = 0xffff_ffff_ff60_0000
	vsyscallStep = 0x400
)

// vsyscall does what the instructions at a vsyscall address would have done.
func (t *Task) vsyscall(exit kvm.Exit) bool {
	regs := &t.cpu.Regs
	off := uint64(exit.Addr) - vsyscallPage
	if exit.Access&guestmem.Execute == 0 || regs.RIP != uint64(exit.Addr) || off%vsyscallStep != 0 || off/vsyscallStep > 2 {
		return false
	}
	back, err := get[uint64](t, regs.RSP)
	if err != nil {
		return false
	}
	call := []handler{sysGettimeofday, sysTime, sysGetcpu}[off/vsyscallStep]
	ret, err := call(t, args{regs.RDI, regs.RSI, regs.RDX})
	if err != nil {
		ret = errnoResult(err)
	}
	regs.RAX, regs.RIP = ret, back
	regs.RSP += 8
	return true
}

// timedFork is AddressSpace.Fork with its time taken, tried again without the
// cached files if memory is short.
func (k *Kernel) timedFork(ctx context.Context, as *guestmem.AddressSpace) (*guestmem.AddressSpace, error) {
	for {
		began := time.Now()
		child, err := as.ForkContext(ctx)
		if err == nil {
			k.stats.fork(time.Since(began))
			return child, nil
		}
		if !errors.Is(err, guestmem.ErrNoMemory) || !k.objects.shrink() {
			return nil, fmt.Errorf("%w: %w", unix.ENOMEM, err)
		}
	}
}
