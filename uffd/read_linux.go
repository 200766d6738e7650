//go:build amd64 || arm64

package uffd

import (
	"errors"
	"fmt"

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
	return f.readVia(msgs[:min(len(events), readBatch)], events)
}

func (f *FD) readVia(msgs []uffdMsg, events []Event) (int, error) {
	n, err := readMessages(f.h.fd, &f.cannotNowait, msgs)
	switch {
	case err == nil && n > 0:
	case err == nil:
		// No userfaultfd ends. Somebody has closed ours, and the number is another
		// file's now.
		return 0, opError("read", fmt.Errorf("%w any more: %w", ErrNotUserfaultfd, unix.EBADF))
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

// MessageSpace is how many bytes ReadThrough wants.
const MessageSpace = readBatch * messageSize

// ReadThrough is Read with the kernel's messages in buf, which is MessageSpace
// bytes at a multiple of 8, and is cleared first. Where buf is memory that
// another process maps, and stays in memory (mlock), what a killed process had
// read is still there for DecodeMessages: SIGKILL waits for the end of the read.
//
// Errors: as Read's; ErrInvalid.
func (f *FD) ReadThrough(buf []byte, events []Event) (int, error) {
	if !f.h.acquire() {
		return 0, opError("read", ErrClosed)
	}
	defer f.h.release()
	msgs := messagesIn(buf)
	if msgs == nil || len(events) == 0 {
		return 0, opError("read", ErrInvalid)
	}
	clear(msgs)
	return f.readVia(msgs[:min(len(events), readBatch)], events)
}

// DecodeMessages decodes what ReadThrough of another process has left in buf,
// and returns how many events that were. The Child of an EventFork has gone with
// the process.
func DecodeMessages(buf []byte, events []Event) (n int) {
	msgs := messagesIn(buf)
	for n < min(len(msgs), len(events)) && msgs[n].event != 0 {
		decodeMessage(&msgs[n], &events[n])
		n++
	}
	return n
}

func (f *FD) decode(m *uffdMsg, e *Event) {
	decodeMessage(m, e)
	if e.Kind == EventFork {
		e.Child = f.child(int(uint32(m.arg[0])))
	}
}

func decodeMessage(m *uffdMsg, e *Event) {
	*e = Event{Kind: EventKind(m.event)}
	switch e.Kind {
	case EventFault:
		e.Flags, e.Addr, e.ThreadID = FaultFlags(m.arg[0]), addr.HVA(m.arg[1]), uint32(m.arg[2])
	case EventFork:
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
