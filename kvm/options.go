package kvm

import "github.com/guestmm/guestmm/guestmem/addr"

// PlatformOptions says how a Platform is made. The zero value is usable.
type PlatformOptions struct {
	// MaxVCPUs is how many guest threads run at once; default GOMAXPROCS. More
	// Contexts than vCPUs take turns.
	MaxVCPUs int
	// Quarantine is how many retired table frames wait before a flush makes them
	// usable again; default a sixteenth of the memory's frames, at least 64 and at
	// most 4096.
	Quarantine int
	// SyscallEntry, if not 0, is where SYSCALL leads on hosts whose processor
	// stays in ring 3 at it; elsewhere it is not used (see Platform.SyscallEntry).
	// The code there is the guest's, with its rights and registers, which are as
	// SYSCALL left them. A jump from anywhere in ring 3 to SyscallGate makes the
	// call: ExitSyscall, to go on at RCX with the flags of R11. Where a space has
	// nothing to execute at SyscallEntry, SYSCALL makes the call itself.
	//
	// There an exit costs 38 µs and SYSCALL alone 1 µs, so that some calls are
	// better answered in ring 3.
	SyscallEntry addr.GVA
}

// SyscallGate is in the supervisor half: an attempt to execute it in ring 3 is a
// system call on hosts that use PlatformOptions.SyscallEntry, and else a fault.
const SyscallGate addr.GVA = 0xffffff8000001080
