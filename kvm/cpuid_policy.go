package kvm

import (
	"fmt"

	"github.com/klauspost/cpuid/v2"
)

// CPUIDPolicy decides which CPU a guest is shown. The zero value shows what the
// host's KVM supports, without the features whose state a guest cannot have here (AMX).
//
// Some hosts show a guest their real CPUID whatever they were told, so a policy
// is for guests that would move between hosts, not a fence.
type CPUIDPolicy struct {
	// Baseline, if not nil, are the features shown beside those that every x86-64
	// has: NewVM answers ErrNotSupported, with its name, if the host lacks one.
	// CPUIDLevel has lists.
	Baseline []cpuid.FeatureID
	// Hide are features that are not shown, whatever else says so.
	Hide []cpuid.FeatureID
	// Mask takes further bits away.
	Mask []CPUIDMask
}

// CPUIDMask takes the bits that are set here from one leaf.
type CPUIDMask struct {
	Function, Index    uint32
	EAX, EBX, ECX, EDX uint32
}

// CPUIDChange is a register in which a guest is shown something else than KVM
// supports.
type CPUIDChange struct {
	Function, Index  uint32
	Register         string // EAX, EBX, ECX or EDX
	Supported, Shown uint32
	Hidden           []cpuid.FeatureID // features with a name that are gone
}

func (c CPUIDChange) String() string {
	return fmt.Sprintf("CPUID %#x.%d %s: %#x, supported %#x, without %v", c.Function, c.Index, c.Register, c.Shown, c.Supported, c.Hidden)
}

// CPUIDLevel returns the features of a level of the x86-64 psABI, 1 to 4, as a
// Baseline, those of the levels below it too.
func CPUIDLevel(level int) []cpuid.FeatureID {
	out := []cpuid.FeatureID{}
	for i, l := range [][]cpuid.FeatureID{
		{},
		{cpuid.CX16, cpuid.LAHF, cpuid.POPCNT, cpuid.SSE3, cpuid.SSE4, cpuid.SSE42, cpuid.SSSE3},
		{cpuid.AVX, cpuid.AVX2, cpuid.BMI1, cpuid.BMI2, cpuid.F16C, cpuid.FMA3, cpuid.LZCNT, cpuid.MOVBE, cpuid.XSAVE},
		{cpuid.AVX512F, cpuid.AVX512BW, cpuid.AVX512CD, cpuid.AVX512DQ, cpuid.AVX512VL},
	} {
		if i < level {
			out = append(out, l...)
		}
	}
	return out
}

// cpuidReg is a register of a leaf.
type cpuidReg uint8

const (
	regEAX cpuidReg = iota
	regEBX
	regECX
	regEDX
)

func (r cpuidReg) String() string { return [...]string{"EAX", "EBX", "ECX", "EDX"}[r] }

// cpuidWord names one register of one leaf.
type cpuidWord struct {
	function, index uint32
	reg             cpuidReg
}

func (w cpuidWord) String() string { return fmt.Sprintf("%#x.%d %v", w.function, w.index, w.reg) }

func (w cpuidWord) of(e *CPUIDEntry) *uint32 {
	return [...]*uint32{&e.EAX, &e.EBX, &e.ECX, &e.EDX}[w.reg]
}

// Words of features.
var (
	word1C  = cpuidWord{1, 0, regECX}
	word1D  = cpuidWord{1, 0, regEDX}
	word7B  = cpuidWord{7, 0, regEBX}
	word7C  = cpuidWord{7, 0, regECX}
	word7D  = cpuidWord{7, 0, regEDX}
	word71A = cpuidWord{7, 1, regEAX}
	word71D = cpuidWord{7, 1, regEDX}
	wordD1A = cpuidWord{0xd, 1, regEAX}
	wordE1C = cpuidWord{0x80000001, 0, regECX}
	wordE1D = cpuidWord{0x80000001, 0, regEDX}
	wordE8B = cpuidWord{0x80000008, 0, regEBX}
)

// featureWords are the words whose bits are features.
//
// always: bits that depend on the machine or on the guest's own state, so that
// one host having them and another not means nothing: in 1 ECX x2APIC, TSC deadline,
// OSXSAVE and the hypervisor bit, all KVM's; in 1 EDX HTT; in 7 ECX OSPKE.
//
// core: what every x86-64 has, and what a 64-bit kernel takes for granted; shown
// under any baseline.
var featureWords = []struct {
	cpuidWord
	always, core uint32
}{
	{word1C, 1<<21 | 1<<24 | 1<<27 | 1<<31, 1<<21 | 1<<24 | 1<<31},
	{word1D, 1 << 28, 0x178bfbff | 1<<28},
	{word7B, 0, 1<<0 | 1<<1 | 1<<7 | 1<<20}, // FSGSBASE, TSC_ADJUST, SMEP, SMAP: for kernels
	{word7C, 1 << 4, 1<<2 | 1<<22},          // UMIP, RDPID
	{word7D, 0, 1<<10 | 1<<26 | 1<<27 | 1<<28 | 1<<29 | 1<<31},
	{word71A, 0, 0},
	{word71D, 0, 0},
	{wordD1A, 0, 0},
	{wordE1C, 0, 1 << 22}, // TOPOEXT
	{wordE1D, 0, 0x2fd3fbff},
	{wordE8B, 0, 0},
}

type cpuidBit struct {
	cpuidWord
	bit uint8
}

// featureBits says where the features are that have a name in cpuid/v2.
var featureBits = map[cpuid.FeatureID]cpuidBit{
	cpuid.SSE3: {word1C, 0}, cpuid.CLMUL: {word1C, 1}, cpuid.VMX: {word1C, 5}, cpuid.SSSE3: {word1C, 9},
	cpuid.FMA3: {word1C, 12}, cpuid.CX16: {word1C, 13}, cpuid.SSE4: {word1C, 19}, cpuid.SSE42: {word1C, 20},
	cpuid.MOVBE: {word1C, 22}, cpuid.POPCNT: {word1C, 23}, cpuid.AESNI: {word1C, 25}, cpuid.XSAVE: {word1C, 26},
	cpuid.AVX: {word1C, 28}, cpuid.F16C: {word1C, 29}, cpuid.RDRAND: {word1C, 30}, cpuid.HYPERVISOR: {word1C, 31},

	cpuid.X87: {word1D, 0}, cpuid.CMPXCHG8: {word1D, 8}, cpuid.SYSEE: {word1D, 11}, cpuid.CMOV: {word1D, 15},
	cpuid.MMX: {word1D, 23}, cpuid.FXSR: {word1D, 24}, cpuid.SSE: {word1D, 25}, cpuid.SSE2: {word1D, 26}, cpuid.HTT: {word1D, 28},

	cpuid.SGX: {word7B, 2}, cpuid.BMI1: {word7B, 3}, cpuid.HLE: {word7B, 4}, cpuid.AVX2: {word7B, 5}, cpuid.BMI2: {word7B, 8},
	cpuid.ERMS: {word7B, 9}, cpuid.RTM: {word7B, 11}, cpuid.MPX: {word7B, 14}, cpuid.AVX512F: {word7B, 16}, cpuid.AVX512DQ: {word7B, 17},
	cpuid.RDSEED: {word7B, 18}, cpuid.ADX: {word7B, 19}, cpuid.AVX512IFMA: {word7B, 21}, cpuid.AVX512PF: {word7B, 26},
	cpuid.AVX512ER: {word7B, 27}, cpuid.AVX512CD: {word7B, 28}, cpuid.SHA: {word7B, 29}, cpuid.AVX512BW: {word7B, 30}, cpuid.AVX512VL: {word7B, 31},

	cpuid.AVX512VBMI: {word7C, 1}, cpuid.WAITPKG: {word7C, 5}, cpuid.AVX512VBMI2: {word7C, 6}, cpuid.CETSS: {word7C, 7}, cpuid.GFNI: {word7C, 8},
	cpuid.VAES: {word7C, 9}, cpuid.VPCLMULQDQ: {word7C, 10}, cpuid.AVX512VNNI: {word7C, 11}, cpuid.AVX512BITALG: {word7C, 12},
	cpuid.AVX512VPOPCNTDQ: {word7C, 14}, cpuid.KEYLOCKER: {word7C, 23}, cpuid.CLDEMOTE: {word7C, 25}, cpuid.MOVDIRI: {word7C, 27},
	cpuid.MOVDIR64B: {word7C, 28}, cpuid.ENQCMD: {word7C, 29}, cpuid.SGXLC: {word7C, 30},

	cpuid.FSRM: {word7D, 4}, cpuid.AVX512VP2INTERSECT: {word7D, 8}, cpuid.SRBDS_CTRL: {word7D, 9}, cpuid.MD_CLEAR: {word7D, 10},
	cpuid.RTM_ALWAYS_ABORT: {word7D, 11}, cpuid.SERIALIZE: {word7D, 14}, cpuid.TSXLDTRK: {word7D, 16}, cpuid.CETIBT: {word7D, 20},
	cpuid.AMXBF16: {word7D, 22}, cpuid.AVX512FP16: {word7D, 23}, cpuid.AMXTILE: {word7D, 24}, cpuid.AMXINT8: {word7D, 25},
	cpuid.IBPB: {word7D, 26}, cpuid.STIBP: {word7D, 27}, cpuid.FLUSH_L1D: {word7D, 28}, cpuid.IA32_ARCH_CAP: {word7D, 29},
	cpuid.IA32_CORE_CAP: {word7D, 30}, cpuid.SPEC_CTRL_SSBD: {word7D, 31},

	cpuid.AVXVNNI: {word71A, 4}, cpuid.AVX512BF16: {word71A, 5}, cpuid.CMPCCXADD: {word71A, 7}, cpuid.FRED: {word71A, 17},
	cpuid.AMXFP16: {word71A, 21}, cpuid.HRESET: {word71A, 22}, cpuid.AVXIFMA: {word71A, 23}, cpuid.LAM: {word71A, 26},
	cpuid.AVXVNNIINT8: {word71D, 4}, cpuid.AVXNECONVERT: {word71D, 5}, cpuid.AMXCOMPLEX: {word71D, 8}, cpuid.AVXVNNIINT16: {word71D, 10}, cpuid.PREFETCHI: {word71D, 14},

	cpuid.XSAVEOPT: {wordD1A, 0}, cpuid.XSAVEC: {wordD1A, 1}, cpuid.XGETBV1: {wordD1A, 2}, cpuid.XSAVES: {wordD1A, 3},

	cpuid.LAHF: {wordE1C, 0}, cpuid.SVM: {wordE1C, 2}, cpuid.LZCNT: {wordE1C, 5}, cpuid.SSE4A: {wordE1C, 6}, cpuid.XOP: {wordE1C, 11},
	cpuid.FMA4: {wordE1C, 16}, cpuid.TBM: {wordE1C, 21}, cpuid.TOPEXT: {wordE1C, 22},
	cpuid.SYSCALL: {wordE1D, 11}, cpuid.NX: {wordE1D, 20}, cpuid.MMXEXT: {wordE1D, 22}, cpuid.FXSROPT: {wordE1D, 25},
	cpuid.RDTSCP: {wordE1D, 27}, cpuid.AMD3DNOWEXT: {wordE1D, 30}, cpuid.AMD3DNOW: {wordE1D, 31},
	cpuid.CLZERO: {wordE8B, 0}, cpuid.RDPRU: {wordE8B, 4}, cpuid.MCOMMIT: {wordE8B, 8}, cpuid.WBNOINVD: {wordE8B, 9}, cpuid.IBRS: {wordE8B, 14},
}

// nFeatures bounds the loop over features that find their names by bit.
const nFeatures = 512

// namesOf returns the features that the bits of a word stand for.
func namesOf(w cpuidWord, bits uint32) (names []cpuid.FeatureID) {
	for f := range cpuid.FeatureID(nFeatures) {
		if b, ok := featureBits[f]; ok && b.cpuidWord == w && bits>>b.bit&1 != 0 {
			names = append(names, f)
		}
	}
	return names
}

// findCPUID returns an entry, or a zero one.
func findCPUID(entries []CPUIDEntry, function, index uint32) CPUIDEntry {
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	return CPUIDEntry{}
}

func hasLeaf(entries []CPUIDEntry, function, index uint32) bool {
	for _, e := range entries {
		if e.Function == function && e.Index == index {
			return true
		}
	}
	return false
}
