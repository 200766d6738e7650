//go:build linux && (amd64 || arm64)

package uffd

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// forkAndSend forks; the child writes the n bytes at address at to fd and ends.
//
// SAFETY: the child of a process with many threads has the one that called
// clone, and a Go runtime that is of no use: it makes two system calls, needs no
// stack but what is there (nosplit), and takes no lock. at is a number; the
// kernel looks what is there.
//
//go:nosplit
//go:norace
func forkAndSend(fd, at, n uintptr) (pid uintptr, errno syscall.Errno) {
	pid, _, errno = syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	syscall.RawSyscall(unix.SYS_WRITE, fd, at, n)
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}
