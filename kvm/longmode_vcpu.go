//go:build linux && amd64

package kvm

// Enter puts the vCPU at regs.RIP in the ring, in 64-bit mode, with the other
// registers as regs has them. A task state is taken by the vCPU's number.
//
// Errors: those of VCPU.SetSregs, SetMPState and SetRegs.
//
// KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_MP_STATE, KVM_SET_REGS.
func (l *LongMode) Enter(v *VCPU, ring Ring, regs GeneralRegs) error {
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	if err := v.SetSregs(l.Sregs(s, v.id%MaxLongModeVCPUs, ring)); err != nil {
		return err
	}
	// A second vCPU with a LAPIC in the kernel would wait for another to start it.
	if err := v.SetMPState(MPRunnable); err != nil {
		return err
	}
	regs.RFLAGS |= 1 << 1 // which is always set
	return v.SetRegs(regs)
}
