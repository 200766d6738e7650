package kvm

// GeneralRegs are the integer registers of a vCPU, in the order of the kernel's
// struct kvm_regs.
type GeneralRegs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64
}

// Segment is a segment register with what the processor has cached of its
// descriptor (struct kvm_segment).
type Segment struct {
	Base                           uint64
	Limit                          uint32 // in bytes, whatever G is
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// DescriptorTable is GDTR or IDTR (struct kvm_dtable).
type DescriptorTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// SpecialRegs are segments, control registers and EFER (struct kvm_sregs2). On
// a kernel before 5.14, which has no KVM_GET_SREGS2, Flags is 0 and PDPTRs is
// not carried: a 32-bit guest with PAE then has its PDPTRs read from memory.
type SpecialRegs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DescriptorTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	Flags                   uint64 // bit 0: PDPTRs is valid
	PDPTRs                  [4]uint64
}

// VCPUEvents are exceptions, interrupts, NMIs and SMIs on their way into the
// guest (struct kvm_vcpu_events).
type VCPUEvents struct {
	ExceptionInjected, ExceptionNr, ExceptionHasCode, ExceptionPending uint8
	ExceptionCode                                                      uint32
	InterruptInjected, InterruptNr, InterruptSoft, InterruptShadow     uint8
	NMIInjected, NMIPending, NMIMasked                                 uint8
	_                                                                  uint8
	SIPIVector                                                         uint32
	Flags                                                              uint32
	SMM, SMIPending, SMMInsideNMI, LatchedInit                         uint8
	TripleFaultPending                                                 uint8
	_                                                                  [26]uint8
	ExceptionHasPayload                                                uint8
	ExceptionPayload                                                   uint64
}

// DebugRegs are DR0 to DR3, DR6 and DR7 (struct kvm_debugregs).
type DebugRegs struct {
	DR       [4]uint64
	DR6, DR7 uint64
	Flags    uint64
	_        [9]uint64
}

// MSR is a model-specific register and its value (struct kvm_msr_entry).
type MSR struct {
	Index uint32
	_     uint32
	Data  uint64
}

// CPUIDEntry is what CPUID answers for one leaf (struct kvm_cpuid_entry2).
type CPUIDEntry struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// MPState is what a vCPU does when it is run (KVM_MP_STATE_*). States other
// than MPRunnable need the in-kernel interrupt controller.
type MPState uint32

const (
	MPRunnable      MPState = 0
	MPUninitialized MPState = 1 // an application processor that waits for INIT
	MPInitReceived  MPState = 2
	MPHalted        MPState = 3
	MPSIPIReceived  MPState = 4
)
