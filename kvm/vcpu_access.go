//go:build linux && amd64

package kvm

import "fmt"

// The parts of a vCPU's state: see VCPU for what holds of all.

// Regs is KVM_GET_REGS.
func (v *VCPU) Regs() (GeneralRegs, error) {
	return read(v, "KVM_GET_REGS", reqGetRegs, new(GeneralRegs))
}

// SetRegs is KVM_SET_REGS. It takes back an exception that is pending.
func (v *VCPU) SetRegs(r GeneralRegs) error { return write(v, "KVM_SET_REGS", reqSetRegs, &r) }

// Sregs is KVM_GET_SREGS2, or KVM_GET_SREGS where the kernel has no other.
func (v *VCPU) Sregs() (s SpecialRegs, err error) {
	err = v.access("KVM_GET_SREGS", func() error { return v.getSregs(&s) })
	return s, err
}

// SetSregs is KVM_SET_SREGS2, or KVM_SET_SREGS.
func (v *VCPU) SetSregs(s SpecialRegs) error {
	return v.access("KVM_SET_SREGS", func() error { return v.setSregs(&s) })
}

// getSregs relies on the two structures being the same up to Flags. What follows
// in the older one is of the length of PDPTRs.
func (v *VCPU) getSregs(s *SpecialRegs) error {
	if v.vm.sys.host.sregs2 {
		return vcpuIoctl(v, "KVM_GET_SREGS2", reqGetSregs2, s)
	}
	err := vcpuIoctl(v, "KVM_GET_SREGS", reqGetSregs, s)
	s.Flags, s.PDPTRs = 0, [4]uint64{}
	return err
}

func (v *VCPU) setSregs(s *SpecialRegs) error {
	v.hasRun = true
	if v.vm.sys.host.sregs2 {
		return vcpuIoctl(v, "KVM_SET_SREGS2", reqSetSregs2, s)
	}
	old := *s
	old.Flags, old.PDPTRs = 0, [4]uint64{} // the older bitmap of interrupts: none, events have them
	return vcpuIoctl(v, "KVM_SET_SREGS", reqSetSregs, &old)
}

// DebugRegs is KVM_GET_DEBUGREGS.
func (v *VCPU) DebugRegs() (DebugRegs, error) {
	return read(v, "KVM_GET_DEBUGREGS", reqGetDebugRegs, new(DebugRegs))
}

// SetDebugRegs is KVM_SET_DEBUGREGS.
func (v *VCPU) SetDebugRegs(d DebugRegs) error {
	return write(v, "KVM_SET_DEBUGREGS", reqSetDebugRegs, &d)
}

// Events is KVM_GET_VCPU_EVENTS.
func (v *VCPU) Events() (VCPUEvents, error) {
	return read(v, "KVM_GET_VCPU_EVENTS", reqGetEvents, new(VCPUEvents))
}

// SetEvents is KVM_SET_VCPU_EVENTS.
func (v *VCPU) SetEvents(e VCPUEvents) error {
	return write(v, "KVM_SET_VCPU_EVENTS", reqSetEvents, &e)
}

// MPState is KVM_GET_MP_STATE.
func (v *VCPU) MPState() (MPState, error) {
	return read(v, "KVM_GET_MP_STATE", reqGetMPState, new(MPState))
}

// SetMPState is KVM_SET_MP_STATE. Without IRQChipKernel there is MPRunnable only
// (unix.EINVAL for others).
func (v *VCPU) SetMPState(s MPState) error {
	return v.access("KVM_SET_MP_STATE", func() error { return v.setMPState(s) })
}

func (v *VCPU) setMPState(s MPState) error {
	if s == MPRunnable && v.vm.o.IRQChip == IRQChipNone {
		return nil // it is, and the kernel refuses to be told
	}
	v.hasRun = true
	return vcpuIoctl(v, "KVM_SET_MP_STATE", reqSetMPState, &s)
}

// LAPIC is KVM_GET_LAPIC: the page of registers. unix.EINVAL without IRQChipKernel.
func (v *VCPU) LAPIC() ([1024]byte, error) {
	return read(v, "KVM_GET_LAPIC", reqGetLAPIC, new([1024]byte))
}

// SetLAPIC is KVM_SET_LAPIC.
func (v *VCPU) SetLAPIC(p [1024]byte) error { return write(v, "KVM_SET_LAPIC", reqSetLAPIC, &p) }

// XCR0 is KVM_GET_XCRS: which state components the guest has enabled.
func (v *VCPU) XCR0() (x uint64, err error) {
	err = v.access("KVM_GET_XCRS", func() (err error) { x, err = v.getXCR0(); return err })
	return x, err
}

// SetXCR0 is KVM_SET_XCRS.
func (v *VCPU) SetXCR0(x uint64) error {
	return v.access("KVM_SET_XCRS", func() error { return v.setXCR0(x) })
}

func (v *VCPU) getXCR0() (uint64, error) {
	x := new(uXCRs)
	if err := vcpuIoctl(v, "KVM_GET_XCRS", reqGetXCRs, x); err != nil {
		return 0, err
	}
	for _, e := range x.xcrs[:min(x.n, uint32(len(x.xcrs)))] {
		if e.xcr == 0 {
			return e.value, nil
		}
	}
	return 0, opError("KVM_GET_XCRS", fmt.Errorf("%w: no XCR0 among %d", ErrNotSupported, x.n))
}

func (v *VCPU) setXCR0(value uint64) error {
	v.hasRun = true
	x := &uXCRs{n: 1}
	x.xcrs[0].value = value
	return vcpuIoctl(v, "KVM_SET_XCRS", reqSetXCRs, x)
}

// XSave is KVM_GET_XSAVE2, or KVM_GET_XSAVE where images have 4096 bytes: x87 and
// vector state, in the standard format.
func (v *VCPU) XSave() (x []byte, err error) {
	err = v.access("KVM_GET_XSAVE", func() (err error) { x, err = v.getXSave(); return err })
	return x, err
}

// SetXSave is KVM_SET_XSAVE. A shorter image than XSave returns is filled up with
// zeroes.
//
// Errors: ErrHostState if the image has components that this host has not.
func (v *VCPU) SetXSave(x []byte) error {
	return v.access("KVM_SET_XSAVE", func() error {
		if err := v.checkXSave(x); err != nil {
			return err
		}
		return v.setXSave(x)
	})
}

func (v *VCPU) getXSave() ([]byte, error) {
	x, req := make([]byte, v.xsaveLen), reqGetXSave
	if len(x) > 4096 {
		req = reqGetXSave2
	}
	return x, opError("KVM_GET_XSAVE", retryEINTR(func() error { return ioctlBytes(v.fd, req, x) }))
}

func (v *VCPU) setXSave(image []byte) error {
	v.hasRun = true
	x := image
	if len(x) != v.xsaveLen {
		x = make([]byte, v.xsaveLen)
		copy(x, image)
	}
	return opError("KVM_SET_XSAVE", retryEINTR(func() error { return ioctlBytes(v.fd, reqSetXSave, x) }))
}

// CPUID returns what the guest is shown, as it was set: bits that follow the
// guest's own state (OSXSAVE) are not in it.
func (v *VCPU) CPUID() (entries []CPUIDEntry, err error) {
	err = v.access("CPUID", func() error {
		entries = append(entries, v.cpuid...)
		return nil
	})
	return entries, err
}

// SetCPUID is KVM_SET_CPUID2, before the first Run only (unix.EINVAL after).
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error {
	return v.access("KVM_SET_CPUID2", func() error { return v.setCPUID(entries) })
}

// Interrupt is KVM_INTERRUPT: it injects an external interrupt where there is
// none in the kernel to do so. The guest has to be ready: see RequestIRQWindow.
// unix.ENXIO with IRQChipKernel.
func (v *VCPU) Interrupt(vector uint8) error {
	n := uint32(vector)
	return write(v, "KVM_INTERRUPT", reqInterrupt, &n)
}

// NMI is KVM_NMI: it injects one, with or without an interrupt controller in the
// kernel.
func (v *VCPU) NMI() error {
	return v.access("KVM_NMI", func() error {
		v.hasRun = true
		_, err := ioctl(v.fd, reqNMI, 0)
		return err
	})
}

// RequestIRQWindow has a Run return VMExitIRQWindow, once, as soon as the guest
// can take an interrupt. Without IRQChipKernel only.
func (v *VCPU) RequestIRQWindow() error {
	return v.access("RequestIRQWindow", func() error {
		v.window = 1
		return nil
	})
}

func read[T any](v *VCPU, op string, req uintptr, to *T) (T, error) {
	err := v.access(op, func() error {
		return retryEINTR(func() error {
			_, err := ioctlPtr(v.fd, req, to)
			return err
		})
	})
	return *to, err
}

func write[T any](v *VCPU, op string, req uintptr, from *T) error {
	return v.access(op, func() error {
		v.hasRun = true
		return retryEINTR(func() error {
			_, err := ioctlPtr(v.fd, req, from)
			return err
		})
	})
}
