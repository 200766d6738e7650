// Package vdso is the shared object that programs find by AT_SYSINFO_EHDR:
// clock_gettime and its like without a system call. src/vdso.c is its source,
// vdso.so its bytes; "make vdso" in the sandbox's directory rebuilds them, and
// a test compares what both do.
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
