//go:build amd64 || arm64

package uffd

import (
	"iter"
	"os"

	"github.com/guestmm/guestmm/guestmem/addr"
)

var hostPageSize = uint64(os.Getpagesize())

// checkRange refuses what the kernel would, or would misread.
func checkRange(start addr.HVA, length uint64) error {
	if length == 0 || (uint64(start)|length)&(hostPageSize-1) != 0 || uint64(start)+length < uint64(start) {
		return ErrInvalid
	}
	return nil
}

// Register has the faults of [start, start+length) reported, and returns what
// the kernel says can be done there; it counts Move in for shared memory too, of
// which nothing can be moved. The range is whole pages, of 2 MiB in hugetlb memory,
// and all of it is mapped. With FeatureWPAsync, WP alone is for any mapping, of
// files too. m is not held against the features: ask for those that it needs, since
// a kernel that lacks them may register and report nothing.
//
// Errors: ErrInvalid, ErrClosed; EINVAL (not mapped, or of a kind that cannot be
// registered, such as a file that is not in memory, or private memory for Minor; an
// unaligned huge page; a mode that the kernel does not know); ENOMEM (nothing is
// mapped from there on, no mappings are left, or the process is gone); EBUSY (another
// userfaultfd has it); EPERM (mapped without the right to write the file). After
// ENOMEM part of the range may be registered: Unregister it. After the others nothing
// has changed. UFFDIO_REGISTER, Linux 4.3
func (f *FD) Register(start addr.HVA, length uint64, m Mode) (Ioctls, error) {
	if m == 0 || m&^(Missing|WP|Minor) != 0 || checkRange(start, length) != nil {
		return 0, rangeError("register", start, length, 0, ErrInvalid)
	}
	arg := uffdioRegister{uffdioRange: uffdioRange{uint64(start), length}, mode: uint64(m)}
	if err := request(f, reqRegister, &arg); err != nil {
		return 0, rangeError("register", start, length, 0, err)
	}
	return Ioctls(arg.ioctls), nil
}

// Unregister ends that, disarms what was armed, and wakes who waits in the
// range: those find pages of zeroes where none were installed, and go on writing
// where they were held up. The kernel wakes those who wait for missing pages only
// (userfaultfd_unregister in fs/userfaultfd.c), so there is a UFFDIO_WAKE after.
//
// Errors: ErrInvalid, ErrClosed; EINVAL (not mapped); ENOMEM (the process is
// gone). UFFDIO_UNREGISTER, Linux 4.3
func (f *FD) Unregister(start addr.HVA, length uint64) error {
	err := f.onRange("unregister", reqUnregister, start, length)
	if err == nil {
		_ = f.Wake(start, length) // it fails for a range that Unregister refuses
	}
	return err
}

// Wake lets everybody go on who waits in the range; who still finds no page
// faults again. It is what must follow EEXIST: the one who lost the race may
// have gone to sleep after the winner had woken everybody.
//
// Errors: ErrInvalid, ErrClosed. UFFDIO_WAKE, Linux 4.3
func (f *FD) Wake(start addr.HVA, length uint64) error {
	return f.onRange("wake", reqWake, start, length)
}

func (f *FD) onRange(op string, req uintptr, start addr.HVA, length uint64) error {
	if err := checkRange(start, length); err != nil {
		return rangeError(op, start, length, 0, err)
	}
	arg := uffdioRange{uint64(start), length}
	return rangeError(op, start, length, 0, request(f, req, &arg))
}

// WriteProtect arms the range with Armed: the next write to each page is
// reported as FaultWP. Without it the range is disarmed, and who waits is woken
// unless DontWake is given. Pages that are not there stay as they are without
// FeatureWPUnpopulated in anonymous memory: a write to them is not reported.
// All of the range is registered for WP.
//
// Errors: ErrInvalid, ErrClosed; ENOENT (not registered for WP); EAGAIN (a
// layout event has not been read: read, then try again); ESRCH (the process is
// gone); EFAULT. After an error part of the range may be done; doing it again
// is harmless. UFFDIO_WRITEPROTECT, Linux 5.7 (arm64 6.10)
func (f *FD) WriteProtect(start addr.HVA, length uint64, fl Flags) error {
	const op = "write-protect"
	if fl&^(Armed|DontWake) != 0 || fl == Armed|DontWake || checkRange(start, length) != nil {
		return rangeError(op, start, length, 0, ErrInvalid)
	}
	arg := uffdioWriteProtect{uffdioRange: uffdioRange{uint64(start), length}}
	switch fl {
	case Armed:
		arg.mode = modeProtect
	case DontWake:
		arg.mode = modeProtectDontWake
	}
	return rangeError(op, start, length, 0, request(f, reqWriteProtect, &arg))
}

// request makes an ioctl while f is open. EINTR comes from a wait for mmap_lock
// that a signal ended, before anything was done; only a deadly signal does so,
// and it is handed on.
func request[T any](f *FD, req uintptr, arg *T) error {
	if !f.h.acquire() {
		return ErrClosed
	}
	defer f.h.release()
	return ioctl(f.h.fd, req, arg)
}

// ArmEach is WriteProtect with Armed for each of the ranges, start and length, until
// one fails. It is for many short ones while somebody waits: no other call is as cheap
// for each, since it keeps its processor from other goroutines where a range is short.
// There it waits for nobody but who changes the process's mappings.
//
// Errors: WriteProtect's, with the range that failed.
func (f *FD) ArmEach(ranges iter.Seq2[addr.HVA, uint64]) error {
	const op = "write-protect"
	if !f.h.acquire() {
		return &Error{Op: op, Err: ErrClosed}
	}
	defer f.h.release()
	arg := uffdioWriteProtect{mode: modeProtect}
	for start, length := range ranges {
		if checkRange(start, length) != nil {
			return rangeError(op, start, length, 0, ErrInvalid)
		}
		arg.uffdioRange = uffdioRange{uint64(start), length}
		var err error
		if length <= shortRange {
			err = shortIoctl(f.h.fd, reqWriteProtect, &arg)
		} else {
			err = ioctl(f.h.fd, reqWriteProtect, &arg)
		}
		if err != nil {
			return rangeError(op, start, length, 0, err)
		}
	}
	return nil
}

// shortRange takes the kernel about as long to arm as to enter and leave it.
const shortRange = 16 << 12
