//go:build linux && amd64

package kvm

import "unsafe"

// The kernel's structures that only a full VM needs, checked as those of
// uapi_unsafe.go are. GeneralRegs, SpecialRegs, VCPUEvents, DebugRegs, PITState
// and ClockData are exported with the kernel's own layout.

// uMemoryRegion2 is struct kvm_userspace_memory_region2 (Linux 6.8).
type uMemoryRegion2 struct {
	uMemoryRegion
	memfdOffset uint64
	memfd, _    uint32
	_           [14]uint64
}

// uGuestMemfd is struct kvm_create_guest_memfd.
type uGuestMemfd struct {
	size, flags uint64
	_           [6]uint64
}

// uDirtyLog is struct kvm_dirty_log.
type uDirtyLog struct {
	slot, _ uint32
	bitmap  uint64
}

// uClearDirtyLog is struct kvm_clear_dirty_log.
type uClearDirtyLog struct {
	slot, nPages uint32
	first        uint64
	bitmap       uint64
}

// uDirtyGFN is struct kvm_dirty_gfn, an entry of a dirty ring.
type uDirtyGFN struct {
	flags, slot uint32
	offset      uint64
}

// uEnableCap is struct kvm_enable_cap.
type uEnableCap struct {
	capability, _ uint32
	args          [4]uint64
	_             [64]uint8
}

// uIRQChip is struct kvm_irqchip.
type uIRQChip struct {
	id, _ uint32
	state [irqChipSize]byte
}

// uPITConfig is struct kvm_pit_config.
type uPITConfig struct {
	flags uint32
	_     [15]uint32
}

// uIRQLevel is struct kvm_irq_level.
type uIRQLevel struct{ irq, level uint32 }

// uMSI is struct kvm_msi.
type uMSI struct {
	addrLow, addrHigh, data, _ uint32    // the last: flags
	_                          [16]uint8 // device, padding
}

// uIRQFD is struct kvm_irqfd.
type uIRQFD struct {
	fd, gsi, flags, _ uint32 // the last: the eventfd of level-triggered lines
	_                 [16]uint8
}

// uIOEventFD is struct kvm_ioeventfd.
type uIOEventFD struct {
	match, address uint64
	length         uint32
	fd             int32
	flags          uint32
	_              [36]uint8
}

// uTranslation is struct kvm_translation.
type uTranslation struct {
	linear, physical uint64
	valid            uint8
	_                [7]uint8 // writable, user mode, padding
}

// uMSRList is struct kvm_msr_list with room for every MSR that a KVM may list.
type uMSRList struct {
	n       uint32
	indices [maxMSRs]uint32
}

// uMSRBatch is struct kvm_msrs with room for as many as one call takes
// (MAX_IO_MSRS).
type uMSRBatch struct {
	n, _    uint32
	entries [msrBatch]MSR
}

const (
	irqChipSize = 512
	lapicSize   = 1024
	maxMSRs     = 1024
	msrBatch    = 256
)

// dirtyRingOf views the mapping of a vCPU's dirty ring.
//
// Preconditions:
//   - mem is that mapping, and stays mapped while the result is used.
func dirtyRingOf(mem []byte) []uDirtyGFN {
	// SAFETY: a mapping is page-aligned; the kernel's entries are uDirtyGFN's, as
	// the sizes below check, and fill it.
	return unsafe.Slice((*uDirtyGFN)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/int(unsafe.Sizeof(uDirtyGFN{})))
}

// addressOfWord returns the address of a word of a bitmap that is pinned.
func addressOfWord(w *uint64) uint64 {
	// SAFETY: only the number is used; the caller has pinned the bitmap.
	return uint64(uintptr(unsafe.Pointer(w)))
}

// Each line compiles only if the size is the kernel's.
var (
	_ [144]byte = [unsafe.Sizeof(GeneralRegs{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(Segment{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(DescriptorTable{})]byte{}
	_ [320]byte = [unsafe.Sizeof(SpecialRegs{})]byte{}
	_ [280]byte = [unsafe.Offsetof(SpecialRegs{}.Flags)]byte{}
	_ [64]byte  = [unsafe.Sizeof(VCPUEvents{})]byte{}
	_ [56]byte  = [unsafe.Offsetof(VCPUEvents{}.ExceptionPayload)]byte{}
	_ [128]byte = [unsafe.Sizeof(DebugRegs{})]byte{}
	_ [112]byte = [unsafe.Sizeof(PITState{})]byte{}
	_ [48]byte  = [unsafe.Sizeof(ClockData{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(MSR{})]byte{}
	_ [40]byte  = [unsafe.Sizeof(CPUIDEntry{})]byte{}
	_ [160]byte = [unsafe.Sizeof(uMemoryRegion2{})]byte{}
	_ [64]byte  = [unsafe.Sizeof(uGuestMemfd{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(uDirtyLog{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(uClearDirtyLog{})]byte{}
	_ [16]byte  = [unsafe.Sizeof(uDirtyGFN{})]byte{}
	_ [104]byte = [unsafe.Sizeof(uEnableCap{})]byte{}
	_ [520]byte = [unsafe.Sizeof(uIRQChip{})]byte{}
	_ [64]byte  = [unsafe.Sizeof(uPITConfig{})]byte{}
	_ [8]byte   = [unsafe.Sizeof(uIRQLevel{})]byte{}
	_ [32]byte  = [unsafe.Sizeof(uMSI{})]byte{}
	_ [32]byte  = [unsafe.Sizeof(uIRQFD{})]byte{}
	_ [64]byte  = [unsafe.Sizeof(uIOEventFD{})]byte{}
	_ [24]byte  = [unsafe.Sizeof(uTranslation{})]byte{}
	_ [4]byte   = [unsafe.Offsetof(uMSRList{}.indices)]byte{}
	_ [8]byte   = [unsafe.Offsetof(uMSRBatch{}.entries)]byte{}
	_ [8]byte   = [unsafe.Offsetof(uCPUIDList{}.entries)]byte{}
)

// uCPUIDList is struct kvm_cpuid2 with exported entries.
type uCPUIDList struct {
	n, _    uint32
	entries [maxCPUID]CPUIDEntry
}
