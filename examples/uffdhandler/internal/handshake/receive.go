//go:build linux

package handshake

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
)

const (
	// MaxDescriptors is how many one client may send; one is used.
	MaxDescriptors = 16
	// scmMaxFD is how many the kernel lets one message have. There is room for
	// all, so that what is too many is known, and closed.
	scmMaxFD = 253
	// pieceBytes is what is read at a time.
	pieceBytes = 64 << 10
)

// A Request is what a client wants to be served.
type Request struct {
	Mappings []Mapping
	// FD is its userfaultfd. It belongs to who has the Request.
	FD *uffd.FD
	// Extra is how many other descriptors came; they have been closed.
	Extra int
}

// Receive reads the message of a client, and the descriptor, which may come
// with any piece of the message or after it. It waits no longer than the
// socket's deadline.
//
// Errors: those of this package. Nothing is kept then.
func Receive(conn *net.UnixConn, peer *Peer) (*Request, error) {
	var a assembler
	fds, err := receive(conn, &a)
	defer func() { closeAll(fds) }()
	if err != nil {
		return nil, err
	}
	if a.claim != nil {
		fd, err := peer.fetch(a.claim, len(fds))
		if err != nil {
			return nil, err
		}
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	mappings, err := Parse(a.array())
	if err != nil {
		return nil, err
	}
	fd, rest, err := choose(fds)
	fds = rest
	if err != nil {
		return nil, err
	}
	return &Request{Mappings: mappings, FD: fd, Extra: len(rest)}, nil
}

// receive reads until there is a whole message and a way to its descriptor.
func receive(conn *net.UnixConn, a *assembler) (fds []int, err error) {
	buf, oob := make([]byte, pieceBytes), make([]byte, unix.CmsgSpace(4*scmMaxFD))
	for !a.whole() || len(fds) == 0 && a.claim == nil {
		n, oobn, flags, _, err := conn.ReadMsgUnix(buf, oob)
		fds = append(fds, Rights(oob[:max(oobn, 0)])...)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fds, fmt.Errorf("%w: %s", ErrTimeout, a.lacks())
		case err == nil && n == 0, errors.Is(err, io.EOF):
			return fds, a.endedEarly()
		case err != nil:
			return fds, fmt.Errorf("%w: %w", ErrCutShort, err)
		case len(fds) > MaxDescriptors:
			return fds, fmt.Errorf("%w: %d or more, at most %d", ErrTooManyDescriptors, len(fds), MaxDescriptors)
		case flags&unix.MSG_CTRUNC != 0:
			// The buffer has room for all that one message may have. The kernel has
			// dropped what it could not give a number, and it does not come again.
			return fds, fmt.Errorf("%w: %d of those that came were taken", ErrOutOfDescriptors, len(fds))
		}
		if err := a.add(buf[:n]); err != nil {
			return fds, err
		}
	}
	return fds, nil
}

func (a *assembler) lacks() string {
	if a.whole() {
		return "its descriptor lacks"
	}
	return fmt.Sprintf("%d bytes have come", len(a.buf))
}

func (a *assembler) endedEarly() error {
	if a.whole() {
		return ErrNoDescriptor
	}
	return fmt.Errorf("%w: after %d bytes", ErrCutShort, len(a.buf))
}

// Rights returns the descriptors of a message, of which the kernel has made the
// control data, so that it is sound.
func Rights(oob []byte) (fds []int) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds
}

// choose takes the one userfaultfd out of fds. A memfd, or whatever else came
// along, is not an error; two userfaultfds are, since nothing says which one is
// meant. One that cannot be looked at might be a second one.
func choose(fds []int) (chosen *uffd.FD, rest []int, err error) {
	problem := ErrDescriptor
	for i, fd := range fds {
		f, err := uffd.FromFD(fd)
		switch {
		case err != nil && Shortage(err) != "":
			if chosen != nil {
				chosen.Close()
			}
			return nil, append(rest, fds[i:]...), fmt.Errorf("%w: %w", ErrDescriptor, err)
		case err != nil:
			rest = append(rest, fd)
			problem = fmt.Errorf("%w: %w", problem, err)
		case chosen != nil:
			f.Close()
			chosen.Close()
			return nil, append(rest, fds[i+1:]...), fmt.Errorf("%w: two came", ErrDescriptor)
		default:
			chosen = f
		}
	}
	if chosen == nil {
		return nil, rest, problem
	}
	return chosen, rest, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
