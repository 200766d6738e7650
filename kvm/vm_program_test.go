//go:build linux && amd64

package kvm

import "testing"

// The programs of the tests of VMs; TestVMProgramBytesMatchTheirSource assembles
// them again where there is an assembler.

var (
	// vmOut writes AL to port DX for ever.
	vmOut = program{`
	1: out %al, %dx
	jmp 1b
`, "\xee\xeb\xfd"}

	// vmIn reads port DX, stores what it got at RDI, and writes it to the port, for ever.
	vmIn = program{`
	1: in %dx, %eax
	mov %eax, (%rdi)
	out %eax, %dx
	jmp 1b
`, "\xed\x89\x07\xef\xeb\xfa"}

	// vmRepOut writes the RCX bytes at RSI to port DX, then the byte AL.
	vmRepOut = program{`
	rep outsb
	out %al, %dx
	1: jmp 1b
`, "\xf3\x6e\xee\xeb\xfe"}

	// vmLoad loads a word from RDI into RAX and exits, for ever.
	vmLoad = program{`
	1: mov (%rdi), %rax
	out %al, %dx
	jmp 1b
`, "\x48\x8b\x07\xee\xeb\xfa"}

	// vmStore stores RAX at RDI and exits, for ever.
	vmStore = program{`
	1: mov %rax, (%rdi)
	out %al, %dx
	jmp 1b
`, "\x48\x89\x07\xee\xeb\xfa"}

	// vmLoadWide loads 16 bytes from RDI, stores them at RSI, and exits.
	vmLoadWide = program{`
	1: movups (%rdi), %xmm0
	movups %xmm0, (%rsi)
	out %al, %dx
	jmp 1b
`, "\x0f\x10\x07\x0f\x11\x06\xee\xeb\xf7"}

	// vmCount counts at RDI for ever.
	vmCount = program{`
	1: incq (%rdi)
	jmp 1b
`, "\x48\xff\x07\xeb\xfb"}

	// vmTouchList stores RAX at each of the RCX addresses listed at RSI, and exits.
	vmTouchList = program{`
	1: mov (%rsi), %rdi
	mov %rax, (%rdi)
	add $8, %rsi
	dec %rcx
	jnz 1b
	out %al, %dx
	2: jmp 2b
`, "\x48\x8b\x3e\x48\x89\x07\x48\x83\xc6\x08\x48\xff\xc9\x75\xf1\xee\xeb\xfe"}

	// vmMix goes RCX steps of a generator whose state is RAX, leaving each in one of 4096 words at RDI, and exits. R8 is its multiplier.
	vmMix = program{`
	1: imul %r8, %rax
	add $1, %rax
	mov %rax, %rbx
	shr $52, %rbx
	add (%rdi,%rbx,8), %rax
	mov %rax, (%rdi,%rbx,8)
	dec %rcx
	jnz 1b
	out %al, %dx
	2: jmp 2b
`, "\x49\x0f\xaf\xc0\x48\x83\xc0\x01\x48\x89\xc3\x48\xc1\xeb\x34\x48\x03\x04\xdf\x48\x89\x04\xdf\x48\xff\xc9\x75\xe4\xee\xeb\xfe"}

	// vmVerify counts up in each of the RCX pages at RSI, over and over, and exits if one does not hold what it was left with. R10 counts the rounds.
	vmVerify = program{`
	xor %r10, %r10
	1: mov %rsi, %rdi
	mov %rcx, %r9
	2: mov (%rdi), %rbx
	cmp %r10, %rbx
	jne 3f
	incq (%rdi)
	add $4096, %rdi
	dec %r9
	jnz 2b
	inc %r10
	jmp 1b
	3: out %al, %dx
	jmp 3b
`, "\x4d\x31\xd2\x48\x89\xf7\x49\x89\xc9\x48\x8b\x1f\x4c\x39\xd3\x75\x14\x48\xff\x07\x48\x81\xc7\x00\x10\x00\x00\x49\xff\xc9\x75\xe9\x49\xff\xc2\xeb\xde\xee\xeb\xfd"}

	// vmVectors leaves marks in x87, SSE, AVX state and exits; run on, it stores them at RDI and exits.
	vmVectors = program{`
	fldpi
	movq %rax, %xmm1
	movddup %xmm1, %xmm2
	out %al, %dx
	movups %xmm2, (%rdi)
	fstpt 16(%rdi)
	out %al, %dx
	1: jmp 1b
`, "\xd9\xeb\x66\x48\x0f\x6e\xc8\xf2\x0f\x12\xd1\xee\x0f\x11\x17\xdb\x7f\x10\xee\xeb\xfe"}

	// vmAVX leaves a mark in the upper half of YMM3 and exits; run on, it stores it at RDI and exits.
	vmAVX = program{`
	movq %rax, %xmm3
	vinsertf128 $1, %xmm3, %ymm3, %ymm3
	out %al, %dx
	vextractf128 $1, %ymm3, (%rdi)
	out %al, %dx
	1: jmp 1b
`, "\x66\x48\x0f\x6e\xd8\xc4\xe3\x65\x18\xdb\x01\xee\xc4\xe3\x7d\x19\x1f\x01\xee\xeb\xfe"}

	// vmUD2 is an invalid instruction.
	vmUD2 = program{`
	ud2
`, "\x0f\x0b"}

	// vmHalt halts, in ring 0, over and over.
	vmHalt = program{`
	1: hlt
	jmp 1b
`, "\xf4\xeb\xfd"}

	// vmEmulated is, in ring 0, an instruction that some emulators lack; then it exits.
	vmEmulated = program{`
	cmpxchg16b (%rdi)
	out %al, %dx
	1: jmp 1b
`, "\x48\x0f\xc7\x0f\xee\xeb\xfe"}

	// vmIdle lets interrupts in and halts, in ring 0, over and over.
	vmIdle = program{`
	1: sti
	hlt
	jmp 1b
`, "\xfb\xf4\xeb\xfc"}

	// vmWindow lets interrupts in, in ring 0, and spins.
	vmWindow = program{`
	sti
	1: nop
	jmp 1b
`, "\xfb\x90\xeb\xfd"}

	// vmHandler is an interrupt handler that writes AL to port DX.
	vmHandler = program{`
	out %al, %dx
	iretq
`, "\xee\x48\xcf"}

	// vmRDMSR reads MSR RCX in ring 0 and exits.
	vmRDMSR = program{`
	rdmsr
	out %eax, %dx
	1: jmp 1b
`, "\x0f\x32\xef\xeb\xfe"}
)

var vmPrograms = []program{vmOut, vmIn, vmRepOut, vmLoad, vmStore, vmLoadWide, vmCount, vmTouchList, vmMix, vmVerify, vmVectors, vmAVX, vmUD2, vmHalt, vmEmulated, vmIdle, vmWindow, vmHandler, vmRDMSR}

func TestVMProgramBytesMatchTheirSource(t *testing.T) { mustMatchTheirSource(t, vmPrograms) }
