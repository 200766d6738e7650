//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// VM is a whole virtual machine over a Memory: memory slots that follow its
// regions, vCPUs, interrupt controllers, and what of its memory is dirty. Safe
// for concurrent use. The embedder drives its vCPUs, one goroutine each.
//
// Methods that name an ioctl of KVM's, or that say no other errors, fail with ErrClosed
// and with the errno of the ioctl.
type VM struct {
	sys    *System
	mem    *guestmem.Memory
	kvm    *vm
	o      VMOptions
	cpuid  []CPUIDEntry // what vCPU 0 is shown; immutable
	slots  *SlotTable
	dirty  *dirtyTracker // nil with DirtyNone
	gate   vmGate
	memfds memfdTable
	msrs   atomic.Pointer[msrPlan] // nil until a vCPU's state was asked for

	closing atomic.Bool // no Run enters any more

	// life is held shared by whoever uses the VM's descriptor, and exclusively
	// to close it.
	life     sync.RWMutex
	closed   bool // life
	attached bool // the listener and the dirty source; set once by NewVM

	mu    sync.Mutex
	vcpus []*VCPU // in the order of their creation; mu
	// halfMade are vCPUs whose creation failed after the kernel's part, which it
	// does not undo: the next NewVCPU of that id goes on from there. mu
	halfMade map[int]*VCPU
}

// NewVM creates a VM over m, attaches itself to m as the listener that keeps
// memory slots equal to the regions, as a source of dirty pages if o.Dirty asks
// for it, and creates the devices that o names. Memory comes before the devices, since
// slots cost 30 times as much after them.
//
// The System may be closed afterwards. Close the VM before the Memory.
//
// Errors: ErrNotSupported for what this KVM lacks; ErrTooManySlots;
// guestmem.ErrInvalid for options that contradict each other; the errno of the ioctl.
//
// KVM_CREATE_VM, KVM_SET_TSS_ADDR, KVM_SET_IDENTITY_MAP_ADDR, KVM_ENABLE_CAP,
// KVM_SET_USER_MEMORY_REGION, KVM_CREATE_IRQCHIP, KVM_CREATE_PIT2.
func (s *System) NewVM(m *guestmem.Memory, o VMOptions) (*VM, error) {
	if err := o.check(); err != nil {
		return nil, opError("NewVM", err)
	}
	cpuid, err := o.CPUID.entries(s, o)
	if err != nil {
		return nil, opError("NewVM", err)
	}
	machine, err := s.createVM()
	if err != nil {
		return nil, err
	}
	vm := &VM{sys: s, mem: m, kvm: machine, o: o, cpuid: cpuid}
	vm.gate.init()
	if err := vm.build(); err != nil {
		return nil, errors.Join(err, vm.Close())
	}
	return vm, nil
}

func (o *VMOptions) check() error {
	if o.RingEntries == 0 {
		o.RingEntries = defaultRingEntries
	}
	if n := o.RingEntries; n < 0 || n&(n-1) != 0 {
		return fmt.Errorf("a dirty ring of %d entries is not a power of two: %w", n, guestmem.ErrInvalid)
	}
	if o.PIT == PITKernel && o.IRQChip != IRQChipKernel {
		return fmt.Errorf("a timer in the kernel needs the interrupt controllers there: %w", guestmem.ErrInvalid)
	}
	if o.VCPUs <= 0 {
		o.VCPUs = 1
	}
	return nil
}

func (vm *VM) build() error {
	vm.reservePages()
	if vm.sys.host.tripleFault {
		vm.EnableCap(capTripleFault, 1) // so that a pending one is part of the state
	}
	if vm.o.Dirty != DirtyNone {
		var err error
		if vm.dirty, err = newDirtyTracker(vm); err != nil {
			return err
		}
	}
	limit := vm.sys.host.slots
	if n := vm.o.MaxSlots; n > 0 && n < limit {
		limit = n
	}
	logging := SlotDirtyOff
	if vm.dirty != nil {
		logging = SlotDirtyOn
	}
	vm.slots = NewSlotTable(vmSetter{vm}, limit, SlotTableOptions{Pauser: vm, Coalesce: vm.o.Coalesce, Dirty: logging})
	vm.slots.kindOf = vm.memfds.kindOf
	if err := vm.mem.AttachListener(vmListener{vm}); err != nil {
		return err
	}
	vm.attached = true
	if vm.dirty != nil {
		if err := vm.mem.AttachDirtySource(vm); err != nil {
			return err
		}
	}
	if vm.o.IRQChip == IRQChipKernel {
		if err := vm.createIRQChip(); err != nil {
			return err
		}
	}
	if vm.o.PIT == PITKernel {
		return vm.createPIT()
	}
	return nil
}

// identityMapAddr is the page before the TSS that KVM takes on the same hosts.
const identityMapAddr = tssAddr - addr.PageSize

// reservePages tells KVM where its own four pages may lie, where no region does.
// KVM_SET_IDENTITY_MAP_ADDR, KVM_SET_TSS_ADDR. Only Intel hosts without unrestricted guests
// use them, so a refusal is left to show there, when a vCPU is in real mode.
func (vm *VM) reservePages() {
	for _, r := range vm.mem.Regions() {
		if r.Base() < tssEnd && uint64(r.Base())+r.Size() > uint64(identityMapAddr) {
			return
		}
	}
	at := uint64(identityMapAddr)
	ioctlPtr(vm.kvm.fd, reqSetIdentityMap, &at)
	vm.kvm.setTSS()
}

// Memory returns the Memory that the VM was made over.
func (vm *VM) Memory() *guestmem.Memory { return vm.mem }

// Slots returns the table of the VM's memory slots.
func (vm *VM) Slots() *SlotTable { return vm.slots }

// use calls f with the VM's descriptor, which stays open meanwhile.
//
// Errors: ErrClosed; what f returns, with the name of the ioctl.
func (vm *VM) use(op string, f func(fd int) error) error {
	return vm.useOpen(op, func(fd int) error {
		if vm.closing.Load() {
			return ErrClosed
		}
		return f(fd)
	})
}

// useOpen is use until the very end of Close: slots follow the regions for as long
// as a vCPU may be in the guest.
func (vm *VM) useOpen(op string, f func(fd int) error) error {
	vm.life.RLock()
	defer vm.life.RUnlock()
	if vm.closed {
		return opError(op, ErrClosed)
	}
	return opError(op, retryEINTR(func() error { return f(vm.kvm.fd) }))
}

// retryEINTR repeats a call that the runtime's preemption signal may interrupt
// before it has done anything.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}

// vmIoctl makes a request of the VM whose argument is a structure.
func vmIoctl[T any](vm *VM, op string, req uintptr, arg *T) error {
	return vm.use(op, func(fd int) error {
		_, err := ioctlPtr(fd, req, arg)
		return err
	})
}

// EnableCap is KVM_ENABLE_CAP of the VM, for exits and behaviour that this
// package has no word for; such exits arrive as VMExitUnknown.
func (vm *VM) EnableCap(capability uint32, args ...uint64) error {
	c := uEnableCap{capability: capability}
	if copy(c.args[:], args) < len(args) {
		return opError("KVM_ENABLE_CAP", fmt.Errorf("%d arguments, at most %d: %w", len(args), len(c.args), guestmem.ErrInvalid))
	}
	return vmIoctl(vm, fmt.Sprintf("KVM_ENABLE_CAP %d", capability), reqEnableCap, &c)
}

// Close ends the VM: vCPUs leave the guest, their Runs return ErrClosed, slots
// go, and every descriptor and mapping is given back. It waits for Runs in
// progress. Closing twice is fine.
func (vm *VM) Close() error {
	if vm.attached && vm.dirty != nil {
		vm.mem.DetachDirtySource(vm)
	}
	vm.closing.Store(true)
	// Whoever was using the descriptor is done after this, and nobody begins: the
	// list of vCPUs is complete.
	vm.life.Lock()
	vm.mu.Lock()
	vcpus := append([]*VCPU(nil), vm.vcpus...)
	for _, v := range vm.halfMade {
		vcpus = append(vcpus, v)
	}
	vm.mu.Unlock()
	vm.life.Unlock()
	for _, v := range vcpus {
		v.poke()
	}
	vm.gate.wake()
	var errs []error
	for _, v := range vcpus {
		errs = append(errs, v.close())
	}
	// Not before the last vCPU has left: a region that was removed meanwhile without
	// the VM hearing of it would be unmapped under a guest that still runs, and
	// whatever the process maps at that address next would be the guest's to write.
	if vm.attached {
		vm.mem.DetachListener(vmListener{vm})
	}
	vm.life.Lock()
	defer vm.life.Unlock()
	if vm.closed {
		return errors.Join(errs...)
	}
	vm.closed = true
	if vm.dirty != nil {
		errs = append(errs, vm.dirty.close())
	}
	return errors.Join(append(errs, vm.kvm.close())...)
}
