//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
)

// State returns the interrupt controllers, the timer and the clock. Pause the VM
// first, or they go on meanwhile.
//
// KVM_GET_IRQCHIP, KVM_GET_PIT2, KVM_GET_CLOCK.
func (vm *VM) State() (*VMState, error) {
	s := new(VMState)
	var err error
	if vm.o.IRQChip == IRQChipKernel {
		s.IRQChips = new([nIRQChips][irqChipSize]byte)
		for i := range s.IRQChips {
			if s.IRQChips[i], err = vm.irqChip(i); err != nil {
				return nil, err
			}
		}
	}
	if vm.o.PIT == PITKernel {
		if s.PIT, err = vm.pit(); err != nil {
			return nil, err
		}
	}
	s.Clock, err = vm.Clock()
	return s, err
}

// SetState replaces the interrupt controllers, the timer and the clock.
//
// Errors: a *StateError, with nothing changed, if s has devices that the VM has
// not, or the other way round; the errno of the ioctl, with the former state put back.
//
// KVM_SET_IRQCHIP, KVM_SET_PIT2, KVM_SET_CLOCK.
func (vm *VM) SetState(s *VMState) error {
	const op = "SetState"
	for _, d := range []struct {
		name       string
		want, have bool
	}{
		{"interrupt controllers in the kernel", s.IRQChips != nil, vm.o.IRQChip == IRQChipKernel},
		{"timer in the kernel", s.PIT != nil, vm.o.PIT == PITKernel},
	} {
		if d.want != d.have {
			return opError(op, &StateError{Part: d.name, Want: presence(d.want), Have: presence(d.have)})
		}
	}
	former, err := vm.State()
	if err != nil {
		return err
	}
	if err := vm.load(s); err != nil {
		return errors.Join(err, vm.load(former))
	}
	return nil
}

func presence(is bool) string {
	if is {
		return "there"
	}
	return "not there"
}

func (vm *VM) load(s *VMState) error {
	if s.IRQChips != nil {
		for i := range s.IRQChips {
			if err := vm.setIRQChip(i, &s.IRQChips[i]); err != nil {
				return err
			}
		}
	}
	if s.PIT != nil {
		if err := vm.setPIT(s.PIT); err != nil {
			return err
		}
	}
	return vm.SetClock(s.Clock)
}

// Save pauses the VM and returns its whole state but for memory. What was saved
// is one moment only together with memory that is copied or sealed under the same
// pause: call Pause before and Resume after both; pauses nest.
//
// A vCPU that is not in Run has to have dealt with its last exit: Save completes it.
//
// Errors: ErrUnfinished if a vCPU is in the middle of an access of several
// parts: let it Run and try again.
func (vm *VM) Save() (*MachineState, error) {
	vm.Pause()
	defer vm.Resume()
	var m MachineState
	// vCPUs first: to complete an exit may change what the devices have.
	for _, v := range vm.VCPUs() {
		s, err := v.State()
		if err != nil {
			return nil, err
		}
		m.VCPUs = append(m.VCPUs, *s)
	}
	s, err := vm.State()
	if err != nil {
		return nil, err
	}
	m.VM = *s
	return &m, nil
}

// Load gives the VM a state that Save returned, of a VM with as many vCPUs:
// memory is there already, vCPUs come before the interrupt controllers, whose
// pending interrupts go to the LAPICs. Of a guest that has asked for it, KVM
// stores the wall clock to its memory anew.
//
// Errors: as SetState of VM and VCPU. Those loaded before the one that failed keep
// the new state: the guest is not to be run then, and may be loaded again.
func (vm *VM) Load(m *MachineState) error {
	vm.Pause()
	defer vm.Resume()
	vcpus := vm.VCPUs()
	if len(vcpus) != len(m.VCPUs) {
		return opError("Load", &StateError{Part: "number of vCPUs", Want: fmt.Sprint(len(m.VCPUs)), Have: fmt.Sprint(len(vcpus)), Err: guestmem.ErrInvalid})
	}
	for i, v := range vcpus {
		if err := v.SetState(&m.VCPUs[i]); err != nil {
			return fmt.Errorf("vCPU %d: %w", v.id, err)
		}
	}
	return vm.SetState(&m.VM)
}

// VCPUs returns the vCPUs in the order of their creation.
func (vm *VM) VCPUs() []*VCPU {
	vm.mu.Lock()
	defer vm.mu.Unlock()
	return append([]*VCPU(nil), vm.vcpus...)
}
