package guestmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Errors by name. Each is also the errno that Linux gives, to errors.Is, but for
// ErrClosed and ErrNotSupported, which no guest comes by.
var (
	// ErrNotMapped: no area there (EFAULT; SIGSEGV with SEGV_MAPERR).
	ErrNotMapped = newErrno("address is not mapped", syscall.EFAULT)
	// ErrAccess: the area does not allow it (EFAULT; SIGSEGV with SEGV_ACCERR).
	ErrAccess = newErrno("access is not permitted", syscall.EFAULT)
	// ErrBus: past the end of the object, or its data cannot be read (EFAULT
	// to a system call; SIGBUS to a guest).
	ErrBus = newErrno("no data behind the address", syscall.EFAULT)
	// ErrNoMemory: guest memory is used up, or the host has none to back more
	// (ENOMEM).
	ErrNoMemory = cow.ErrNoMemory
	// ErrInvalid: an argument is wrong (EINVAL).
	ErrInvalid = newErrno("invalid argument", syscall.EINVAL)
	// ErrExists: MapFixedNoReplace on something (EEXIST).
	ErrExists = newErrno("range is mapped already", syscall.EEXIST)
	// ErrNoSpace: no hole fits, the range is beyond the space, part of it is
	// not mapped, or there are too many areas (ENOMEM).
	ErrNoSpace = newErrno("no room in the address space", syscall.ENOMEM)
	// ErrOverflow: an offset overflows (EOVERFLOW).
	ErrOverflow = newErrno("offset overflows", syscall.EOVERFLOW)
	// ErrDenied: the object does not allow the mapping (EACCES).
	ErrDenied = newErrno("not permitted by the object", syscall.EACCES)
	// ErrTooLong: no end of the string within the limit (ENAMETOOLONG).
	ErrTooLong = newErrno("string is too long", syscall.ENAMETOOLONG)
	// ErrClosed: the address space, memory or object was closed.
	ErrClosed = errors.New("closed")
	// ErrAgain: there would be too many areas, or more would be locked than may
	// be (EAGAIN).
	ErrAgain = newErrno("not possible now", syscall.EAGAIN)
	// ErrPermission: the address space may not do it (EPERM).
	ErrPermission = newErrno("operation not permitted", syscall.EPERM)
	// ErrBusy: something still uses it (EBUSY).
	ErrBusy = newErrno("still in use", syscall.EBUSY)
	// ErrOtherSpace: the snapshot is of another address space (EXDEV).
	ErrOtherSpace = newErrno("snapshot of another address space", syscall.EXDEV)
	// ErrLimit: more frames would be pinned than may be (ENOMEM).
	ErrLimit = newErrno("more than may be pinned", syscall.ENOMEM)
	// ErrReleased: it was released before (EINVAL).
	ErrReleased = newErrno("released already", syscall.EINVAL)
	// ErrNoBacking: an area of an object where anonymous memory is wanted (EBADF).
	ErrNoBacking = newErrno("not anonymous memory", syscall.EBADF)
	// ErrIO: what an object is read from, or written to, has failed (EIO).
	ErrIO = newErrno("input/output error", syscall.EIO)
	// ErrNotSupported: this host, system or architecture cannot do it.
	ErrNotSupported = errors.ErrUnsupported
)

// errGuard is what an access to a guard page is told, as to one that is not
// mapped.
var errGuard = fmt.Errorf("guard page: %w", ErrNotMapped)

// errLost is what an access to a file's page is told that somebody else has cut off.
var errLost = fmt.Errorf("the file was cut short: %w", ErrBus)

// errBelowLowest is what Linux answers a fixed mapping below the lowest address
// (mmap_min_addr) with: EPERM.
var errBelowLowest = newErrno("below the lowest address", syscall.EPERM)

// errUnknownFlags is what MAP_SHARED_VALIDATE refuses flags with: EOPNOTSUPP.
var errUnknownFlags = newErrno("unknown flags", syscall.EOPNOTSUPP)

// errTooBig is what a hole is refused with that ends beyond all offsets: EFBIG.
var errTooBig = newErrno("beyond the largest offset", syscall.EFBIG)

type errnoError struct {
	text  string
	errno syscall.Errno
}

func newErrno(text string, errno syscall.Errno) error { return &errnoError{text, errno} }

func (e *errnoError) Error() string { return e.text }
func (e *errnoError) Unwrap() error { return e.errno }

// Error says which operation failed on which range, and why. Unwrap reaches the
// named error and its errno.
type Error struct {
	Op    string
	Range addr.Range
	Err   error
}

func (e *Error) Error() string {
	if e.Range == (addr.Range{}) {
		return fmt.Sprintf("guestmem: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("guestmem: %s %v: %v", e.Op, e.Range, e.Err)
}

func (e *Error) Unwrap() error { return e.Err }

func opError(op string, r addr.Range, err error) error {
	return &Error{Op: op, Range: r, Err: err}
}
