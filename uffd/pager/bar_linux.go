package pager

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// barAccess has every access to a mapping of this process fail. It fails only for
// what is not mapped any more. (mprotect(2))
func barAccess(start addr.HVA, length uint64) {
	_, _, _ = unix.Syscall(unix.SYS_MPROTECT, uintptr(start), uintptr(length), unix.PROT_NONE)
}
