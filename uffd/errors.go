package uffd

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Sentinels; test for them with errors.Is. Whatever the kernel answered is
// reached by its errno: errors.Is(err, unix.EEXIST).
var (
	// ErrNotSupported: this kernel, system or architecture cannot do it.
	ErrNotSupported = errors.ErrUnsupported
	// ErrClosed: the descriptor or the Waiter was closed.
	ErrClosed = errors.New("closed")
	// ErrPeerGone: the process that a Waiter watches has ended.
	ErrPeerGone = errors.New("the watched process has ended")
	// ErrInvalid: an argument is wrong, and the kernel was not asked (EINVAL).
	ErrInvalid error = &errnoError{"invalid argument", syscall.EINVAL}
	// ErrNotPermitted: this process has no right to a userfaultfd that hears of the
	// kernel's faults (EACCES of the device, EPERM of the system call). It takes access to
	// /dev/userfaultfd, or CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd at 1.
	ErrNotPermitted = errors.New("no right to a userfaultfd that hears of the kernel's faults")
	// ErrNotUserfaultfd: the descriptor is something else (EBADF).
	ErrNotUserfaultfd error = &errnoError{"not a userfaultfd", syscall.EBADF}
	// ErrNotNegotiated: nobody has done the API handshake on the descriptor
	// yet (EINVAL).
	ErrNotNegotiated error = &errnoError{"the userfaultfd has not been negotiated", syscall.EINVAL}
)

type errnoError struct {
	text  string
	errno syscall.Errno
}

func (e *errnoError) Error() string { return e.text }
func (e *errnoError) Unwrap() error { return e.errno }

// Error says which operation failed on which range, and why. Unwrap reaches
// the sentinel or the errno.
type Error struct {
	Op            string
	Start, Length uint64 // 0, 0 where no range is concerned
	// Done is how many bytes from Start on had been dealt with before.
	Done uint64
	Err  error
}

func (e *Error) Error() string {
	switch {
	case e.Start == 0 && e.Length == 0:
		return fmt.Sprintf("uffd: %s: %v", e.Op, e.Err)
	case e.Done == 0:
		return fmt.Sprintf("uffd: %s [%#x, +%#x): %v", e.Op, e.Start, e.Length, e.Err)
	default:
		return fmt.Sprintf("uffd: %s [%#x, +%#x) after %#x bytes: %v", e.Op, e.Start, e.Length, e.Done, e.Err)
	}
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Err: err}
}

func rangeError(op string, start addr.HVA, length, done uint64, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Start: uint64(start), Length: length, Done: done, Err: err}
}

// cause takes the range off an error, for who reports it with a wider one.
func cause(err error) error {
	var e *Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
