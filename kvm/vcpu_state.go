//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"slices"
)

// State returns everything that KVM knows of the vCPU.
//
// KVM_GET_MP_STATE, KVM_GET_REGS, KVM_GET_SREGS2, KVM_GET_XCRS, KVM_GET_XSAVE2,
// KVM_GET_DEBUGREGS, KVM_GET_LAPIC, KVM_GET_MSRS, KVM_GET_VCPU_EVENTS, KVM_GET_TSC_KHZ.
func (v *VCPU) State() (*VCPUState, error) {
	s := new(VCPUState)
	err := v.access("State", func() error { return v.save(s) })
	if err != nil {
		return nil, err
	}
	return s, nil
}

// save reads the state. The MP state is first, since KVM turns a pending INIT
// into registers when it is asked for it.
//
// Preconditions: mu is held, and the last exit completed.
func (v *VCPU) save(s *VCPUState) (err error) {
	s.CPUID = slices.Clone(v.cpuid)
	s.TSCKHz = v.tscKHz()
	if err := vcpuIoctl(v, "KVM_GET_MP_STATE", reqGetMPState, &s.MP); err != nil {
		return err
	}
	if err := vcpuIoctl(v, "KVM_GET_REGS", reqGetRegs, &s.Regs); err != nil {
		return err
	}
	if err := v.getSregs(&s.Sregs); err != nil {
		return err
	}
	if s.XCR0, err = v.getXCR0(); err != nil {
		return err
	}
	if s.XSave, err = v.getXSave(); err != nil {
		return err
	}
	if err := vcpuIoctl(v, "KVM_GET_DEBUGREGS", reqGetDebugRegs, &s.Debug); err != nil {
		return err
	}
	if v.vm.o.IRQChip == IRQChipKernel {
		s.LAPIC = new([lapicSize]byte)
		if err := vcpuIoctl(v, "KVM_GET_LAPIC", reqGetLAPIC, s.LAPIC); err != nil {
			return err
		}
	}
	if s.MSRs, s.Unread, err = v.saveMSRs(); err != nil {
		return err
	}
	return vcpuIoctl(v, "KVM_GET_VCPU_EVENTS", reqGetEvents, &s.Events)
}

// tscKHz is KVM_GET_TSC_KHZ; 0 where the kernel cannot tell.
func (v *VCPU) tscKHz() uint32 {
	n, err := ioctl(v.fd, reqGetTSCKHz, 0)
	if err != nil {
		return 0
	}
	return uint32(n)
}

// SetState replaces everything that KVM knows of the vCPU. The Memory is to be
// there already, since some of it leads to guest memory.
//
// What can be compared is compared first. If the kernel refuses a part after all,
// the vCPU gets back the state that it had, and only if that fails too does it
// refuse to Run until a SetState succeeds.
//
// Errors: one or several *StateError (ErrHostState), which name the part and both
// sides; ErrBusy, ErrUnfinished, ErrClosed.
//
// KVM_SET_CPUID2, KVM_SET_TSC_KHZ, KVM_SET_MP_STATE, KVM_SET_REGS,
// KVM_SET_SREGS2, KVM_SET_XSAVE, KVM_SET_XCRS, KVM_SET_DEBUGREGS, KVM_SET_LAPIC,
// KVM_SET_MSRS, KVM_SET_VCPU_EVENTS.
func (v *VCPU) SetState(s *VCPUState) error {
	return v.access("SetState", func() error {
		if err := v.check(s); err != nil {
			return err
		}
		var former *VCPUState
		if v.hasRun && v.halfSet == nil {
			former = new(VCPUState)
			if err := v.save(former); err != nil {
				return err
			}
		}
		err := v.load(s)
		if err == nil {
			v.halfSet = nil
			return nil
		}
		if back := v.putBack(former); back != nil {
			v.halfSet = fmt.Errorf("%w, and the former one could not be put back: %w", err, back)
			return v.halfSet
		}
		v.halfSet = nil
		return err
	})
}

// putBack loads the former state, or that of a new vCPU if there was no other.
func (v *VCPU) putBack(former *VCPUState) (err error) {
	if former == nil {
		if former, err = v.pristine(); err != nil {
			return err
		}
	}
	return v.load(former)
}

// pristine returns the state of a vCPU that was just made, from one in a VM made
// for the purpose.
func (v *VCPU) pristine() (_ *VCPUState, err error) {
	o := v.vm.o
	o.Dirty = DirtyNone
	twin := &VM{sys: v.vm.sys, mem: v.vm.mem, o: o, cpuid: v.vm.cpuid}
	twin.gate.init()
	if twin.kvm, err = v.vm.sys.createVM(); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, twin.Close()) }()
	if o.IRQChip == IRQChipKernel {
		if err := twin.createIRQChip(); err != nil {
			return nil, err
		}
	}
	w, err := twin.NewVCPU(v.id)
	if err != nil {
		return nil, err
	}
	return w.State()
}

// load sets the state, part by part. The order is the kernel's wish:
//
//	CPUID         decides which bits of the others are accepted
//	TSC frequency before the counter (an MSR)
//	MP state      before registers: it may reset them
//	registers     before events: they take back a pending exception
//	special regs  before LAPIC, whose mode is in the APIC base
//	LAPIC         before the TSC deadline (an MSR)
//	events        last
//
// Preconditions: mu is held, and the last exit completed.
func (v *VCPU) load(s *VCPUState) error {
	events := s.Events
	if !v.vm.sys.host.tripleFault {
		events.Flags &^= eventsTripleFault
	}
	for _, part := range []struct {
		name string
		want func() string
		set  func() error
	}{
		{"CPUID", func() string { return fmt.Sprintf("%d leaves", len(s.CPUID)) }, func() error { return v.loadCPUID(s.CPUID) }},
		{"TSC frequency", func() string { return fmt.Sprintf("%d kHz", s.TSCKHz) }, func() error { return v.loadTSCKHz(s.TSCKHz) }},
		{"MP state", func() string { return fmt.Sprint(s.MP) }, func() error { return v.setMPState(s.MP) }},
		{"registers", func() string { return fmt.Sprintf("%+x", s.Regs) }, func() error { return vcpuIoctl(v, "KVM_SET_REGS", reqSetRegs, &s.Regs) }},
		{"special registers", func() string {
			return fmt.Sprintf("CR0 %#x CR4 %#x EFER %#x APIC base %#x", s.Sregs.CR0, s.Sregs.CR4, s.Sregs.EFER, s.Sregs.APICBase)
		}, func() error { return v.setSregs(&s.Sregs) }},
		{"XSAVE image", func() string { return fmt.Sprintf("of %d bytes, components %#x", len(s.XSave), xstateBV(s.XSave)) }, func() error { return v.setXSave(s.XSave) }},
		{"XCR0", func() string { return fmt.Sprintf("%#x", s.XCR0) }, func() error { return v.setXCR0(s.XCR0) }},
		{"debug registers", func() string { return fmt.Sprintf("%+x", s.Debug) }, func() error { return vcpuIoctl(v, "KVM_SET_DEBUGREGS", reqSetDebugRegs, &s.Debug) }},
		{"LAPIC", func() string { return "a page of registers" }, func() error {
			if s.LAPIC == nil {
				return nil
			}
			return vcpuIoctl(v, "KVM_SET_LAPIC", reqSetLAPIC, s.LAPIC)
		}},
		{"MSRs", func() string { return fmt.Sprintf("%d registers", len(s.MSRs)) }, func() error { return v.loadMSRs(s.MSRs) }},
		{"events", func() string { return fmt.Sprintf("%+v", events) }, func() error { return vcpuIoctl(v, "KVM_SET_VCPU_EVENTS", reqSetEvents, &events) }},
	} {
		v.hasRun = true
		if err := part.set(); err != nil {
			if errors.Is(err, ErrHostState) {
				return err
			}
			return &StateError{Part: part.name, Want: part.want(), Have: "refused it", Err: err}
		}
	}
	return nil
}

// loadCPUID leaves alone what is there already: it is the longest of the parts,
// and not allowed any more after the first Run.
func (v *VCPU) loadCPUID(entries []CPUIDEntry) error {
	if slices.Equal(entries, v.cpuid) {
		return nil
	}
	return v.setCPUID(entries)
}

// loadTSCKHz is KVM_SET_TSC_KHZ, where the frequency is another one.
func (v *VCPU) loadTSCKHz(kHz uint32) error {
	have := v.tscKHz()
	if kHz == 0 || kHz == have {
		return nil
	}
	_, err := ioctl(v.fd, reqSetTSCKHz, uintptr(kHz))
	if err == nil || isClose(kHz, have) {
		return nil
	}
	return &StateError{Part: "TSC frequency", Want: fmt.Sprintf("%d kHz", kHz), Have: fmt.Sprintf("%d kHz", have), Err: err}
}

// isClose reports whether two frequencies differ by no more than 250 parts in a
// million: what Linux itself calls the same, and the accuracy of its calibration.
func isClose(a, b uint32) bool {
	return uint64(max(a, b)-min(a, b))*1e6 <= uint64(b)*250
}
