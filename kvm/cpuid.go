//go:build linux && amd64

package kvm

import (
	"fmt"

	"github.com/klauspost/cpuid/v2"
)

// State components of XCR0.
const (
	xfeatX87    = 1 << 0
	xfeatSSE    = 1 << 1
	xfeatAVX    = 1 << 2
	xfeatAVX512 = 7 << 5
)

// cpuidMask takes feature bits of one register away. A mask only hides: what a
// bit stands for cannot be used either, by what CR4, XCR0 and the MSRs allow.
// Some hosts show a guest the real CPUID whatever it was told,
// so nothing relies on hiding.
type cpuidMask struct {
	function, index    uint32
	ebx, ecx, edx, eax uint32
}

// hidden is what ring-3 code under this VMM cannot use, whatever KVM supports:
// kernel-only features, and those whose state the XSAVE image does not carry.
var hidden = []cpuidMask{
	// MONITOR, VMX, PCID, x2APIC, TSC deadline.
	{function: 1, ecx: 1<<3 | 1<<5 | 1<<17 | 1<<21 | 1<<24},
	// PKU, OSPKE, WAITPKG, shadow stacks, LA57; AMX (BF16, TILE, INT8), IBT. SGX.
	{function: 7, ebx: 1 << 2, ecx: 1<<3 | 1<<4 | 1<<5 | 1<<7 | 1<<16, edx: 1<<20 | 1<<22 | 1<<24 | 1<<25},
	// AMX FP16, COMPLEX.
	{function: 7, index: 1, eax: 1 << 21, edx: 1 << 8},
	// SVM.
	{function: 0x80000001, ecx: 1 << 2},
}

// guestCPUID filters what KVM supports into what a vCPU is shown, and returns
// with it the XCR0 that the guest's vector state uses.
func guestCPUID(supported *uCPUID) (*uCPUID, uint64, error) {
	xcr0, err := guestXCR0(supported)
	if err != nil {
		return nil, 0, err
	}
	out := &uCPUID{}
	for _, e := range supported.entries[:supported.n] {
		switch {
		case e.function == 0xd && e.index >= 2 && e.index < 64 && xcr0>>e.index&1 == 0:
			continue // the layout of a state component that the guest has not
		case e.function == 0x1d || e.function == 0x1e:
			continue // AMX tiles
		case e.function >= 0x40000000 && e.function < 0x50000000:
			continue // KVM's paravirtual interface: kernels only
		case e.function == 0xd && e.index == 0:
			e.eax &= uint32(xcr0)
			e.edx &= uint32(xcr0 >> 32)
		}
		for _, m := range hidden {
			if m.function == e.function && m.index == e.index {
				e.eax, e.ebx, e.ecx, e.edx = e.eax&^m.eax, e.ebx&^m.ebx, e.ecx&^m.ecx, e.edx&^m.edx
			}
		}
		out.entries[out.n] = e
		out.n++
	}
	return out, xcr0, nil
}

// guestXCR0 returns the state components that KVM supports and that this
// host's own programs may use (cpuid asks XGETBV), AMX aside: its 8 KiB per
// thread need a permission of the process (arch_prctl).
func guestXCR0(supported *uCPUID) (uint64, error) {
	if !cpuid.CPU.Supports(cpuid.FXSR, cpuid.SSE2, cpuid.OSXSAVE) {
		return 0, opError("cpuid", fmt.Errorf("%w: the CPU lacks FXSR, SSE2 or XSAVE", ErrNotSupported))
	}
	want := uint64(xfeatX87 | xfeatSSE)
	if cpuid.CPU.Supports(cpuid.AVX) {
		want |= xfeatAVX
	}
	if cpuid.CPU.Supports(cpuid.AVX, cpuid.AVX512F) {
		want |= xfeatAVX512
	}
	for _, e := range supported.entries[:supported.n] {
		if e.function == 0xd && e.index == 0 {
			want &= uint64(e.edx)<<32 | uint64(e.eax)
		}
	}
	if want&xfeatAVX512 != xfeatAVX512 {
		want &^= xfeatAVX512
	}
	return want | xfeatX87, nil
}

// hasFSGSBASE reports whether a vCPU may be given CR4.FSGSBASE.
func (c *uCPUID) hasFSGSBASE() bool {
	for _, e := range c.entries[:c.n] {
		if e.function == 7 && e.index == 0 {
			return e.ebx&1 != 0
		}
	}
	return false
}
