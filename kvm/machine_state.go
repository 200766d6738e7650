package kvm

// VMState is the state of a VM beside memory and vCPUs. The fields are exported
// for encoders; MarshalBinary is one, with a version.
type VMState struct {
	// IRQChips are the two 8259 and the IOAPIC as the kernel has them; nil without
	// IRQChipKernel.
	IRQChips *[3][512]byte
	// PIT is nil without PITKernel.
	PIT *PITState
	// Clock is the time that kvmclock shows.
	Clock ClockData
}

// PITState is the state of the timer (struct kvm_pit_state2).
type PITState struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// PITChannel is one of its counters (struct kvm_pit_channel_state).
type PITChannel struct {
	Count                                           uint32
	LatchedCount                                    uint16
	CountLatched, StatusLatched, Status, ReadState  uint8
	WriteState, WriteLatch, RWMode, Mode, BCD, Gate uint8
	CountLoadTime                                   int64
}

// ClockData is struct kvm_clock_data. Flags (KVM_CLOCK_*) say whether Realtime and
// HostTSC, which were read at the same time, are valid.
type ClockData struct {
	Clock    uint64 // nanoseconds
	Flags    uint32
	_        uint32
	Realtime uint64 // nanoseconds since 1970 UTC
	HostTSC  uint64 // ticks
	_        [4]uint32
}

// VCPUState is the whole state of a vCPU. The fields are exported for encoders;
// MarshalBinary is one, with a version.
type VCPUState struct {
	CPUID  []CPUIDEntry // what the guest is shown
	TSCKHz uint32       // the frequency of its time-stamp counter; 0: not known

	Regs   GeneralRegs
	Sregs  SpecialRegs
	XCR0   uint64
	XSave  []byte // an image in the standard format
	Debug  DebugRegs
	Events VCPUEvents
	MP     MPState
	LAPIC  *[1024]byte // nil without IRQChipKernel

	MSRs []MSR
	// Unread are MSRs that the kernel lists and would not read: they are not part
	// of the state, and a guest that uses them will miss them.
	Unread []uint32
}

// MachineState is a whole guest but for its memory.
type MachineState struct {
	VM    VMState
	VCPUs []VCPUState // in the order of NewVCPU
}
