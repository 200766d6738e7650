//go:build linux && amd64

package machine

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

func ioc(dir, nr, size uintptr) uintptr { return dir<<30 | size<<16 | 0xae<<8 | nr }

var (
	createVM        = ioc(0, 0x01, 0)
	runSize         = ioc(0, 0x04, 0)
	createVCPU      = ioc(0, 0x41, 0)
	setMemoryRegion = ioc(1, 0x46, unsafe.Sizeof(memoryRegion{}))
	runVCPU         = ioc(0, 0x80, 0)
	setRegs         = ioc(1, 0x82, unsafe.Sizeof(kvm.GeneralRegs{}))
	setCPUID2       = ioc(1, 0x90, unsafe.Offsetof(cpuidList{}.entries))
	setSregs2       = ioc(1, 0xcd, unsafe.Sizeof(kvm.SpecialRegs{}))
)

// The kernel's structures that package kvm does not export.
type (
	memoryRegion struct {
		_, _      uint32 // slot 0, no flags
		_         uint64 // from address 0 on
		size, hva uint64
	}
	cpuidList struct {
		n, _    uint32
		entries [256]kvm.CPUIDEntry
	}
)

// exitReason is where struct kvm_run has it, and exitIO what it is after port I/O.
const (
	exitReason = 8
	exitIO     = 2
)

// ioctl makes a request whose argument is a number.
func ioctl(fd int, req, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, fmt.Errorf("ioctl %#x: %w", req, errno)
	}
	return int(n), nil
}

// ioctlPtr makes a request whose argument is a structure.
func ioctlPtr[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: arg is live for the call, and of the type that the request names.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return fmt.Errorf("ioctl %#x: %w", req, errno)
	}
	return nil
}

// addressOf returns the address of a mapping.
func addressOf(mem []byte) uint64 {
	// SAFETY: only the number is used.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}
