//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual CPU of a VM. One goroutine at a time Runs it; Kick may be
// called from any, and so may the state methods while no Run is in progress or
// the VM is paused.
//
// A VCPU does not belong to a goroutine or a thread: if the one that ran it
// ends, by Goexit or because it was locked to a thread that dies, another goes on.
//
// Methods that name an ioctl of KVM's, and State and SetState, first complete the last
// exit, whose Data is to be filled by then if it was a read. Errors of all: ErrBusy while
// the guest runs; ErrUnfinished in the middle of an access of several parts; ErrClosed;
// the errno of the ioctl.
type VCPU struct {
	vm *VM
	id int

	running atomic.Bool   // a Run is in progress
	kicked  atomic.Bool   // and not yet returned for
	state   atomic.Uint32 // see machine_gate.go
	tid     atomic.Int32  // the thread in Run; 0: none

	// mu is held by whoever uses what follows: Run, but while it is parked; a state
	// method; close.
	mu       sync.Mutex
	fd       int    // -1 when closed; mu
	mem      []byte // the mapping of kvm_run; mu, and poking to unmap it
	run      *uRun  // in mem; mu or poking
	window   uint32 // request_interrupt_window; mu
	data     []byte // of the last exit: IO or MMIO; mu
	pending  pendingAccess
	queued   bool         // queue has an exit that the next Run returns; mu
	queue    VCPUExit     // mu
	cpuid    []CPUIDEntry // as set last; not changed in place; mu
	hasRun   bool         // or had state set: no longer as KVM made it; mu
	halfSet  error        // a SetState that failed and could not be undone; mu
	ring     *dirtyRingBuffer
	unwatch  func() bool     // takes the hook off ctx; mu
	done     <-chan struct{} // of the ctx that the hook is on; mu
	xsaveLen int

	// poking keeps the mapping while someone else stores into it.
	poking sync.Mutex
}

// NewVCPU creates vCPU id, a number below KVM_CAP_MAX_VCPU_ID that no other has
// and that is its APIC id. The CPUID that the VM's policy allows is set; the
// rest is as after a reset: real mode, at the reset vector. A vCPU lives as long
// as its VM.
//
// Errors: unix.EEXIST for an id in use, unix.EINVAL for too many; ErrClosed. After
// any other error a second call with the same id goes on where the first failed.
//
// KVM_CREATE_VCPU, KVM_SET_CPUID2.
func (vm *VM) NewVCPU(id int) (v *VCPU, err error) {
	err = vm.use("NewVCPU", func(int) error {
		vm.mu.Lock()
		defer vm.mu.Unlock()
		if v = vm.halfMade[id]; v == nil {
			v = &VCPU{vm: vm, id: id, fd: -1, xsaveLen: vm.kvm.xsaveLen}
		}
		err := v.makeLocked()
		switch {
		case err == nil:
			delete(vm.halfMade, id)
			vm.vcpus = append(vm.vcpus, v)
		case v.fd >= 0:
			if vm.halfMade == nil {
				vm.halfMade = make(map[int]*VCPU)
			}
			vm.halfMade[id] = v
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// makeLocked does what is not done yet of a vCPU's creation.
//
// Preconditions: vm.mu is held, and the VM's descriptor stays open.
func (v *VCPU) makeLocked() (err error) {
	vm := v.vm
	if v.fd < 0 {
		if v.fd, err = vm.kvm.createVCPUFD(v.id); err != nil {
			return err
		}
	}
	if v.mem == nil {
		if v.mem, err = vm.kvm.mapRun(v.fd); err != nil {
			return err
		}
		v.run = runPage(v.mem)
	}
	if err := v.setCPUID(vm.cpuidOf(v.id)); err != nil {
		return err
	}
	if vm.dirty != nil && v.ring == nil {
		v.ring, err = vm.dirty.addVCPU(v.fd)
	}
	return err
}

// ID returns the vCPU's number, which is its APIC id.
func (v *VCPU) ID() int { return v.id }

// VM returns the VM that the vCPU is of.
func (v *VCPU) VM() *VM { return v.vm }

// lock takes the vCPU for a state method.
//
// Errors: ErrBusy if a Run has it and the VM is not paused; ErrClosed.
func (v *VCPU) lock(op string) error {
	for spins := 0; !v.mu.TryLock(); spins++ {
		if v.isIn() && v.vm.gate.stops.Load() == 0 {
			return opError(op, ErrBusy)
		}
		// Its holder is on the way to the gate, out of Run, or another state method.
		if spins < 100 {
			runtime.Gosched()
		} else {
			time.Sleep(20 * time.Microsecond)
		}
	}
	if v.fd < 0 {
		v.mu.Unlock()
		return opError(op, ErrClosed)
	}
	return nil
}

// access calls f with the vCPU out of the guest and its last exit completed.
func (v *VCPU) access(op string, f func() error) error {
	if err := v.lock(op); err != nil {
		return err
	}
	defer v.mu.Unlock()
	if err := v.settle(); err != nil {
		return opError(op, err)
	}
	return opError(op, f())
}

// vcpuIoctl makes a request of a vCPU whose argument is a structure.
//
// Preconditions: mu is held.
func vcpuIoctl[T any](v *VCPU, op string, req uintptr, arg *T) error {
	return opError(op, retryEINTR(func() error {
		_, err := ioctlPtr(v.fd, req, arg)
		return err
	}))
}

// setCPUID is KVM_SET_CPUID2.
//
// Preconditions: mu is held, or nobody else has v.
func (v *VCPU) setCPUID(entries []CPUIDEntry) error {
	list := &uCPUIDList{n: uint32(len(entries))}
	if copy(list.entries[:], entries) < len(entries) {
		return opError("KVM_SET_CPUID2", fmt.Errorf("%w: %d entries, at most %d", unix.E2BIG, len(entries), maxCPUID))
	}
	if err := vcpuIoctl(v, "KVM_SET_CPUID2", reqSetCPUID2, list); err != nil {
		return err
	}
	v.cpuid = slices.Clone(entries)
	return nil
}

// watch has ctx's end poke the Run. The hook stays on ctx until a Run with
// another one, since putting it there allocates.
func (v *VCPU) watch(ctx context.Context) {
	if ctx.Done() == v.done {
		return
	}
	if v.unwatch != nil {
		v.unwatch()
		v.unwatch = nil
	}
	if v.done = ctx.Done(); v.done != nil {
		v.unwatch = context.AfterFunc(ctx, v.poke)
	}
}

// close is idempotent, and waits for a Run to leave.
func (v *VCPU) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fd < 0 {
		return nil
	}
	if v.unwatch != nil {
		v.unwatch()
		v.unwatch, v.done = nil, nil
	}
	v.poking.Lock()
	mem := v.mem
	v.mem, v.run = nil, nil
	v.poking.Unlock()
	var errMap error
	if mem != nil {
		errMap = unmapMemory(mem)
	}
	err := closeFD(v.fd)
	v.fd = -1
	return opError("close vCPU", errors.Join(errMap, err))
}
