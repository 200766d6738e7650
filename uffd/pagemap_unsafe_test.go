//go:build linux && (amd64 || arm64)

package uffd

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func mincore(at, length uint64, vec []byte) error {
	// SAFETY: vec has a byte for each page, and is kept during the call.
	return errnoOrNil(unix.Syscall(unix.SYS_MINCORE, uintptr(at), uintptr(length), uintptr(unsafe.Pointer(&vec[0]))))
}

func swapOn(path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	// SAFETY: p ends in a zero byte, and is kept during the call.
	return errnoOrNil(unix.Syscall(unix.SYS_SWAPON, uintptr(unsafe.Pointer(p)), 0, 0))
}

func swapOff(path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	// SAFETY: as swapOn.
	return errnoOrNil(unix.Syscall(unix.SYS_SWAPOFF, uintptr(unsafe.Pointer(p)), 0, 0))
}

func errnoOrNil(_, _ uintptr, errno unix.Errno) error {
	if errno != 0 {
		return errno
	}
	return nil
}
