package kvm

// DirtyMode says how a VM finds out which pages its vCPUs write.
type DirtyMode uint8

const (
	// DirtyNone: not at all.
	DirtyNone DirtyMode = iota
	// DirtyLog: by a bitmap of each slot in the kernel, which a harvest copies and
	// clears by run.
	DirtyLog
	// DirtyRing: by a ring for each vCPU, so that a harvest costs what was
	// written. Needs Linux 5.11; else NewVM answers ErrNotSupported.
	DirtyRing
)

func (m DirtyMode) String() string {
	return [...]string{"none", "log", "ring"}[m]
}

// IRQChipMode says where interrupt controllers are.
type IRQChipMode uint8

const (
	// IRQChipNone: nowhere in the kernel; HLT exits, and interrupts are injected
	// by VCPU.Interrupt.
	IRQChipNone IRQChipMode = iota
	// IRQChipKernel: two 8259, an IOAPIC and a LAPIC for each vCPU in the kernel.
	IRQChipKernel
)

// PITMode says where the timer of the PC is.
type PITMode uint8

const (
	// PITNone: nowhere in the kernel.
	PITNone PITMode = iota
	// PITKernel: an 8254 in the kernel; needs IRQChipKernel.
	PITKernel
)

// VMOptions says how a VM is made. The zero value is a VM without devices in
// the kernel, which shows its guest the CPU that the host has.
type VMOptions struct {
	Dirty DirtyMode
	// RingEntries is the size of each vCPU's dirty ring, a power of two; 4096 if 0.
	RingEntries int
	// MaxSlots limits the memory slots further than the kernel does
	// (KVM_CAP_NR_MEMSLOTS); 0: as many as it has.
	MaxSlots int
	// Coalesce says which regions share a slot.
	Coalesce Coalescing

	IRQChip IRQChipMode
	PIT     PITMode

	// CPUID decides what the guest is shown.
	CPUID CPUIDPolicy
	// VCPUs is how many vCPUs the topology in CPUID tells of; 1 if 0. It does not
	// limit NewVCPU.
	VCPUs int
}

const (
	defaultRingEntries = 4096
	ringEntrySize      = 16
)
