//go:build linux && amd64

package kvm

// storeTo writes the general registers for KVM. RSP, RIP and RFLAGS are the
// caller's, since they depend on the ring.
func (r *Regs) storeTo(k *uRegs) {
	k.rax, k.rbx, k.rcx, k.rdx = r.RAX, r.RBX, r.RCX, r.RDX
	k.rsi, k.rdi, k.rbp = r.RSI, r.RDI, r.RBP
	k.r8, k.r9, k.r10, k.r11 = r.R8, r.R9, r.R10, r.R11
	k.r12, k.r13, k.r14, k.r15 = r.R12, r.R13, r.R14, r.R15
}

// loadFrom is the reverse of storeTo.
func (r *Regs) loadFrom(k *uRegs) {
	r.RAX, r.RBX, r.RCX, r.RDX = k.rax, k.rbx, k.rcx, k.rdx
	r.RSI, r.RDI, r.RBP = k.rsi, k.rdi, k.rbp
	r.R8, r.R9, r.R10, r.R11 = k.r8, k.r9, k.r10, k.r11
	r.R12, r.R13, r.R14, r.R15 = k.r12, k.r13, k.r14, k.r15
}
