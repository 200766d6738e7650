//go:build linux && amd64

package kvm

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request whose argument is a number, and returns its result.
func ioctl(fd int, req, arg uintptr) (int, error) {
	if errno := injected(req); errno != 0 {
		return 0, errno
	}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// ioctlPtr makes a request whose argument is a structure.
func ioctlPtr[T any](fd int, req uintptr, arg *T) (int, error) {
	if errno := injected(req); errno != 0 {
		return 0, errno
	}
	// SAFETY: arg points to a live T for the length of the call (the conversion
	// stands in the call's argument list, so arg is kept and not moved), and T is the
	// structure that req names, as uapi_unsafe.go's sizes check.
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return 0, errno
	}
	return int(r), nil
}

// ioctlBytes makes a request whose argument is a buffer of variable size.
//
// Preconditions:
//   - len(buf) is at least what the kernel reads or writes.
func ioctlBytes(fd int, req uintptr, buf []byte) error {
	if errno := injected(req); errno != 0 {
		return errno
	}
	// SAFETY: as ioctlPtr; SliceData of a non-empty slice points to its bytes.
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(unsafe.SliceData(buf))))
	if errno != 0 {
		return errno
	}
	return nil
}

// ioctlRun is KVM_RUN. It returns the bare errno, since EINTR is not a failure
// here and an error value per exit would be an allocation.
func ioctlRun(fd int) syscall.Errno {
	if errno := injected(reqRun); errno != 0 {
		return errno
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), reqRun, 0)
	return errno
}

// runPage views the mapping of a vCPU as struct kvm_run.
//
// Preconditions:
//   - mem is the mapping of a vCPU descriptor, at least sizeof(uRun) long, and
//     stays mapped while the result is used.
func runPage(mem []byte) *uRun {
	if len(mem) < int(unsafe.Sizeof(uRun{})) {
		panic("kvm: mapping of kvm_run is too short")
	}
	// SAFETY: the mapping is page-aligned and long enough; the kernel's layout is
	// uRun's, as uapi_unsafe.go's sizes check.
	return (*uRun)(unsafe.Pointer(unsafe.SliceData(mem)))
}

// addressOf returns the host address of an mmapped buffer.
func addressOf(mem []byte) uint64 {
	// SAFETY: only the number is used; mem is a mapping, which does not move.
	return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
}

// hostRange makes a madvise or mprotect on [hva, hva+length) of this process.
//
// Preconditions:
//   - the range lies in a mapping made for KVM slots, which no Go object and no
//     Go pointer lies in.
func madviseDontNeed(hva, length uint64) error {
	if err := atDontNeed.Err(); err != nil {
		return err
	}
	// SAFETY: the precondition; no Go memory is touched.
	_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(hva), uintptr(length), unix.MADV_DONTNEED)
	if errno != 0 {
		return errno
	}
	return nil
}

// mprotectPair takes write permission off [hva, hva+length) and gives it back:
// between the two, no translation to the range survives in KVM.
//
// Preconditions: as madviseDontNeed.
func mprotectPair(hva, length uint64) error {
	for _, prot := range []uintptr{unix.PROT_READ, unix.PROT_READ | unix.PROT_WRITE} {
		if err := atMprotect.Err(); err != nil {
			return err
		}
		// SAFETY: the precondition; no Go memory is touched.
		_, _, errno := unix.Syscall(unix.SYS_MPROTECT, uintptr(hva), uintptr(length), prot)
		if errno != 0 {
			return errno
		}
	}
	return nil
}
