//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// check compares a state with what this host has, and changes nothing. It returns
// every part that cannot be loaded.
func (v *VCPU) check(s *VCPUState) error {
	h := &v.vm.sys.host
	errs := h.checkCPUID(s.CPUID)
	if xcr0 := h.xcr0(); s.XCR0&^xcr0 != 0 || s.XCR0&1 == 0 {
		errs = append(errs, &StateError{Part: "XCR0", Want: fmt.Sprintf("%#x", s.XCR0), Have: fmt.Sprintf("%#x", xcr0)})
	}
	if err := v.checkXSave(s.XSave); err != nil {
		errs = append(errs, err)
	}
	hasLAPIC := v.vm.o.IRQChip == IRQChipKernel
	if hasLAPIC != (s.LAPIC != nil) {
		errs = append(errs, &StateError{Part: "LAPIC in the kernel", Want: presence(s.LAPIC != nil), Have: presence(hasLAPIC)})
	}
	if s.MP != MPRunnable && !hasLAPIC {
		errs = append(errs, &StateError{Part: "MP state", Want: fmt.Sprint(s.MP), Have: "0 alone, without interrupt controllers in the kernel"})
	}
	if s.Events.TripleFaultPending != 0 && !h.tripleFault {
		errs = append(errs, &StateError{Part: "events", Want: "a pending triple fault", Have: "no word for it (Linux 6.0)"})
	}
	if s.Sregs.Flags&sregsPDPTRsValid != 0 && !h.sregs2 {
		errs = append(errs, &StateError{Part: "special registers", Want: "PDPTRs", Have: "no KVM_SET_SREGS2 (Linux 5.14)"})
	}
	if s.Sregs.EFER&^eferKnown != 0 { // KVM takes any
		errs = append(errs, &StateError{Part: "EFER", Want: fmt.Sprintf("%#x", s.Sregs.EFER), Have: fmt.Sprintf("bits %#x", eferKnown)})
	}
	return errors.Join(errs...)
}

// eferKnown are the bits of EFER that have a meaning on some processor: SCE LME LMA
// NXE SVME LMSLE FFXSR TCE MCOMMIT INTWB UAIE AIBRSE.
const eferKnown = uint64(1<<0 | 1<<8 | 1<<10 | 1<<11 | 1<<12 | 1<<13 | 1<<14 | 1<<15 | 1<<17 | 1<<18 | 1<<20 | 1<<21)

// checkXSave refuses an image with components that this host has not, or in the
// compacted format.
func (v *VCPU) checkXSave(x []byte) error {
	if len(x) < xsaveEnd {
		return &StateError{Part: "XSAVE image", Want: fmt.Sprintf("of %d bytes", len(x)), Have: fmt.Sprintf("images of %d to %d bytes", xsaveEnd, v.xsaveLen)}
	}
	if bv, have := xstateBV(x), v.vm.sys.host.xcr0(); bv&^have != 0 {
		return &StateError{Part: "XSAVE components", Want: fmt.Sprintf("%#x", bv), Have: fmt.Sprintf("%#x", have)}
	}
	if bv := binary.LittleEndian.Uint64(x[xsaveXCompBV:]); bv != 0 {
		return &StateError{Part: "XSAVE format", Want: fmt.Sprintf("compacted (%#x)", bv), Have: "standard"}
	}
	return nil
}

// xstateBV returns the components that an image has.
func xstateBV(x []byte) uint64 {
	if len(x) < xsaveEnd {
		return 0
	}
	return binary.LittleEndian.Uint64(x[xsaveHeader:])
}

// xcr0 returns the state components that KVM lets a guest enable.
func (h *host) xcr0() uint64 {
	e := findCPUID(h.cpuid, 0xd, 0)
	return uint64(e.EDX)<<32 | uint64(e.EAX) | xfeatX87
}

// checkCPUID lists the features that entries show and this host has not. The
// kernel accepts any CPUID: a guest would find out by #UD.
func (h *host) checkCPUID(entries []CPUIDEntry) (errs []error) {
	for _, w := range featureWords {
		if !hasLeaf(entries, w.function, w.index) {
			continue
		}
		shown, offered := findCPUID(entries, w.function, w.index), findCPUID(h.cpuid, w.function, w.index)
		want, have := w.of(&shown), w.of(&offered)
		if *want&^*have&^w.always != 0 {
			errs = append(errs, &StateError{
				Part: fmt.Sprintf("CPUID %v", w.cpuidWord),
				Want: fmt.Sprintf("%#x", *want), Have: fmt.Sprintf("%#x, without %#x", *have, *want&^*have&^w.always),
			})
		}
	}
	return errs
}
