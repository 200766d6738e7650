// Package vdso is what the sandbox has to say in ring 3: the shared object that
// programs find by AT_SYSINFO_EHDR, clock_gettime and its like without a system
// call, and the code that some hosts enter at a system call (Entry). src has the
// sources, vdso.so and entry.bin are their bytes; "make vdso" in the sandbox's
// directory rebuilds them, and tests compare them.
package vdso

import _ "embed"

// ELF is the object: one page, mapped as it is at any address. The page before
// it holds the data that it reads.
//
//go:embed vdso.so
var ELF []byte

// Offsets in the data page, struct data of src/vdso.c.
const (
	Seq      = 0  // 32 bits: odd while the rest changes
	Mult     = 4  // 32 bits: ns per tick of the counter, times 2^32
	TSC      = 8  // 64 bits: the guest's counter at Base
	Base     = 16 // 64 bits: CLOCK_MONOTONIC in ns
	Realtime = 24 // 64 bits: what CLOCK_REALTIME has more
)

// Shift is what a product with Mult is shifted right by.
const Shift = 32

// Entry is the code at which a system call begins where the host lets ring 3
// have it (kvm.PlatformOptions.SyscallEntry): one page, mapped at any address,
// before the page of data that it uses.
//
//go:embed entry.bin
var Entry []byte

// EntryTaken is the offset in Entry from which on the call is rt_sigaction
// whatever RAX holds, and R11 does not hold the flags.
const EntryTaken = 0x60

// EntryCommit is from where on an action that is being stored may be half stored.
const EntryCommit = 0xcb

// Offsets in the page of data of Entry.
const (
	EntryEnabled = 0  // 32 bits: 1 if Entry may use the page
	EntryChanged = 4  // 32 bits: 1 if Entry has stored an action
	EntryActions = 64 // 65 actions of 32 bytes, the first of which is scratch
)
