package machine

// The guests' programs, in ring 3 of 64-bit mode.
const (
	// storeAndOut stores RAX at RDI and writes AL to port DX, for ever:
	//	1: mov %rax, (%rdi); out %al, %dx; jmp 1b
	storeAndOut = "\x48\x89\x07\xee\xeb\xfa"

	// count counts at RDI for ever:
	//	1: incq (%rdi); jmp 1b
	count = "\x48\xff\x07\xeb\xfb"

	// syscalls makes system calls for ever:
	//	1: syscall; jmp 1b
	syscalls = "\x0f\x05\xeb\xfc"
)
