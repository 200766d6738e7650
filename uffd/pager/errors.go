package pager

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Errors by name. Whatever a source or the kernel answered is reached through
// them: errors.Is(err, unix.EIO) works.
var (
	// ErrNotSupported: this system has no userfaultfd.
	ErrNotSupported = uffd.ErrNotSupported
	// ErrClosed: the server, guest or takeover was closed or used up.
	ErrClosed = errors.New("closed")
	// ErrServed: the server serves a guest of the same userfaultfd already. Two would
	// each read events that the other must know of.
	ErrServed = errors.New("the userfaultfd is served already")
	// ErrInvalid: an option or a region is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrOverlap: two regions have addresses in common.
	ErrOverlap = errors.New("regions overlap")
	// ErrBeyondSource: a region or a read asks for more than the image has.
	ErrBeyondSource = errors.New("beyond the end of the image")
	// ErrTruncated: the image has become shorter than it was when opened, or a
	// reader gave fewer bytes than asked for.
	ErrTruncated = errors.New("the image is shorter than it should be")
	// ErrSource: a page cannot be read for good.
	ErrSource = errors.New("the image cannot be read")
	// ErrWouldBlock: the source would have to wait; TryReadPages only.
	ErrWouldBlock = errors.New("would block")
	// ErrOutside: a fault is outside every region.
	ErrOutside = errors.New("fault outside every region")
	// ErrStrayEvent: memory that is in no region was removed or moved.
	ErrStrayEvent = errors.New("event for memory outside every region")
	// ErrUnknownEvent: the kernel sent an event of a kind unknown here.
	ErrUnknownEvent = errors.New("unknown event")
	// ErrForked: the guest forked and its owner does not allow that.
	ErrForked = errors.New("the guest has forked")
	// ErrLivelock: the same page failed or faulted too many times in a row.
	ErrLivelock = errors.New("no progress on a page")
	// ErrPeerGone: the process whose memory was served has ended.
	ErrPeerGone = errors.New("the guest's process has ended")
	// ErrServerClosed: the server was closed while it served the guest.
	ErrServerClosed = errors.New("the page-fault server was closed")
	// ErrPanicked: code of the source or of the server panicked.
	ErrPanicked = errors.New("panic while serving")
	// ErrKernel: an operation failed in a way that has no name here; the errno
	// is behind it.
	ErrKernel = errors.New("the kernel refused")
	// ErrWorkingSet: a working-set file is damaged, or not one.
	ErrWorkingSet = errors.New("bad working-set file")
	// ErrWrongImage: a working set or a handed-over guest belongs to another
	// image.
	ErrWrongImage = errors.New("belongs to another image")
	// ErrLost: a server died who alone knew where the guest's memory is.
	ErrLost = errors.New("where the guest's memory is was lost with its server")
	// ErrHandover: what came over the socket is not a handed-over guest, or
	// the other side did not take it.
	ErrHandover = errors.New("handover failed")
)

// An Error says what went wrong with which page of which guest.
type Error struct {
	Op     string   // what was being done
	Guest  string   // GuestOptions.Name
	Addr   addr.HVA // in the guest's process; 0 where none is concerned
	Offset uint64   // in the image; meaningful if Addr is not 0
	Err    error
}

func (e *Error) Error() string {
	who := e.Op
	if e.Guest != "" {
		who = "guest " + e.Guest + ": " + e.Op
	}
	if e.Addr == 0 {
		return fmt.Sprintf("pager: %s: %v", who, e.Err)
	}
	return fmt.Sprintf("pager: %s at %v, image offset %#x: %v", who, e.Addr, e.Offset, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// because joins one of the names above with the cause behind it.
func because(name, cause error) error {
	if cause == nil || errors.Is(cause, name) {
		return cause
	}
	return fmt.Errorf("%w: %w", name, cause)
}
