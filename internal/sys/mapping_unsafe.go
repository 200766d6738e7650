//go:build linux

package sys

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ZeroOver replaces what is mapped at b by private zeroes, in one step. It takes
// one more mapping of the process's vm.max_map_count. (mmap MAP_FIXED, madvise)
func ZeroOver(b []byte) error {
	return mapOver(b, -1, 0, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, unix.PROT_READ|unix.PROT_WRITE)
}

// FileOver replaces what is mapped at b by a mapping of f at off.
// (mmap MAP_FIXED, madvise)
func FileOver(b []byte, f *os.File, off uint64, sharing Sharing) error {
	flags := unix.MAP_SHARED
	if sharing == Private {
		flags = unix.MAP_PRIVATE
	}
	return mapOver(b, int(f.Fd()), int64(off), flags, unix.PROT_READ|unix.PROT_WRITE)
}

func mapOver(b []byte, fd int, off int64, flags, prot int) error {
	if err := atMmapFixed.Err(); err != nil {
		return err
	}
	// SAFETY: b is a host mapping of this package's caller, who owns the range.
	at := unsafe.Pointer(unsafe.SliceData(b))
	if _, err := unix.MmapPtr(fd, off, at, uintptr(len(b)), prot, flags|unix.MAP_FIXED|unix.MAP_NORESERVE); err != nil {
		return fmt.Errorf("mmap over %#x bytes: %w", len(b), err)
	}
	for _, advice := range []int{unix.MADV_DONTFORK, unix.MADV_DONTDUMP} {
		// Advice that a mapping had before; the kernel has no reason to refuse.
		_ = unix.Madvise(b, advice)
	}
	return nil
}

// Bind sets the NUMA policy of a mapping; for a shared one it is that of what is
// mapped. (mbind)
func Bind(b []byte, policy MemoryPolicy, nodes []int) error {
	if err := atMbind.Err(); err != nil {
		return err
	}
	const bits = 1024
	var mask [bits / 64]uint64
	for _, n := range nodes {
		if n < 0 || n >= bits {
			return fmt.Errorf("node %d: %w", n, unix.EINVAL)
		}
		mask[n/64] |= 1 << (n % 64)
	}
	// SAFETY: the kernel reads mask during the call and keeps nothing of it.
	at, m := uintptr(unsafe.Pointer(unsafe.SliceData(b))), unsafe.Pointer(&mask)
	if _, _, errno := unix.Syscall6(unix.SYS_MBIND, at, uintptr(len(b)), uintptr(policy), uintptr(m), bits+1, 0); errno != 0 {
		return errno
	}
	return nil
}

// CopyOut copies host memory to p as the kernel does for another process: what
// cannot be read is an error, not a signal, and a page that a userfaultfd
// watches is waited for inside of the system call. It returns the bytes copied.
// (process_vm_readv on oneself)
func CopyOut(p []byte, from []byte) (int, error) {
	return copyRemote(unix.SYS_PROCESS_VM_READV, p, from)
}

// CopyIn is CopyOut the other way. (process_vm_writev on oneself)
func CopyIn(to []byte, p []byte) (int, error) {
	return copyRemote(unix.SYS_PROCESS_VM_WRITEV, p, to)
}

var self = os.Getpid()

func copyRemote(call uintptr, local, remote []byte) (int, error) {
	if len(local) == 0 {
		return 0, nil
	}
	if err := atRemote.Err(); err != nil {
		return 0, err
	}
	l := unix.Iovec{Base: unsafe.SliceData(local)}
	l.SetLen(len(local))
	// SAFETY: the remote address is only a number to the kernel.
	r := unix.RemoteIovec{Base: uintptr(unsafe.Pointer(unsafe.SliceData(remote))), Len: len(local)}
	for {
		// SAFETY: both structs and the local buffer live until the call returns.
		n, _, errno := unix.Syscall6(call, uintptr(self), uintptr(unsafe.Pointer(&l)), 1, uintptr(unsafe.Pointer(&r)), 1, 0)
		switch {
		case errno == 0:
			return int(n), nil
		case !errors.Is(errno, unix.EINTR):
			return 0, errno
		}
	}
}

// BytesAt returns n bytes of host memory at an address that the caller vouches
// for.
func BytesAt(address uintptr, n uint64) []byte {
	// SAFETY: a host mapping, not the collector's; the detour keeps vet from
	// taking it for a Go pointer kept as a number.
	return unsafe.Slice(*(**byte)(unsafe.Pointer(&address)), n)
}
