//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/cpuid/v2"
)

// TestFeatureBitsAreCPUIDs holds the table of features against what cpuid/v2 finds on
// this processor by its own reading.
func TestFeatureBitsAreCPUIDs(t *testing.T) {
	s := requireKVM(t)
	for f, b := range featureBits {
		e := findCPUID(s.host.cpuid, b.function, b.index)
		if *b.of(&e)>>b.bit&1 != 0 && !cpuid.CPU.Has(f) && !synthetic[f] {
			t.Errorf("KVM supports %v by %v bit %d, and the processor has it not", f, b.cpuidWord, b.bit)
		}
	}
}

// synthetic are features that KVM offers of its own, or that cpuid/v2 reads only
// together with others.
var synthetic = map[cpuid.FeatureID]bool{
	cpuid.HTT: true, cpuid.SEV: true, cpuid.IBRS: true, cpuid.MMXEXT: true, cpuid.VMX: true, cpuid.LAM: true,
	cpuid.IA32_ARCH_CAP: true, cpuid.SPEC_CTRL_SSBD: true, cpuid.STIBP: true, cpuid.IBPB: true, cpuid.TOPEXT: true, cpuid.HYPERVISOR: true,
}

func TestCPUIDPolicy(t *testing.T) {
	s := requireKVM(t)
	all, _, err := s.CPUID(VMOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := func(entries []CPUIDEntry, f cpuid.FeatureID) bool {
		b := featureBits[f]
		e := findCPUID(entries, b.function, b.index)
		return *b.of(&e)>>b.bit&1 != 0
	}
	if !has(all, cpuid.SSE2) || !has(all, cpuid.HYPERVISOR) || has(all, cpuid.AMXTILE) {
		t.Error("the host's own CPU lacks SSE2 or the hypervisor bit, or has AMX")
	}
	v1, changes, err := s.CPUID(VMOptions{CPUID: CPUIDPolicy{Baseline: CPUIDLevel(1)}})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []cpuid.FeatureID{cpuid.SSE42, cpuid.AVX, cpuid.AVX2, cpuid.POPCNT, cpuid.RDRAND} {
		if has(v1, f) {
			t.Errorf("x86-64-v1 with %v", f)
		}
		if has(all, f) && !slices.ContainsFunc(changes, func(c CPUIDChange) bool { return slices.Contains(c.Hidden, f) }) {
			t.Errorf("%v is hidden, and not reported", f)
		}
	}
	for _, f := range []cpuid.FeatureID{cpuid.SSE2, cpuid.CMOV, cpuid.FXSR, cpuid.SYSCALL, cpuid.NX} {
		if !has(v1, f) {
			t.Errorf("x86-64-v1 without %v", f)
		}
	}
	if has(all, cpuid.SSE42) {
		v2, _, err := s.CPUID(VMOptions{CPUID: CPUIDPolicy{Baseline: CPUIDLevel(2), Hide: []cpuid.FeatureID{cpuid.CX16}, Mask: []CPUIDMask{{Function: 1, ECX: 1 << 0}}}})
		if err != nil || !has(v2, cpuid.SSE42) || has(v2, cpuid.CX16) || has(v2, cpuid.SSE3) {
			t.Errorf("x86-64-v2 without two features: %v", err)
		}
	}
	_, _, err = s.CPUID(VMOptions{CPUID: CPUIDPolicy{Baseline: []cpuid.FeatureID{cpuid.AMXTILE}}})
	if !errors.Is(err, ErrNotSupported) || !strings.Contains(err.Error(), "AMXTILE") {
		t.Errorf("a baseline that the host has not = %v", err)
	}
	_, _, err = s.CPUID(VMOptions{CPUID: CPUIDPolicy{Baseline: []cpuid.FeatureID{cpuid.ASIMD}}})
	if !errors.Is(err, ErrNotSupported) {
		t.Errorf("a feature of another architecture = %v", err)
	}
}

func TestEachVCPUHasItsOwnAPICID(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{VCPUs: 4})
	for id := range 4 {
		v, err := f.vm.NewVCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		entries, err := v.CPUID()
		if err != nil {
			t.Fatal(err)
		}
		if e := findCPUID(entries, 1, 0); e.EBX>>24 != uint32(id) || e.EBX>>16&0xff != 4 {
			t.Errorf("vCPU %d: leaf 1 EBX %#x", id, e.EBX)
		}
		if e := findCPUID(entries, 0xb, 1); hasLeaf(entries, 0xb, 1) && (e.EDX != uint32(id) || e.EBX != 4 || e.EAX != 2) {
			t.Errorf("vCPU %d: leaf 0xb %+v", id, e)
		}
	}
}
