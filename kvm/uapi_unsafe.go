//go:build linux && amd64

package kvm

import "unsafe"

// The kernel's structures, field for field (include/uapi/linux/kvm.h and
// arch/x86/include/uapi/asm/kvm.h). Their sizes go into the ioctl numbers, so
// a wrong one is refused by the kernel as ENOTTY; the constants at the end
// refuse it at compile time.

// uRegs is struct kvm_regs. [Regs] begins with the same words in the same
// order, so that an exit copies them at once.
type uRegs struct {
	rax, rbx, rcx, rdx uint64
	rsi, rdi, rsp, rbp uint64
	r8, r9, r10, r11   uint64
	r12, r13, r14, r15 uint64
	rip, rflags        uint64
}

// uSegment is struct kvm_segment.
type uSegment struct {
	base                           uint64
	limit                          uint32
	selector                       uint16
	typ                            uint8
	present, dpl, db, s, l, g, avl uint8
	unusable                       uint8
	_                              uint8
}

// uTable is struct kvm_dtable.
type uTable struct {
	base  uint64
	limit uint16
	_     [3]uint16
}

// uSregs is struct kvm_sregs.
type uSregs struct {
	cs, ds, es, fs, gs, ss  uSegment
	tr, ldt                 uSegment
	gdt, idt                uTable
	cr0, cr2, cr3, cr4, cr8 uint64
	efer                    uint64
	apicBase                uint64
	interrupts              [4]uint64
}

// uRun is the head of struct kvm_run, the page or more shared with the kernel.
type uRun struct {
	// interruptWindow holds request_interrupt_window (byte 0, always 0 here)
	// and immediate_exit (byte 1): one word, so that a kicker on another
	// thread stores it atomically.
	interruptWindow uint32
	_               uint32
	exitReason      uint32
	_               uint32 // ready_for_interrupt_injection, if_flag, flags
	cr8             uint64
	apicBase        uint64
	exit            [32]uint64 // the union of exit details
	validRegs       uint64
	dirtyRegs       uint64
	regs            uRegs
	sregs           uSregs
	events          VCPUEvents
	_               [2048 - 144 - 312 - 64]uint8
}

// uMemoryRegion is struct kvm_userspace_memory_region.
type uMemoryRegion struct {
	slot, flags uint32
	gpa         uint64
	size        uint64
	hva         uint64
}

// uMSR is struct kvm_msr_entry; uMSRs is struct kvm_msrs with room for what is
// set at creation.
type uMSR struct {
	index, _ uint32
	data     uint64
}

type uMSRs struct {
	n, _    uint32
	entries [8]uMSR
}

// uCPUIDEntry is struct kvm_cpuid_entry2; uCPUID is struct kvm_cpuid2.
type uCPUIDEntry struct {
	function, index, flags uint32
	eax, ebx, ecx, edx     uint32
	_                      [3]uint32
}

type uCPUID struct {
	n, _    uint32
	entries [maxCPUID]uCPUIDEntry
}

// maxCPUID is KVM_MAX_CPUID_ENTRIES.
const maxCPUID = 256

// uXCRs is struct kvm_xcrs.
type uXCRs struct {
	n, _ uint32
	xcrs [16]struct {
		xcr, _ uint32
		value  uint64
	}
	_ [16]uint64
}

// uDebugRegs is struct kvm_debugregs.
type uDebugRegs struct {
	_        [4]uint64 // DR0 to DR3
	dr6, dr7 uint64
	_        [10]uint64 // flags, reserved
}

const (
	syncRegs   = 1 << 0 // KVM_SYNC_X86_REGS
	syncSregs  = 1 << 1 // KVM_SYNC_X86_SREGS
	syncEvents = 1 << 2 // KVM_SYNC_X86_EVENTS
	syncAll    = syncRegs | syncSregs | syncEvents

	immediateExit = 1 << 8 // in uRun.interruptWindow
)

// Exit reasons (KVM_EXIT_*).
const (
	exitUnknown       = 0
	exitIO            = 2
	exitHLT           = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitIntr          = 10
	exitInternalError = 17
)

// Capabilities (KVM_CAP_*).
const (
	capMaxVCPUs      = 66
	capSyncRegs      = 74
	capImmediateExit = 136
	capXSave2        = 208
)

// Each line compiles only if the size is the kernel's.
var (
	_ [144]byte  = [unsafe.Sizeof(uRegs{})]byte{}
	_ [24]byte   = [unsafe.Sizeof(uSegment{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(uTable{})]byte{}
	_ [312]byte  = [unsafe.Sizeof(uSregs{})]byte{}
	_ [2352]byte = [unsafe.Sizeof(uRun{})]byte{}
	_ [304]byte  = [unsafe.Offsetof(uRun{}.regs)]byte{}
	_ [32]byte   = [unsafe.Sizeof(uMemoryRegion{})]byte{}
	_ [16]byte   = [unsafe.Sizeof(uMSR{})]byte{}
	_ [40]byte   = [unsafe.Sizeof(uCPUIDEntry{})]byte{}
	_ [392]byte  = [unsafe.Sizeof(uXCRs{})]byte{}
	_ [128]byte  = [unsafe.Sizeof(uDebugRegs{})]byte{}
	_ [8]byte    = [unsafe.Offsetof(uMSRs{}.entries)]byte{}
	_ [8]byte    = [unsafe.Offsetof(uCPUID{}.entries)]byte{}
)
