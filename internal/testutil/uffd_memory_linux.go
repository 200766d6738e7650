package testutil

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Memory that a userfaultfd serves is known by its address alone: there is no
// slice of it that Go code could touch by accident. Load and Store reach it by
// system calls, which fault as any access does, and wait where the Go
// scheduler knows of it.

// MapAnonymous maps n bytes of private anonymous memory in 4 KiB pages until the
// test ends, and returns the address.
func MapAnonymous(t testing.TB, n uint64) uint64 {
	t.Helper()
	at := mapUntilEnd(t, n, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(at), uintptr(n), unix.MADV_NOHUGEPAGE); errno != 0 && errno != unix.EINVAL {
		t.Fatalf("madvise: %v", errno) // EINVAL: a kernel without huge pages
	}
	return at
}

// MapShared maps the first n bytes of fd shared until the test ends, and returns
// the address.
func MapShared(t testing.TB, fd int, n uint64) uint64 {
	t.Helper()
	return mapUntilEnd(t, n, unix.MAP_SHARED, fd)
}

// NewMemfd makes a memfd of n bytes until the test ends.
func NewMemfd(t testing.TB, n uint64) int {
	t.Helper()
	fd, err := unix.MemfdCreate("guestmm-test", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		t.Fatal(err)
	}
	return fd
}

func mapUntilEnd(t testing.TB, n uint64, flags, fd int) uint64 {
	t.Helper()
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, uintptr(flags), uintptr(fd), 0)
	if errno != 0 {
		t.Fatalf("mmap %#x bytes: %v", n, errno)
	}
	t.Cleanup(func() { unix.Syscall(unix.SYS_MUNMAP, at, uintptr(n), 0) })
	return uint64(at)
}

// Load reads len(p) bytes of this process's memory at address at, by a system
// call (process_vm_readv).
func Load(at uint64, p []byte) error {
	n, err := unix.ProcessVMReadv(os.Getpid(), localVec(p), []unix.RemoteIovec{{Base: uintptr(at), Len: len(p)}}, 0)
	return wholly("load", at, n, len(p), err)
}

// Store writes p at address at, by a system call (process_vm_writev).
func Store(at uint64, p []byte) error {
	n, err := unix.ProcessVMWritev(os.Getpid(), localVec(p), []unix.RemoteIovec{{Base: uintptr(at), Len: len(p)}}, 0)
	return wholly("store", at, n, len(p), err)
}

func localVec(p []byte) []unix.Iovec {
	v := unix.Iovec{Base: &p[0]}
	v.SetLen(len(p))
	return []unix.Iovec{v}
}

func wholly(op string, at uint64, n, want int, err error) error {
	if err == nil && n != want {
		err = unix.EFAULT
	}
	if err != nil {
		return fmt.Errorf("%s %d bytes at %#x: %w", op, want, at, err)
	}
	return nil
}
