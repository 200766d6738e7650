package kvm

import (
	"fmt"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// ExitKind says why a Run returned.
type ExitKind uint8

const (
	// ExitKicked: Kick was called, or the context was done.
	ExitKicked ExitKind = iota
	// ExitSyscall: the guest executed SYSCALL. Its number is in Regs.RAX, its
	// arguments in RDI, RSI, RDX, R10, R8, R9; RIP is after the instruction; RCX
	// and R11 are lost to the instruction. The result goes to Regs.RAX.
	ExitSyscall
	// ExitPageFault: an access of kind Access at Addr faulted; RIP is at the
	// instruction, which the next Run tries again.
	ExitPageFault
	// ExitException: another exception, Vector with ErrorCode; RIP is where the
	// processor reports it (at the instruction for faults, after it for #BP).
	ExitException
)

func (k ExitKind) String() string {
	switch k {
	case ExitKicked:
		return "kicked"
	case ExitSyscall:
		return "syscall"
	case ExitPageFault:
		return "page fault"
	case ExitException:
		return "exception"
	}
	return fmt.Sprintf("ExitKind(%d)", uint8(k))
}

// Exit is what a Run returned for. The registers are in the Context.
type Exit struct {
	Kind      ExitKind
	Vector    uint8           // of ExitException and ExitPageFault
	Access    guestmem.Access // of ExitPageFault
	ErrorCode uint32          // the processor's, of ExitException and ExitPageFault
	Addr      addr.GVA        // of ExitPageFault: CR2
	RunTime   time.Duration   // spent in KVM_RUN
}

func (e Exit) String() string {
	switch e.Kind {
	case ExitPageFault:
		return fmt.Sprintf("page fault at %v, access %d, error %#x", e.Addr, e.Access, e.ErrorCode)
	case ExitException:
		return fmt.Sprintf("exception %d, error %#x", e.Vector, e.ErrorCode)
	}
	return e.Kind.String()
}

// Bits of a page fault's error code.
const (
	pfPresent = 1 << 0
	pfWrite   = 1 << 1
	pfUser    = 1 << 2
	pfExecute = 1 << 4
)

// faultAccess names the access that a page fault's error code tells of.
func faultAccess(code uint32) guestmem.Access {
	switch {
	case code&pfExecute != 0:
		return guestmem.Execute
	case code&pfWrite != 0:
		return guestmem.Write
	}
	return guestmem.Read
}
