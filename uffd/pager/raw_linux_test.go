package pager

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Mappings by address alone: no Go slice of registered memory ever exists, so
// that no Go code can load from it.

func mapRaw(at addr.HVA, size uint64, prot, flags, fd int) (addr.HVA, error) {
	a, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(at), uintptr(size), uintptr(prot), uintptr(flags), uintptr(fd), 0)
	if errno != 0 {
		return 0, errno
	}
	return addr.HVA(a), nil
}

func unmapRaw(a addr.HVA, size uint64) {
	_, _, _ = unix.Syscall(unix.SYS_MUNMAP, uintptr(a), uintptr(size), 0)
}

func adviseRaw(a addr.HVA, size uint64, advice int) error {
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(a), uintptr(size), uintptr(advice))
	if errno != 0 {
		return errno
	}
	return nil
}

func remapRaw(a addr.HVA, size uint64, to addr.HVA) error {
	_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(a), uintptr(size), uintptr(size), unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, uintptr(to), 0)
	if errno != 0 {
		return errno
	}
	// The range stays the caller's, who unmaps it: nobody else gets a mapping there
	// that would go with it, such as KVM's own, which the kernel unmaps again later.
	_, err := mapRaw(a, size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, -1)
	return err
}
