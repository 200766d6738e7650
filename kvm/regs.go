package kvm

// Regs are the user-visible integer registers of a guest thread, in the order
// of the kernel's struct kvm_regs.
//
// Before a Run: RFLAGS is reduced to the bits that ring 3 may set (the
// arithmetic ones, DF, TF, AC, ID), IF is set and the others are cleared. An
// RIP, FSBase or GSBase that is not canonical is the guest's fault: Run returns
// ExitException with vector 13 and does not enter.
type Regs struct {
	RAX, RBX, RCX, RDX uint64
	RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11   uint64
	R12, R13, R14, R15 uint64
	RIP, RFLAGS        uint64

	FSBase, GSBase uint64
}

const (
	flagsFixed = 1<<1 | 1<<9 // the bit that is always set, and IF
	flagsTF    = 1 << 8
	// flagsUser: CF PF AF ZF SF TF DF OF AC ID.
	flagsUser = 1<<0 | 1<<2 | 1<<4 | 1<<6 | 1<<7 | flagsTF | 1<<10 | 1<<11 | 1<<18 | 1<<21
)

func userFlags(f uint64) uint64 { return f&flagsUser | flagsFixed }

// isCanonical reports whether bits 47 to 63 of an address are equal.
func isCanonical(a uint64) bool { return uint64(int64(a<<16)>>16) == a }

// enterable reports whether ring 3 can be entered with these registers without
// a fault in ring 0 (RIP, on iretq) or a refused entry (the bases, on VT-x).
func (r *Regs) enterable() bool {
	return isCanonical(r.RIP) && isCanonical(r.FSBase) && isCanonical(r.GSBase)
}
