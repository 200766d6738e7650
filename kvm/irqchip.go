//go:build linux && amd64

package kvm

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
)

// The interrupt controllers that KVM_CREATE_IRQCHIP makes, by their number in
// KVM_GET_IRQCHIP: the two 8259 and the IOAPIC. The LAPICs are the vCPUs'.
const nIRQChips = 3

// createIRQChip is KVM_CREATE_IRQCHIP. No vCPU may exist yet.
func (vm *VM) createIRQChip() error {
	return vm.use("KVM_CREATE_IRQCHIP", func(fd int) error {
		_, err := ioctl(fd, reqCreateIRQChip, 0)
		return err
	})
}

// irqChip is KVM_GET_IRQCHIP.
func (vm *VM) irqChip(id int) ([irqChipSize]byte, error) {
	c := uIRQChip{id: uint32(id)}
	err := vmIoctl(vm, fmt.Sprintf("KVM_GET_IRQCHIP %d", id), reqGetIRQChip, &c)
	return c.state, err
}

// setIRQChip is KVM_SET_IRQCHIP.
func (vm *VM) setIRQChip(id int, state *[irqChipSize]byte) error {
	c := uIRQChip{id: uint32(id), state: *state}
	return vmIoctl(vm, fmt.Sprintf("KVM_SET_IRQCHIP %d", id), reqSetIRQChip, &c)
}

// SetIRQLine drives the line of a GSI: below 16 the pins of the 8259 and of the
// IOAPIC, up to 23 of the IOAPIC alone. An edge is High, then Low. Needs IRQChipKernel
// (unix.ENXIO without).
//
// KVM_IRQ_LINE.
func (vm *VM) SetIRQLine(gsi uint32, level IRQLevel) error {
	return vmIoctl(vm, fmt.Sprintf("KVM_IRQ_LINE %d", gsi), reqIRQLine, &uIRQLevel{irq: gsi, level: uint32(level)})
}

// SignalMSI sends a message-signalled interrupt: the write of data to address
// that a device would make. It returns false if the guest blocks it.
//
// KVM_SIGNAL_MSI.
func (vm *VM) SignalMSI(address uint64, data uint32) (delivered bool, err error) {
	err = vm.use("KVM_SIGNAL_MSI", func(fd int) error {
		n, err := ioctlPtr(fd, reqSignalMSI, &uMSI{addrLow: uint32(address), addrHigh: uint32(address >> 32), data: data})
		delivered = n > 0
		return err
	})
	return delivered, err
}

// AttachIRQFD has each write to an eventfd be an edge of a GSI. The descriptor
// stays the caller's; DetachIRQFD or the end of the VM lets go of it.
//
// KVM_IRQFD.
func (vm *VM) AttachIRQFD(eventfd int, gsi uint32) error {
	return vmIoctl(vm, fmt.Sprintf("KVM_IRQFD gsi %d", gsi), reqIRQFD, &uIRQFD{fd: uint32(eventfd), gsi: gsi})
}

// DetachIRQFD undoes AttachIRQFD.
func (vm *VM) DetachIRQFD(eventfd int, gsi uint32) error {
	return vmIoctl(vm, fmt.Sprintf("KVM_IRQFD gsi %d", gsi), reqIRQFD, &uIRQFD{fd: uint32(eventfd), gsi: gsi, flags: irqfdDeassign})
}

// AttachIOEvent has a guest write signal an eventfd.
//
// Errors: unix.EEXIST if another one listens there.
//
// KVM_IOEVENTFD.
func (vm *VM) AttachIOEvent(e IOEvent) error { return vm.ioEvent(e, 0) }

// DetachIOEvent undoes AttachIOEvent of the same IOEvent.
func (vm *VM) DetachIOEvent(e IOEvent) error { return vm.ioEvent(e, ioEventDeassign) }

func (vm *VM) ioEvent(e IOEvent, flags uint32) error {
	a := uIOEventFD{address: e.Addr, length: e.Length, fd: int32(e.FD), flags: flags}
	switch e.Space {
	case IOSpaceMMIO:
	case IOSpacePort:
		a.flags |= ioEventPIO
	default:
		return opError("KVM_IOEVENTFD", fmt.Errorf("space %d: %w", e.Space, guestmem.ErrInvalid))
	}
	if e.Match != nil {
		a.flags |= ioEventDatamatch
		a.match = *e.Match
	}
	return vmIoctl(vm, fmt.Sprintf("KVM_IOEVENTFD %#x", e.Addr), reqIOEventFD, &a)
}
