//go:build linux

package testutil

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// uffdioAPI is struct uffdio_api of <linux/userfaultfd.h>.
type uffdioAPI struct {
	api      uint64
	features uint64
	ioctls   uint64
}

var _ [24]byte = [unsafe.Sizeof(uffdioAPI{})]byte{}

// uffdFeatures returns all feature bits that the kernel offers. The
// descriptor is of no other use afterwards.
func uffdFeatures(fd int) (uint64, error) {
	const request = 0xc018aa3f // UFFDIO_API, _IOWR(0xAA, 0x3F, struct uffdio_api)
	arg := uffdioAPI{api: 0xaa}
	// SAFETY: arg has the size that the request encodes and outlives the call,
	// which keeps no pointer to it; the conversion stands in the call itself.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		return 0, errno
	}
	return arg.features, nil
}
