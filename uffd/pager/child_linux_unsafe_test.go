//go:build linux

package pager

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// plainLoad is what nobody may do: Go code that loads from memory that may be
// absent. The thread waits in the kernel while the runtime believes that it
// runs, and cannot be stopped, since it is inside of memmove.
func plainLoad(p []byte, a addr.HVA) {
	// SAFETY: a is the start of a mapping that lives as long as the process,
	// and of at least len(p) bytes. It is not of the Go heap.
	copy(p, unsafe.Slice(*(**byte)(unsafe.Pointer(&a)), len(p)))
}

// rawFork is fork(2) without the Go runtime's knowledge. The child has one
// thread, and may call only what is below.
//
//go:norace
//go:nosplit
func rawFork() (pid int, errno unix.Errno) {
	r, _, e := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	return int(r), e
}

// rawCheck ends the process according to whether its memory from start on is
// what it should be. It allocates nothing and calls nothing of the runtime; nor may
// it look at its stack's bound, which says after a fork beside a preemption that
// the scheduler is to be called, and its other threads are not there.
//
//go:norace
//go:nosplit
func rawCheck(start addr.HVA, local []unix.Iovec, buf, want []byte) {
	for off := 0; off < len(want); off += len(buf) {
		if !rawLoad(start+addr.HVA(off), local) {
			rawExit(exitUnreadable)
		}
		for k := range buf {
			if buf[k] != want[off+k] {
				rawExit(exitWrongBytes)
			}
		}
	}
	rawExit(0)
}

//go:norace
//go:nosplit
func rawExit(code int) {
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

// rawLoad is process_vm_readv(2) of the caller's own memory.
//
//go:norace
//go:nosplit
func rawLoad(a addr.HVA, local []unix.Iovec) bool {
	pid, _, _ := unix.RawSyscall(unix.SYS_GETPID, 0, 0, 0)
	remote := unix.RemoteIovec{Base: uintptr(a), Len: int(local[0].Len)}
	// SAFETY: both arrays are alive for the call: the conversions are in its
	// argument list.
	n, _, e := unix.RawSyscall6(unix.SYS_PROCESS_VM_READV, pid, uintptr(unsafe.Pointer(&local[0])), 1, uintptr(unsafe.Pointer(&remote)), 1, 0)
	return e == 0 && n == uintptr(local[0].Len)
}
