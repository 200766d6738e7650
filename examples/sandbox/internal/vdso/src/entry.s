# Where SYSCALL goes on hosts that leave the processor in ring 3 there (package
# kvm, PlatformOptions.SyscallEntry). An ordinary program's code, with an
# ordinary program's rights: RAX, RDI, RSI, RDX, R10 as SYSCALL found them, RCX
# where to return to, R11 the flags. It answers
#
#	rt_sigaction(sig, act, NULL, 8)		stores, if act has a handler
#	rt_sigaction(sig, NULL, old, 8)		loads
#
# in the process's own table while the process has one thread, and leaves all
# else to the sandbox, by a jump to the gate. Only RAX and R11 are written, which
# a system call may.
#
# Whatever stops it anywhere, the sandbox makes the call that it was instead: up
# to "taken" RAX and R11 are untouched, and behind it RAX was 13 and R11 had
# no flag that matters. So no handler of a signal ever runs in the middle.
	.set page, 4096
	.globl _start
_start:
	cmp $13, %rax
	jne slow
	cmp $8, %r10
	jne slow
	cmp $64, %rdi
	ja slow
	test %rdi, %rdi
	jz slow
	cmp $9, %rdi			# SIGKILL
	je slow
	cmp $19, %rdi			# SIGSTOP
	je slow
	test $0x240500, %r11d		# ID, AC, DF, TF: the sandbox puts them back
	jnz slow
	cmpl $1, enabled(%rip)
	jne slow
	test %rsi, %rsi
	jnz 1f
	test %rdx, %rdx
	jnz taken
slow:	jmp *gate(%rip)
1:	test %rdx, %rdx
	jnz slow
	cmpq $1, (%rsi)			# SIG_DFL, SIG_IGN: pending signals may have to go
	jbe slow
	.org 0x60, 0x90
taken:
	mov %rdi, %r11
	shl $5, %r11
	lea table(%rip), %rax
	add %rax, %r11
	test %rsi, %rsi
	jnz 2f
	mov (%r11), %rax
	mov %rax, (%rdx)
	mov 8(%r11), %rax
	mov %rax, 8(%rdx)
	mov 16(%r11), %rax
	mov %rax, 16(%rdx)
	mov 24(%r11), %rax
	mov %rax, 24(%rdx)
	jmp 3f
2:	mov (%rsi), %rax		# all of it before any: entry 0 is free
	mov %rax, table(%rip)
	mov 8(%rsi), %rax
	mov %rax, table+8(%rip)
	mov 16(%rsi), %rax
	mov %rax, table+16(%rip)
	mov 24(%rsi), %rax
	btr $8, %rax
	btr $18, %rax
	mov %rax, table+24(%rip)
commit:
	movl $1, changed(%rip)
	mov table(%rip), %rax
	mov %rax, (%r11)
	mov table+8(%rip), %rax
	mov %rax, 8(%r11)
	mov table+16(%rip), %rax
	mov %rax, 16(%r11)
	mov table+24(%rip), %rax
	mov %rax, 24(%r11)
3:	xor %eax, %eax
	jmp *%rcx
	.balign 8, 0xcc
gate:	.quad 0xffffff8000001080	# kvm.SyscallGate
	.set enabled, _start + page
	.set changed, _start + page + 4
	.set table, _start + page + 64
