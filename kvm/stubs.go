//go:build linux && amd64

package kvm

// The guest's ring 0 is this one page. It decides nothing: every way into
// ring 0 ends in an `out` that exits to the VMM, with the guest's registers
// untouched, and the way back is an `iretq` over a frame that the VMM wrote.
// Fewer instructions would not do, and each one costs on hosts that emulate
// ring 0 (260 ns).
//
// A stub never goes on after its `out`: the VMM always re-enters at one of the
// two entries, so that what follows cannot be reached.
const (
	stubStride  = 4     // one exception stub
	stubSyscall = 0x080 // LSTAR, and SyscallGate
	stubEntry   = 0x090 // iretq to ring 3
	stubFlush   = 0x0a0 // the same, loading CR3 first
	stubEnd     = 0x0a8

	portSyscall = 0x80 // ports below are exception vectors
	nVectors    = 32
)

// stubSource is the page's source for GNU as. TestStubBytesMatchTheirSource
// assembles it where there is an assembler, and compares.
const stubSource = `
	.set vector, 0
	.rept 32
	out %al, $vector	# exception: the frame is on the IST stack
	ud2
	.set vector, vector + 1
	.endr
	out %al, $0x80		# SYSCALL, where it arrives in ring 0
	ud2
	.org 0x90, 0xcc
	iretq			# RSP: RIP, CS, RFLAGS, RSP, SS
	.org 0xa0, 0xcc
	mov %rax, %cr3		# RSP: RAX, then the frame
	pop %rax
	iretq
	.org 0xa8, 0xcc
`

// stubCode returns the page's bytes, up to stubEnd.
func stubCode() []byte {
	code := make([]byte, stubEnd)
	for i := range code {
		code[i] = 0xcc
	}
	for v := range nVectors {
		copy(code[v*stubStride:], []byte{0xe6, byte(v), 0x0f, 0x0b})
	}
	copy(code[stubSyscall:], []byte{0xe6, portSyscall, 0x0f, 0x0b})
	copy(code[stubEntry:], []byte{0x48, 0xcf})
	copy(code[stubFlush:], []byte{0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf})
	return code
}

// pushesCode reports whether the exception leaves an error code on the stack.
func pushesCode(vector uint8) bool {
	switch vector {
	case 8, 10, 11, 12, 13, 14, 17, 21, 29, 30:
		return true
	}
	return false
}

// Exception vectors with a meaning here.
const (
	vectorDB  = 1
	vectorNMI = 2
	vectorBP  = 3
	vectorOF  = 4
	vectorUD  = 6
	vectorDF  = 8
	vectorGP  = 13
	vectorPF  = 14
	vectorMC  = 18
)
