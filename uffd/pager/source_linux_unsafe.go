//go:build linux

package pager

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// preadNowait is preadv2(2) with RWF_NOWAIT on one buffer. x/sys's wrapper
// makes a slice of buffers, and so allocates.
func preadNowait(fd int, p []byte, off int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	iov := unix.Iovec{Base: &p[0]}
	iov.SetLen(len(p))
	// SAFETY: iov and, through it, p are alive and hold still for the call:
	// the conversion is in the argument list, and iov refers to p by a real
	// pointer. The offset is in the low half; 64-bit kernels ignore the high one.
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, uintptr(off), 0, unix.RWF_NOWAIT)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
