//go:build linux && amd64

package kvm

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/klauspost/cpuid/v2"
)

// CPUID returns what a guest is shown under the options, for vCPU 0, and each
// register in which that is not what KVM supports.
//
// Errors: ErrNotSupported, with the feature's name, if the baseline has one that
// this host has not.
//
// KVM_GET_SUPPORTED_CPUID.
func (s *System) CPUID(o VMOptions) ([]CPUIDEntry, []CPUIDChange, error) {
	if err := o.check(); err != nil {
		return nil, nil, opError("CPUID", err)
	}
	entries, err := o.CPUID.entries(s, o)
	if err != nil {
		return nil, nil, opError("CPUID", err)
	}
	var changes []CPUIDChange
	for _, e := range s.host.cpuid {
		shown := findCPUID(entries, e.Function, e.Index)
		for reg := regEAX; reg <= regEDX; reg++ {
			w := cpuidWord{e.Function, e.Index, reg}
			if have, show := *w.of(&e), *w.of(&shown); have != show {
				changes = append(changes, CPUIDChange{e.Function, e.Index, reg.String(), have, show, namesOf(w, have&^show)})
			}
		}
	}
	return entries, changes, nil
}

// entries applies the policy to what KVM supports.
func (p CPUIDPolicy) entries(s *System, o VMOptions) ([]CPUIDEntry, error) {
	xcr0 := vmXCR0(s.host.xcr0())
	hide := slices.Concat(p.Hide, withoutState(xcr0))
	out := make([]CPUIDEntry, 0, len(s.host.cpuid))
	for _, e := range s.host.cpuid {
		if e.Function == 0xd && e.Index >= 2 && e.Index < 64 && xcr0>>e.Index&1 == 0 && isUserState(e) {
			continue // the layout of a state component that the guest has not
		}
		if e.Function == 0x1d || e.Function == 0x1e {
			continue // AMX tiles
		}
		if e.Function == 0xd && e.Index == 0 {
			e.EAX, e.EDX = e.EAX&uint32(xcr0), e.EDX&uint32(xcr0>>32)
		}
		if e.Function == 1 {
			e.ECX |= 1 << 31 // a hypervisor is there
			if o.IRQChip == IRQChipKernel && s.host.tscDeadline {
				e.ECX |= 1 << 24
			}
		}
		out = append(out, e)
	}
	if p.Baseline != nil {
		if err := p.reduce(out); err != nil {
			return nil, err
		}
	}
	for _, f := range hide {
		b, ok := featureBits[f]
		if !ok {
			return nil, fmt.Errorf("%w: no CPUID bit is known for feature %v", ErrNotSupported, f)
		}
		for i := range out {
			if out[i].Function == b.function && out[i].Index == b.index {
				*b.of(&out[i]) &^= 1 << b.bit
			}
		}
	}
	for _, m := range p.Mask {
		for i := range out {
			if e := &out[i]; e.Function == m.Function && e.Index == m.Index {
				e.EAX, e.EBX, e.ECX, e.EDX = e.EAX&^m.EAX, e.EBX&^m.EBX, e.ECX&^m.ECX, e.EDX&^m.EDX
			}
		}
	}
	setTopology(out, 0, o.VCPUs)
	return out, nil
}

// reduce takes away what neither the baseline nor every x86-64 has.
func (p CPUIDPolicy) reduce(entries []CPUIDEntry) error {
	allowed := make(map[cpuidWord]uint32)
	for _, f := range p.Baseline {
		b, ok := featureBits[f]
		if !ok {
			return fmt.Errorf("%w: no CPUID bit is known for feature %v", ErrNotSupported, f)
		}
		e := findCPUID(entries, b.function, b.index)
		if *b.of(&e)>>b.bit&1 == 0 {
			return fmt.Errorf("%w: the baseline has %v, which this host has not", ErrNotSupported, f)
		}
		allowed[b.cpuidWord] |= 1 << b.bit
	}
	for _, w := range featureWords {
		for i := range entries {
			if e := &entries[i]; e.Function == w.function && e.Index == w.index {
				*w.of(e) &= allowed[w.cpuidWord] | w.core
			}
		}
	}
	return nil
}

// vmXCR0 returns the state components that a guest is offered: not AMX, whose
// 8 KiB for each vCPU need a permission of the process (arch_prctl); and the vector
// ones only where this host's own programs may use them, which cpuid/v2 asks XGETBV.
func vmXCR0(supported uint64) uint64 {
	const amx = 3 << 17
	x := supported &^ amx
	if !cpuid.CPU.Supports(cpuid.AVX) {
		x &^= xfeatAVX | xfeatAVX512
	}
	if !cpuid.CPU.Supports(cpuid.AVX512F) || x&xfeatAVX512 != xfeatAVX512 {
		x &^= xfeatAVX512
	}
	return x
}

// isUserState reports whether a component of leaf 0xd is enabled by XCR0, rather than
// by IA32_XSS.
func isUserState(e CPUIDEntry) bool { return e.ECX&1 == 0 }

// withoutState lists the features whose registers are not in xcr0.
func withoutState(xcr0 uint64) (hide []cpuid.FeatureID) {
	hide = append(hide, cpuid.AMXBF16, cpuid.AMXTILE, cpuid.AMXINT8, cpuid.AMXFP16, cpuid.AMXCOMPLEX)
	if xcr0&xfeatAVX == 0 {
		hide = append(hide, cpuid.AVX, cpuid.AVX2, cpuid.FMA3, cpuid.F16C, cpuid.VAES, cpuid.VPCLMULQDQ, cpuid.XOP, cpuid.FMA4,
			cpuid.AVXVNNI, cpuid.AVXIFMA, cpuid.AVXVNNIINT8, cpuid.AVXVNNIINT16, cpuid.AVXNECONVERT)
	}
	if xcr0&xfeatAVX512 == 0 {
		hide = append(hide, cpuid.AVX512F, cpuid.AVX512DQ, cpuid.AVX512IFMA, cpuid.AVX512PF, cpuid.AVX512ER, cpuid.AVX512CD,
			cpuid.AVX512BW, cpuid.AVX512VL, cpuid.AVX512VBMI, cpuid.AVX512VBMI2, cpuid.AVX512VNNI, cpuid.AVX512BITALG,
			cpuid.AVX512VPOPCNTDQ, cpuid.AVX512VP2INTERSECT, cpuid.AVX512FP16, cpuid.AVX512BF16)
	}
	return hide
}

// cpuidOf returns what vCPU id is shown.
func (vm *VM) cpuidOf(id int) []CPUIDEntry {
	entries := slices.Clone(vm.cpuid)
	setTopology(entries, id, vm.o.VCPUs)
	return entries
}

// setTopology makes the guest n processors of one core each, in one package,
// this one with APIC id.
func setTopology(entries []CPUIDEntry, id, n int) {
	shift := uint32(bits.Len(uint(n - 1)))
	for i := range entries {
		switch e := &entries[i]; e.Function {
		case 1:
			e.EBX = e.EBX&0xffff | uint32(min(n, 255))<<16 | uint32(id)<<24
			if n > 1 {
				e.EDX |= 1 << 28 // HTT: more than one in the package
			} else {
				e.EDX &^= 1 << 28
			}
		case 4:
			if e.EAX&0x1f != 0 { // a cache: cores in the package, none shares
				e.EAX = e.EAX&^(0x3f<<26|0xfff<<14) | uint32(min(n, 64)-1)<<26
			}
		case 0xb, 0x1f:
			switch e.Index {
			case 0:
				e.EAX, e.EBX, e.ECX = 0, 1, 1<<8
			case 1:
				e.EAX, e.EBX, e.ECX = shift, uint32(n), 2<<8|1
			default:
				e.EAX, e.EBX, e.ECX = 0, 0, e.Index
			}
			e.EDX = uint32(id)
		case 0x80000008:
			e.ECX = e.ECX&^0xf0ff | shift<<12 | uint32(min(n, 256)-1)
		case 0x8000001e:
			e.EAX, e.EBX, e.ECX = uint32(id), uint32(id)&0xff, 0
		}
	}
}
