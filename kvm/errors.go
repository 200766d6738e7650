package kvm

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
)

// Sentinels; test for them with errors.Is.
var (
	// ErrNotSupported says that this host, or this build, cannot run guests.
	ErrNotSupported = guestmem.ErrNotSupported
	// ErrClosed says that the System, Platform, Context or address space is closed.
	ErrClosed = guestmem.ErrClosed
	// ErrBusy says that the Context is in a Run already, or that the Platform
	// still has a Run or an address space.
	ErrBusy = guestmem.ErrBusy
	// ErrGuestState says that a vCPU stopped in a way that leaves the guest no
	// state to go on from: shutdown, failed entry, or an instruction that the
	// host's KVM cannot run. The guest is dead; the Platform is not.
	ErrGuestState = errors.New("guest state lost")
)

// Error is the error of every operation of the package. errors.Is sees through
// it to the errno or to a sentinel.
type Error struct {
	Op  string // the operation or the ioctl
	Err error
}

func (e *Error) Error() string { return fmt.Sprintf("kvm: %s: %v", e.Op, e.Err) }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

func opError(op string, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Err: err}
}
