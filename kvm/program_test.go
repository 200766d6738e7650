//go:build linux && amd64

package kvm

// The ring-3 programs of the tests: their source for GNU as, and its bytes.
// TestProgramBytesMatchTheirSource assembles them again where there is an assembler.

type program struct{ source, code string }

func (p program) bytes() []byte { return []byte(p.code) }

var (
	// progSyscallLoop exits by SYSCALL for ever.
	progSyscallLoop = program{`
	1: syscall
	jmp 1b
`, "\x0f\x05\xeb\xfc"}

	// progSyscallThenUD SYSCALL, then #UD with whatever registers it was given.
	progSyscallThenUD = program{`
	syscall
	ud2
`, "\x0f\x05\x0f\x0b"}

	// progUD #UD at once.
	progUD = program{`
	1: ud2
	jmp 1b
`, "\x0f\x0b\xeb\xfc"}

	// progRead reads a word at RDI into RAX, and exits, for ever.
	progRead = program{`
	1: mov (%rdi), %rax
	syscall
	jmp 1b
`, "\x48\x8b\x07\x0f\x05\xeb\xf9"}

	// progWrite stores RAX at RDI, and exits, for ever.
	progWrite = program{`
	1: mov %rax, (%rdi)
	syscall
	jmp 1b
`, "\x48\x89\x07\x0f\x05\xeb\xf9"}

	// progJump jumps to RDI.
	progJump = program{`
	jmp *%rdi
`, "\xff\xe7"}

	// progReadPages reads a word of each page from RDI on.
	progReadPages = program{`
	1: mov (%rdi), %rax
	add $4096, %rdi
	jmp 1b
`, "\x48\x8b\x07\x48\x81\xc7\x00\x10\x00\x00\xeb\xf4"}

	// progSpin counts in RAX and never exits.
	progSpin = program{`
	1: inc %rax
	jmp 1b
`, "\x48\xff\xc0\xeb\xfb"}

	// progSpinStore counts in memory at RDI and never exits.
	progSpinStore = program{`
	1: incq (%rdi)
	jmp 1b
`, "\x48\xff\x07\xeb\xfb"}

	// progCopy copies the word at RDI to RSI, and never exits.
	progCopy = program{`
	1: mov (%rdi), %rax
	mov %rax, (%rsi)
	jmp 1b
`, "\x48\x8b\x07\x48\x89\x06\xeb\xf8"}

	// progFSBase reads FS:0 and GS:0, sets FS base to RSI, reads again.
	progFSBase = program{`
	1: mov %fs:0, %rax
	mov %gs:0, %rbx
	wrfsbase %rsi
	rdfsbase %rdx
	mov %fs:0, %r8
	syscall
	jmp 1b
`, "\x64\x48\x8b\x04\x25\x00\x00\x00\x00\x65\x48\x8b\x1c\x25\x00\x00\x00\x00\xf3\x48\x0f\xae\xd6\xf3\x48\x0f\xae\xc2\x64\x4c\x8b\x04\x25\x00\x00\x00\x00\x0f\x05\xeb\xd7"}

	// progSelectors exits with the DS that it began with in RAX and FS in RBX, and loads both.
	progSelectors = program{`
	xor %eax, %eax
	xor %ebx, %ebx
	mov %ds, %eax
	mov %fs, %ebx
	mov $0x2b, %ecx
	mov %ecx, %ds
	mov %ecx, %es
	mov %ecx, %fs
	mov %ecx, %gs
	1: syscall
	jmp 1b
`, "\x31\xc0\x31\xdb\x8c\xd8\x8c\xe3\xb9\x2b\x00\x00\x00\x8e\xd9\x8e\xc1\x8e\xe1\x8e\xe9\x0f\x05\xeb\xfc"}

	// progXMM exits; then adds 1 to XMM0, and exits, for ever; RAX is its low half.
	progXMM = program{`
	1: movq %xmm0, %rax
	syscall
	mov $1, %eax
	movq %rax, %xmm1
	paddq %xmm1, %xmm0
	jmp 1b
`, "\x66\x48\x0f\x7e\xc0\x0f\x05\xb8\x01\x00\x00\x00\x66\x48\x0f\x6e\xc8\x66\x0f\xd4\xc1\xeb\xe9"}

	// progZMM loads ZMM31 from RDI, and stores it at RSI after each exit.
	progZMM = program{`
	vmovdqu64 (%rdi), %zmm31
	1: syscall
	vmovdqu64 %zmm31, (%rsi)
	jmp 1b
`, "\x62\x61\xfe\x48\x6f\x3f\x0f\x05\x62\x61\xfe\x48\x7f\x3e\xeb\xf6"}

	// progSum sums RCX words, one a page, from RDI on into RAX, and exits.
	progSum = program{`
	xor %eax, %eax
	1: add (%rdi), %rax
	add $4096, %rdi
	loop 1b
	syscall
	ud2
`, "\x31\xc0\x48\x03\x07\x48\x81\xc7\x00\x10\x00\x00\xe2\xf4\x0f\x05\x0f\x0b"}

	// progFill stores RAX in RCX words, one a page, from RDI on, and exits.
	progFill = program{`
	1: mov %rax, (%rdi)
	add $4096, %rdi
	loop 1b
	syscall
	ud2
`, "\x48\x89\x07\x48\x81\xc7\x00\x10\x00\x00\xe2\xf4\x0f\x05\x0f\x0b"}
)

// What a host may make of a hostile program, beside one vector.
const (
	anyExit  = -1 // it may also do nothing: progUD's ud2 follows each program
	anyFault = -2 // some exception
)

// hostile are programs that must end in an exception of the guest, and in
// nothing else. A ud2 follows each.
var hostile = []struct {
	name   string
	vector int
	program
}{
	{"divide error", 0, program{`
	xor %ecx, %ecx
	div %ecx
`, "\x31\xc9\xf7\xf1"}},
	{"ud2", 6, program{`
	ud2
`, "\x0f\x0b"}},
	{"int3", 3, program{`
	int3
`, "\xcc"}},
	{"int $3", 3, program{`
	int $3
`, "\xcc"}},
	{"int $0x80", anyFault, program{`
	int $0x80
`, "\xcd\x80"}},
	{"int $14", anyFault, program{`
	int $14
`, "\xcd\x0e"}},
	{"int $8", anyFault, program{`
	int $8
`, "\xcd\x08"}},
	{"int $2", anyFault, program{`
	int $2
`, "\xcd\x02"}},
	{"int1", anyExit, program{`
	int1
`, "\xf1"}},
	{"hlt", 13, program{`
	hlt
`, "\xf4"}},
	{"cli", 13, program{`
	cli
`, "\xfa"}},
	{"sti", 13, program{`
	sti
`, "\xfb"}},
	{"in", 13, program{`
	in $0x60, %al
`, "\xe4\x60"}},
	{"out", 13, program{`
	out %al, $0x60
`, "\xe6\x60"}},
	{"out to a stub port", 13, program{`
	mov $14, %al
	out %al, $14
`, "\xb0\x0e\xe6\x0e"}},
	{"out to the syscall port", 13, program{`
	out %al, $0x80
`, "\xe6\x80"}},
	{"in dx", 13, program{`
	mov $0x3f8, %edx
	in %dx, %eax
`, "\xba\xf8\x03\x00\x00\xed"}},
	{"rep insb", 13, program{`
	lea -64(%rsp), %rdi
	mov $16, %ecx
	mov $0x3f8, %edx
	rep insb
`, "\x48\x8d\x7c\x24\xc0\xb9\x10\x00\x00\x00\xba\xf8\x03\x00\x00\xf3\x6c"}},
	{"rep outsb", 13, program{`
	lea -64(%rsp), %rsi
	mov $16, %ecx
	mov $0x3f8, %edx
	rep outsb
`, "\x48\x8d\x74\x24\xc0\xb9\x10\x00\x00\x00\xba\xf8\x03\x00\x00\xf3\x6e"}},
	{"mov to cr3", 13, program{`
	mov %rax, %cr3
`, "\x0f\x22\xd8"}},
	{"mov from cr0", 13, program{`
	mov %cr0, %rax
`, "\x0f\x20\xc0"}},
	{"mov to dr7", 13, program{`
	mov %rax, %dr7
`, "\x0f\x23\xf8"}},
	{"rdmsr", 13, program{`
	mov $0xc0000082, %ecx
	rdmsr
`, "\xb9\x82\x00\x00\xc0\x0f\x32"}},
	{"wrmsr", 13, program{`
	mov $0xc0000082, %ecx
	wrmsr
`, "\xb9\x82\x00\x00\xc0\x0f\x30"}},
	{"lgdt", 13, program{`
	lgdt (%rsp)
`, "\x0f\x01\x14\x24"}},
	{"lidt", 13, program{`
	lidt (%rsp)
`, "\x0f\x01\x1c\x24"}},
	{"ltr", 13, program{`
	mov $0x40, %eax
	ltr %ax
`, "\xb8\x40\x00\x00\x00\x0f\x00\xd8"}},
	{"swapgs", 13, program{`
	swapgs
`, "\x0f\x01\xf8"}},
	{"invlpg", 13, program{`
	invlpg (%rsp)
`, "\x0f\x01\x3c\x24"}},
	{"wbinvd", 13, program{`
	wbinvd
`, "\x0f\x09"}},
	{"clts", 13, program{`
	clts
`, "\x0f\x06"}},
	{"xsetbv", 13, program{`
	xor %ecx, %ecx
	mov $1, %eax
	xor %edx, %edx
	xsetbv
`, "\x31\xc9\xb8\x01\x00\x00\x00\x31\xd2\x0f\x01\xd1"}},
	{"sysenter", anyFault, program{`
	sysenter
`, "\x0f\x34"}},
	{"sysret", anyFault, program{`
	sysretq
`, "\x48\x0f\x07"}},
	{"iret to ring 0", 13, program{`
	pushq $0x18
	pushq $0
	pushq $2
	pushq $0x10
	pushq $0x400000
	iretq
`, "\x6a\x18\x6a\x00\x6a\x02\x6a\x10\x68\x00\x00\x40\x00\x48\xcf"}},
	{"far return to ring 0", anyFault, program{`
	pushq $0x18
	pushq $0x7fff0800
	pushq $0x10
	pushq $0x400000
	lretq
`, "\x6a\x18\x68\x00\x08\xff\x7f\x6a\x10\x68\x00\x00\x40\x00\x48\xcb"}},
	{"far return to 32-bit code", anyFault, program{`
	pushq $0x23
	pushq $0x400000
	lretq
`, "\x6a\x23\x68\x00\x00\x40\x00\x48\xcb"}},
	{"fs from kernel data", 13, program{`
	mov $0x18, %eax
	mov %ax, %fs
`, "\xb8\x18\x00\x00\x00\x8e\xe0"}},
	{"ss null", 13, program{`
	xor %eax, %eax
	mov %ax, %ss
`, "\x31\xc0\x8e\xd0"}},
	{"ds beyond the table", 13, program{`
	mov $0xfff8, %eax
	mov %ax, %ds
`, "\xb8\xf8\xff\x00\x00\x8e\xd8"}},
	{"gs from ldt", 13, program{`
	mov $0x0f, %eax
	mov %ax, %gs
`, "\xb8\x0f\x00\x00\x00\x8e\xe8"}},
	{"wrfsbase non-canonical", 13, program{`
	mov $1, %eax
	shl $63, %rax
	wrfsbase %rax
`, "\xb8\x01\x00\x00\x00\x48\xc1\xe0\x3f\xf3\x48\x0f\xae\xd0"}},
	{"non-canonical read", 13, program{`
	mov $1, %eax
	shl $62, %rax
	mov (%rax), %rax
`, "\xb8\x01\x00\x00\x00\x48\xc1\xe0\x3e\x48\x8b\x00"}},
	{"non-canonical jump", 13, program{`
	mov $1, %eax
	shl $62, %rax
	jmp *%rax
`, "\xb8\x01\x00\x00\x00\x48\xc1\xe0\x3e\xff\xe0"}},
	{"non-canonical stack", 12, program{`
	mov $1, %eax
	shl $62, %rax
	mov %rax, %rsp
	push %rax
`, "\xb8\x01\x00\x00\x00\x48\xc1\xe0\x3e\x48\x89\xc4\x50"}},
	{"unaligned with AC", 17, program{`
	pushfq
	orl $0x40000, (%rsp)
	popfq
	mov 1(%rsp), %rax
`, "\x9c\x81\x0c\x24\x00\x00\x04\x00\x9d\x48\x8b\x44\x24\x01"}},
	{"unaligned movaps", anyFault, program{`
	movaps 1(%rsp), %xmm0
`, "\x0f\x28\x44\x24\x01"}},
	{"single step", 1, program{`
	pushfq
	orl $0x100, (%rsp)
	popfq
	nop
	nop
`, "\x9c\x81\x0c\x24\x00\x01\x00\x00\x9d\x90\x90"}},
	{"bad opcode", 6, program{`
	1: .byte 0x0f, 0xff, 0xc0
`, "\x0f\xff\xc0"}},
	{"long instruction", anyFault, program{`
	.fill 15, 1, 0x66
	nop
`, "\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x66\x90"}},
	{"x87 exception", anyFault, program{`
	fldcw 1f(%rip)
	fldz
	fld1
	fdiv %st(1), %st
	fwait
	1: .word 0x360
`, "\xd9\x2d\x07\x00\x00\x00\xd9\xee\xd9\xe8\xd8\xf1\x9b\x60\x03"}},
	{"simd exception", 19, program{`
	push $0
	ldmxcsr (%rsp)
	pxor %xmm0, %xmm0
	divss %xmm0, %xmm0
`, "\x6a\x00\x0f\xae\x14\x24\x66\x0f\xef\xc0\xf3\x0f\x5e\xc0"}},
	{"vmcall", anyExit, program{`
	vmcall
`, "\x0f\x01\xc1"}},
	{"vmmcall", anyExit, program{`
	vmmcall
`, "\x0f\x01\xd9"}},
	{"monitor", anyExit, program{`
	lea (%rsp), %rax
	xor %ecx, %ecx
	xor %edx, %edx
	monitor
`, "\x48\x8d\x04\x24\x31\xc9\x31\xd2\x0f\x01\xc8"}},
	{"mwait", anyExit, program{`
	xor %ecx, %ecx
	xor %eax, %eax
	mwait
`, "\x31\xc9\x31\xc0\x0f\x01\xc9"}},
	{"rdpmc", anyExit, program{`
	xor %ecx, %ecx
	rdpmc
`, "\x31\xc9\x0f\x33"}},
	{"vmrun", anyFault, program{`
	vmrun
`, "\x0f\x01\xd8"}},
	{"vmlaunch", anyFault, program{`
	vmlaunch
`, "\x0f\x01\xc2"}},
	{"getsec", anyFault, program{`
	getsec
`, "\x0f\x37"}},
	{"rsm", anyFault, program{`
	rsm
`, "\x0f\xaa"}},
	{"invalid xrstor", anyFault, program{`
	lea -1024(%rsp), %rdi
	and $-64, %rdi
	movq $-1, 520(%rdi)
	mov $-1, %eax
	mov $-1, %edx
	xrstor (%rdi)
`, "\x48\x8d\xbc\x24\x00\xfc\xff\xff\x48\x83\xe7\xc0\x48\xc7\x87\x08\x02\x00\x00\xff\xff\xff\xff\xb8\xff\xff\xff\xff\xba\xff\xff\xff\xff\x0f\xae\x2f"}},
	{"jump into ring 0's stubs", 14, program{`
	mov $0xffffff8000001000, %rax
	jmp *%rax
`, "\x48\xb8\x00\x10\x00\x00\x80\xff\xff\xff\xff\xe0"}},
	{"jump to the entry stub", 14, program{`
	mov $0xffffff8000001090, %rax
	jmp *%rax
`, "\x48\xb8\x90\x10\x00\x00\x80\xff\xff\xff\xff\xe0"}},
	{"read ring 0", 14, program{`
	mov $0xffffff8000010000, %rax
	mov (%rax), %rax
`, "\x48\xb8\x00\x00\x01\x00\x80\xff\xff\xff\x48\x8b\x00"}},
	{"write ring 0", 14, program{`
	mov $0xffffff8000010000, %rax
	mov %rax, (%rax)
`, "\x48\xb8\x00\x00\x01\x00\x80\xff\xff\xff\x48\x89\x00"}},
	{"read vsyscall", 14, program{`
	mov $0xffffffffff600000, %rax
	mov (%rax), %rax
`, "\x48\xc7\xc0\x00\x00\x60\xff\x48\x8b\x00"}},
	{"call vsyscall", 14, program{`
	mov $0xffffffffff600000, %rax
	call *%rax
`, "\x48\xc7\xc0\x00\x00\x60\xff\xff\xd0"}},
	{"popf of everything", 6, program{`
	mov $0x3fffff, %eax
	and $~0x40100, %eax
	push %rax
	popfq
	ud2
`, "\xb8\xff\xff\x3f\x00\x25\xff\xfe\xfb\xff\x50\x9d\x0f\x0b"}},
	{"mov ss then ud2", 6, program{`
	mov %ss, %eax
	mov %eax, %ss
	ud2
`, "\x8c\xd0\x8e\xd0\x0f\x0b"}},
	{"good selectors", 6, program{`
	mov $0x2b, %eax
	mov %eax, %ds
	mov %eax, %es
	mov %eax, %fs
	mov %eax, %gs
	ud2
`, "\xb8\x2b\x00\x00\x00\x8e\xd8\x8e\xc0\x8e\xe0\x8e\xe8\x0f\x0b"}},
	{"cpuid and rdtsc", 6, program{`
	xor %eax, %eax
	cpuid
	rdtsc
	ud2
`, "\x31\xc0\x0f\xa2\x0f\x31\x0f\x0b"}},
	{"str and sgdt", anyFault, program{`
	str %eax
	sgdt -16(%rsp)
	sidt -32(%rsp)
	sldt %eax
	ud2
`, "\x0f\x00\xc8\x0f\x01\x44\x24\xf0\x0f\x01\x4c\x24\xe0\x0f\x00\xc0\x0f\x0b"}},
	{"far jump through memory", 13, program{`
	push $0x10
	push $0
	ljmp *(%rsp)
`, "\x6a\x10\x6a\x00\xff\x2c\x24"}},
	{"enter with a huge frame", 14, program{`
	mov $0x1000, %eax
	1: enter $0x1000, $0
	dec %eax
	jnz 1b
`, "\xb8\x00\x10\x00\x00\xc8\x00\x10\x00\xff\xc8\x75\xf8"}},
	{"push on no stack", 14, program{`
	xor %esp, %esp
	push %rax
`, "\x31\xe4\x50"}},
	{"bound, gone in 64 bits", anyFault, program{`
	.byte 0x62, 0x05, 0, 0, 0, 0
`, "\x62\x05\x00\x00\x00\x00"}},
	{"lock without memory", 6, program{`
	.byte 0xf0, 0x90
`, "\xf0\x90"}},
	{"int $4", 4, program{`
	int $4
`, "\xcd\x04"}},
}
