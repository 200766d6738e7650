//go:build linux && (amd64 || arm64)

package uffd

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// zeroBytes is what armed zero pages are copied from. It is as large as a 2 MiB
// page, is never written, and costs what the kernel's one page of zeroes does.
var zeroBytes [2 << 20]byte

// ioctl makes a request whose argument is a structure. Whoever waits for
// mmap_lock in it gives its processor to other goroutines.
func ioctl[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: arg points to a live T for the length of the call (the conversion
	// stands in the call's argument list, so arg is kept and not moved), and T is the
	// structure that req names, as uapi_unsafe.go's sizes check.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// shortIoctl is ioctl for what takes the kernel a microsecond: to give its processor
// away and to take it back would cost a tenth of that.
func shortIoctl[T any](fd int, req uintptr, arg *T) error {
	// SAFETY: as ioctl.
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlResult is ioctl for requests that return a number.
func ioctlResult[T any](fd int, req uintptr, arg *T) (int, error) {
	// SAFETY: as ioctl.
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

const scanArgSize = uint64(unsafe.Sizeof(pmScanArg{}))

// readMessages fills msgs as far as messages wait, without blocking, and
// returns how many.
//
// O_NONBLOCK alone is not relied upon: it belongs to the description, which who
// sent us the descriptor shares, and can take off. RWF_NOWAIT is ours. With it
// the read takes two spinlocks and never sleeps, so that it may be a RawSyscall:
// giving the processor away and back would double what a turn of a spin costs.
// Where there is no such thing (before Linux 6.10, and of the descriptors that
// forks bring, whose description nobody shares) cannotNowait remembers it; then
// the read may be made to block, and holds up its caller and nobody else.
func readMessages(fd int, cannotNowait *atomic.Bool, msgs []uffdMsg) (int, error) {
	const noOffset = ^uintptr(0)
	if !cannotNowait.Load() {
		iov := unix.Iovec{Base: (*byte)(unsafe.Pointer(unsafe.SliceData(msgs)))}
		iov.SetLen(len(msgs) * int(unsafe.Sizeof(uffdMsg{})))
		// SAFETY: iov is kept and not moved during the call, refers to msgs by a
		// real pointer, and any bytes are a valid uffdMsg.
		n, _, errno := unix.RawSyscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&iov)), 1, noOffset, noOffset, unix.RWF_NOWAIT)
		switch errno {
		case 0:
			return int(n / unsafe.Sizeof(uffdMsg{})), nil
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ESPIPE:
			cannotNowait.Store(true)
		default:
			return 0, errno
		}
	}
	// SAFETY: as above, of msgs itself.
	n, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fd),
		uintptr(unsafe.Pointer(unsafe.SliceData(msgs))), uintptr(len(msgs))*unsafe.Sizeof(uffdMsg{}))
	if errno != 0 {
		return 0, errno
	}
	return int(n / unsafe.Sizeof(uffdMsg{})), nil
}

const messageSize = int(unsafe.Sizeof(uffdMsg{}))

// messagesIn returns a buffer as messages, or nil if it is none: too short, or
// not at a multiple of 8.
func messagesIn(buf []byte) []uffdMsg {
	if len(buf) < readBatch*messageSize || uintptr(unsafe.Pointer(unsafe.SliceData(buf)))%8 != 0 {
		return nil
	}
	// SAFETY: buf is long enough, aligned, and any bytes are a valid uffdMsg.
	return unsafe.Slice((*uffdMsg)(unsafe.Pointer(unsafe.SliceData(buf))), readBatch)
}

// pinned returns the address of the first byte of b, which stays where it is
// until p is unpinned.
//
// Preconditions:
//   - len(b) > 0
func pinned(p *runtime.Pinner, b []byte) addr.HVA {
	base := unsafe.SliceData(b)
	p.Pin(base)
	// SAFETY: only the number is used, by the kernel, while p holds the bytes.
	// Memory outside of the Go heap, as of a mapping, is ignored by Pin and
	// does not move.
	return addr.HVA(uintptr(unsafe.Pointer(base)))
}

func vecAddress(p *runtime.Pinner, vec []pageRegion) uint64 {
	base := unsafe.SliceData(vec)
	p.Pin(base)
	// SAFETY: as pinned.
	return uint64(uintptr(unsafe.Pointer(base)))
}
