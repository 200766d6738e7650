package kvm

import (
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// VMExitKind says why VCPU.Run returned.
type VMExitKind uint8

const (
	// VMExitUnknown: an exit of the kernel's that this package does not decode;
	// Reason and Details have it raw.
	VMExitUnknown VMExitKind = iota
	// VMExitKicked: Kick was called, or ctx is done; its cause is the error then.
	VMExitKicked
	// VMExitIO: in or out. Data has Size bytes for each of Count repetitions.
	VMExitIO
	// VMExitMMIO: an access to a hole, or a write to read-only memory. Larger
	// accesses come in parts of up to eight bytes.
	VMExitMMIO
	// VMExitHLT: the guest halted and no interrupt controller in the kernel waits
	// for it.
	VMExitHLT
	// VMExitShutdown: a triple fault.
	VMExitShutdown
	// VMExitSystemEvent: the guest asked for a reset or a power-off; Code says which.
	VMExitSystemEvent
	// VMExitInternalError: KVM cannot go on; Code is the suberror. Suberror 1 is an
	// instruction that it cannot emulate, which Instruction has. The guest can be
	// run again once its state is changed, and not before.
	VMExitInternalError
	// VMExitFailEntry: the processor refused the state; Code is its reason.
	VMExitFailEntry
	// VMExitDirtyRingFull: the dirty ring is full and harvesting it has failed.
	VMExitDirtyRingFull
	// VMExitMemoryFault: the host has no memory for what the guest touched
	// (Errno: EFAULT, or EHWPOISON). GPA is valid if HasGPA. Run tries again.
	VMExitMemoryFault
	// VMExitDebug: a breakpoint or single step that debugging asked for.
	VMExitDebug
	// VMExitIRQWindow: the guest can take an interrupt; see RequestIRQWindow.
	VMExitIRQWindow
)

var vmExitNames = [...]string{
	"unknown", "kicked", "io", "mmio", "hlt", "shutdown", "system event", "internal error", "failed entry",
	"dirty ring full", "memory fault", "debug", "irq window",
}

func (k VMExitKind) String() string {
	if int(k) < len(vmExitNames) {
		return vmExitNames[k]
	}
	return fmt.Sprintf("VMExitKind(%d)", uint8(k))
}

// VCPUExit is what a VCPU.Run returned for. Which fields count depends on Kind.
type VCPUExit struct {
	Kind   VMExitKind
	Reason uint32 // KVM_EXIT_*

	// Access, of IO and MMIO: Write if the guest writes Data; Read if it is to
	// be answered by filling Data before the next Run.
	Access guestmem.Access
	Port   uint16   // of IO
	Size   uint8    // of IO: bytes at a time, 1, 2 or 4
	Count  uint32   // of IO: how many times (rep ins, rep outs)
	HasGPA bool     // GPA is valid; always for MMIO
	GPA    addr.GPA // of MMIO and memory faults
	// Data is the vCPU's: valid until its next Run or state access.
	Data []byte

	Code        uint64        // of internal error, failed entry, system event
	Errno       syscall.Errno // of a memory fault
	Instruction []byte        // of an internal error by emulation: its bytes, if known
	Details     []uint64      // of rare exits: what the kernel says of them
}

func (e VCPUExit) String() string {
	switch e.Kind {
	case VMExitIO:
		return fmt.Sprintf("io: %s port %#x, %d × %d bytes: % x", accessName(e.Access), e.Port, e.Count, e.Size, e.Data)
	case VMExitMMIO:
		return fmt.Sprintf("mmio: %s at %v: % x", accessName(e.Access), e.GPA, e.Data)
	case VMExitInternalError:
		if e.Code == 1 {
			return fmt.Sprintf("internal error 1: instruction % x cannot be emulated", e.Instruction)
		}
		return fmt.Sprintf("internal error %d: %#x", e.Code, e.Details)
	case VMExitFailEntry, VMExitSystemEvent:
		return fmt.Sprintf("%v %#x", e.Kind, e.Code)
	case VMExitMemoryFault:
		if e.HasGPA {
			return fmt.Sprintf("memory fault at %v: %v", e.GPA, e.Errno)
		}
		return fmt.Sprintf("memory fault: %v", e.Errno)
	case VMExitUnknown:
		return fmt.Sprintf("exit %d: %#x", e.Reason, e.Details)
	}
	return e.Kind.String()
}

func accessName(a guestmem.Access) string {
	if a == guestmem.Write {
		return "write"
	}
	return "read"
}
