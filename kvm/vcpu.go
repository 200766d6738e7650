//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// vcpu is one virtual CPU: its descriptor, its kvm_run mapping and its page of
// the supervisor half. Between Runs it rests either in ring 0, after the `out`
// of a stub, or in ring 3, where a signal interrupted it.
//
// "Holder" below is the goroutine that took it from the pool.
type vcpu struct {
	id   int
	vm   *vm
	fd   int    // -1 when closed
	mem  []byte // the mapping of kvm_run
	run  *uRun  // in mem; the holder's, but for the word that kick stores
	page []byte // GDT, TSS and stacks; the holder's

	lstar addr.GVA // where SYSCALL leads; immutable once the host was probed

	inUser   bool   // rests in ring 3; holder
	segs     bool   // the guest has loaded data segments; holder
	scrub    bool   // segments to be reset on entry: another Context's; holder
	broken   bool   // must be reset before use; holder
	takeBack bool   // an exception may be on its way to the last thread; holder
	flushed  uint64 // TLB generation at the last load of CR3; holder

	// state says whether the vCPU may be executing the guest; see gate.go.
	state   atomic.Uint32
	tid     atomic.Int32 // the thread that entered; atomic
	preempt atomic.Bool  // the holder is to give it up; atomic

	owner  *Context  // whose vector state it has; Platform.mu
	holder *Context  // whose Run has it; Platform.mu
	space  *space    // whose code it runs or ran last; Platform.mu
	busy   bool      // has a holder, or is being handed to one; Platform.mu
	used   uint64    // Platform.clock when it was taken; Platform.mu
	taken  time.Time // when it was taken; Platform.mu
}

// newVCPU returns a vCPU that is not made yet, with its page of the supervisor
// half.
func newVCPU(m *vm, id int, page []byte, lstar addr.GVA) *vcpu {
	return &vcpu{id: id, vm: m, fd: -1, page: page, lstar: lstar}
}

// create makes the vCPU, and goes on where an earlier call has failed: KVM has
// no second vCPU of the same id.
func (v *vcpu) create() (err error) {
	if v.fd < 0 {
		if v.fd, err = v.vm.createVCPUFD(v.id); err != nil {
			return err
		}
	}
	if v.mem == nil {
		if v.mem, err = v.vm.mapRun(v.fd); err != nil {
			return err
		}
		v.run = runPage(v.mem)
		v.run.validRegs = syncAll
	}
	// CPUID first: it decides which bits of CR4, XCR0 and XSAVE are accepted.
	if _, err := ioctlPtr(v.fd, reqSetCPUID2, v.vm.sys.cpuid); err != nil {
		return opError("KVM_SET_CPUID2", err)
	}
	return v.reset()
}

// reset puts the vCPU to rest in ring 0, on no root, with nothing pending. The
// vector state is left to whoever takes it.
func (v *vcpu) reset() error {
	if v.run.exitReason != exitUnknown {
		v.completeIO()
	}
	var mpState uint32 // RUNNABLE
	if _, err := ioctlPtr(v.fd, reqSetMPState, &mpState); err != nil && err != unix.EINVAL && err != unix.ENXIO {
		// EINVAL: no interrupt controller in the kernel, so the state is constant.
		return opError("KVM_SET_MP_STATE", err)
	}
	s := &v.run.sregs
	if _, err := ioctlPtr(v.fd, reqGetSregs, s); err != nil {
		return opError("KVM_GET_SREGS", err)
	}
	startSregs(s, v.id, 0, v.vm.sys.cpuid.hasFSGSBASE())
	if _, err := ioctlPtr(v.fd, reqSetSregs, s); err != nil {
		return opError("KVM_SET_SREGS", err)
	}
	xcrs := &uXCRs{n: 1}
	xcrs.xcrs[0].value = v.vm.sys.xcr0
	if _, err := ioctlPtr(v.fd, reqSetXCRs, xcrs); err != nil {
		return opError(fmt.Sprintf("KVM_SET_XCRS %#x", v.vm.sys.xcr0), err)
	}
	if err := v.setMSRs(); err != nil {
		return err
	}
	if _, err := ioctlPtr(v.fd, reqSetDebugRegs, &uDebugRegs{dr6: 0xffff0ff0, dr7: 0x400}); err != nil {
		return opError("KVM_SET_DEBUGREGS", err)
	}
	regs := &uRegs{rflags: 2, rip: uint64(stubGVA + stubEntry)}
	if _, err := ioctlPtr(v.fd, reqSetRegs, regs); err != nil {
		return opError("KVM_SET_REGS", err)
	}
	if _, err := ioctlPtr(v.fd, reqSetEvents, &VCPUEvents{}); err != nil {
		return opError("KVM_SET_VCPU_EVENTS", err)
	}
	v.run.dirtyRegs = 0
	v.inUser, v.segs, v.scrub, v.takeBack, v.broken = false, false, false, false, false
	return nil
}

func (v *vcpu) setMSRs() error {
	msrs := startMSRs(v.lstar)
	if n, err := ioctlPtr(v.fd, reqSetMSRs, msrs); err != nil || n != int(msrs.n) {
		return opError(fmt.Sprintf("KVM_SET_MSRS (%d of %d set)", n, msrs.n), orInvalid(err))
	}
	return nil
}

func orInvalid(err error) error {
	if err == nil {
		return unix.EINVAL
	}
	return err
}

// load hands the vCPU a thread's registers and root for the next KVM_RUN.
//
// A new root comes with the registers. No instruction, not even one of a stub,
// is executed on the root that the vCPU rested on: that one may be retired by
// now, or be another table, or data. (A stub that loads CR3 was no faster: 38 µs a
// round trip against 36.)
//
// Preconditions:
//   - r.enterable().
//   - the vCPU's state is in and its gate was passed, so that root is current
//     and stays so.
func (v *vcpu) load(r *Regs, root addr.PFN, flush bool) {
	k, s, cr3 := &v.run.regs, &v.run.sregs, uint64(root.GPA())
	r.storeTo(k)
	v.run.dirtyRegs = syncRegs
	if s.cr3 != cr3 || s.fs.base != r.FSBase || s.gs.base != r.GSBase || v.scrub || flush && v.inUser {
		if v.scrub {
			s.ds, s.es, s.fs, s.gs = nullSegment, nullSegment, nullSegment, nullSegment
			v.scrub = false
		}
		if flush {
			startSregs(s, v.id, root, s.cr4&cr4FSGS != 0) // to ring 0: a stub flushes
			v.inUser = false
		}
		s.cr3, s.fs.base, s.gs.base = cr3, r.FSBase, r.GSBase
		v.run.dirtyRegs |= syncSregs
	}
	if v.takeBack {
		v.run.events = VCPUEvents{}
		v.run.dirtyRegs |= syncEvents
		v.takeBack = false
	}
	if v.inUser {
		k.rip, k.rsp, k.rflags = r.RIP, r.RSP, userFlags(r.RFLAGS)
		return
	}
	put := func(off int, x uint64) { binary.LittleEndian.PutUint64(v.page[off:], x) }
	put(offFrame, r.RIP)
	put(offFrame+8, selUserCode)
	put(offFrame+16, userFlags(r.RFLAGS))
	put(offFrame+24, r.RSP)
	put(offFrame+32, selUserData)
	k.rflags = 2
	k.rip = uint64(stubGVA + stubEntry)
	k.rsp = uint64(vcpuPageGVA(v.id) + offFrame)
	if flush {
		put(offFrame-8, r.RAX)
		k.rax = cr3
		k.rip = uint64(stubGVA + stubFlush)
		k.rsp -= 8
	}
}

// kvmRun is KVM_RUN, and takes note of where the vCPU rests afterwards.
func (v *vcpu) kvmRun() syscall.Errno {
	errno := ioctlRun(v.fd)
	s := &v.run.sregs
	v.inUser = s.cs.selector&3 == 3
	v.segs = s.ds.selector|s.es.selector|s.fs.selector|s.gs.selector != 0
	return errno
}

// entering reports whether the vCPU was stopped on the way to ring 3.
func (v *vcpu) entering() bool {
	off := v.run.regs.rip - uint64(stubGVA)
	return !v.inUser && (off == stubEntry || off >= stubFlush && off < stubEnd)
}

// completeIO lets KVM finish the instruction that exited, without running the
// guest: until then KVM would finish it in the middle of the next thread.
func (v *vcpu) completeIO() {
	v.run.dirtyRegs = 0
	atomic.StoreUint32(&v.run.interruptWindow, immediateExit)
	v.kvmRun()
	atomic.StoreUint32(&v.run.interruptWindow, 0)
}

// kick has the thread in KVM_RUN leave it. immediate_exit is for the thread
// that has not got there yet, the signal for the one that has; SIGURG, since the Go
// runtime handles it anyhow and a stray one does no harm.
func (v *vcpu) kick() {
	atomic.StoreUint32(&v.run.interruptWindow, immediateExit)
	if tid := v.tid.Load(); tid != 0 {
		unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
	}
}

// close is idempotent, and may be called again for what it could not do.
func (v *vcpu) close() error {
	var errs []error
	if v.mem != nil {
		err := unmapMemory(v.mem)
		if err == nil {
			v.mem, v.run = nil, nil
		}
		errs = append(errs, err)
	}
	if v.fd >= 0 {
		errs = append(errs, closeFD(v.fd))
		v.fd = -1
	}
	return opError("close vCPU", errors.Join(errs...))
}
