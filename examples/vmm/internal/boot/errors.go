package boot

import "errors"

// Errors by name.
var (
	// ErrNotKernel: the file is neither a bzImage nor an ELF kernel.
	ErrNotKernel = errors.New("not a Linux kernel for x86-64 (bzImage or vmlinux)")
	// ErrTruncated: the file ends before what its headers say is in it.
	ErrTruncated = errors.New("the kernel is truncated")
	// ErrUnsupported: a kernel that cannot be entered in 64-bit mode.
	ErrUnsupported = errors.New("the kernel has no 64-bit entry")
	// ErrPlacement: its headers ask for memory that there is in no guest.
	ErrPlacement = errors.New("the kernel wants memory that cannot be its own")
	// ErrNoRoom: the guest has too little memory.
	ErrNoRoom = errors.New("too little guest memory")
	// ErrCommandLine: it is too long, or has a NUL.
	ErrCommandLine = errors.New("bad command line")
	// ErrCPUs: none, or more than can be started.
	ErrCPUs = errors.New("bad number of vCPUs")
)
