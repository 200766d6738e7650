//go:build amd64 || arm64

package uffd

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// readBatch is how many messages one system call takes at most. They lie on
// the stack: 512 bytes.
const readBatch = 16

// Read fills events with what waits, without blocking, and returns how many; 0
// and no error if nothing does. It takes at most 16 at a time: call again until
// it returns none. It allocates nothing but what EventFork brings.
//
// Errors: ErrClosed; the errno of read(2). EMFILE or ENFILE says that a fork
// event waits whose descriptor found no room: nothing is lost, and reading again
// with a descriptor free gives it.
func (f *FD) Read(events []Event) (int, error) {
	if !f.h.acquire() {
		return 0, opError("read", ErrClosed)
	}
	defer f.h.release()
	return f.read(events)
}

// read is Read by who has acquired the handle.
func (f *FD) read(events []Event) (int, error) {
	if len(events) == 0 {
		return 0, opError("read", ErrInvalid)
	}
	var msgs [readBatch]uffdMsg
	n, err := readMessages(f.h.fd, &f.cannotNowait, msgs[:min(len(events), readBatch)])
	switch {
	case err == nil:
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return 0, nil
	default:
		return 0, opError("read", err)
	}
	for i := range msgs[:n] {
		f.decode(&msgs[i], &events[i])
	}
	return n, nil
}

func (f *FD) decode(m *uffdMsg, e *Event) {
	*e = Event{Kind: EventKind(m.event)}
	switch e.Kind {
	case EventFault:
		e.Flags, e.Addr, e.ThreadID = FaultFlags(m.arg[0]), addr.HVA(m.arg[1]), uint32(m.arg[2])
	case EventFork:
		e.Child = f.child(int(uint32(m.arg[0])))
	case EventRemap:
		e.From, e.To, e.Len = addr.HVA(m.arg[0]), addr.HVA(m.arg[1]), m.arg[2]
	case EventRemove, EventUnmap:
		e.Start, e.End = addr.HVA(m.arg[0]), addr.HVA(m.arg[1])
	default:
		e.Raw = m.arg
	}
}

// child is the userfaultfd of a forked process. Its flags are those that the
// parent's was made with, not those that it has by now.
func (f *FD) child(fd int) *FD {
	// It cannot fail on a descriptor that is open, and a child without an owner
	// would hang.
	_ = setDescriptorFlags(fd)
	return newFD(fd, f.features)
}
