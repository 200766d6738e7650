package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
)

// How a guest goes to another process over a UNIX stream socket:
//
//	sender                              receiver
//	"GMMHAND1", length, the descriptor ─►
//	the description                    ─►
//	                                   ◄─ 'R': it is sound, and understood
//	'G': it is yours                   ─►
//	                                   ◄─ 'D': I have it
//
// Up to 'G' the guest is the sender's, from 'G' on it is not: never do both
// serve it, since an event read by one is unknown to the other.
const (
	handMagic = "GMMHAND1"
	handReady = 'R'
	handGo    = 'G'
	handDone  = 'D'
	// maxBlob is more than any description within maxTakeoverPages needs.
	maxBlob = 1 << 30
)

// Send hands the guest to the process at the other end of a socket, who calls
// Receive. If it fails and Sent is false the guest is still t's. If Sent is
// true the other side was told that the guest is its own, and did not confirm:
// it has it, or nobody has. t then keeps its descriptor open, so that nobody
// sees zeroes, until Close.
//
// Deadlines are those of the connection. Errors: ErrHandover, those of the
// socket, ErrInvalid for a guest with forked children not served yet, and for
// one with regions of ModeContinue: other guests of this process share its
// cache, which stays here.
func (t *Takeover) Send(conn *net.UnixConn) error {
	if t.l == nil || t.sent {
		return &Error{Op: "hand over", Err: ErrClosed}
	}
	l := t.l
	l.gate.Lock()
	var st Stats
	problem := l.mark(&st) // what was read and not acted on goes along as states
	forks := len(l.forks)
	l.gate.Unlock()
	if err := l.canLeave(); err != nil {
		return &Error{Op: "hand over", Guest: l.name, Err: err}
	}
	if forks > 0 {
		return &Error{Op: "hand over", Guest: l.name, Err: fmt.Errorf("%w: %d forked children wait to be served", ErrInvalid, forks)}
	}
	if problem != nil {
		return problem
	}
	if err := t.send(conn); err != nil {
		return &Error{Op: "hand over", Guest: l.name, Err: because(ErrHandover, err)}
	}
	l.close()
	t.l = nil
	return nil
}

// canLeave says why the guest cannot be served by another process.
func (l *ledger) canLeave() error {
	for _, r := range l.regions {
		if r.Mode == ModeContinue {
			return fmt.Errorf("%w: region %v is served from a cache of this process", ErrInvalid, r.Region)
		}
		if r.Of != nil {
			return fmt.Errorf("%w: region %v is of a Memory of this process", ErrInvalid, r.Region)
		}
	}
	return nil
}

// Sent reports whether Send has told the other side that the guest is its own.
func (t *Takeover) Sent() bool { return t.sent }

func (t *Takeover) send(conn *net.UnixConn) error {
	blob := t.encode()
	head := binary.LittleEndian.AppendUint64([]byte(handMagic), uint64(len(blob)))
	if _, _, err := conn.WriteMsgUnix(head, unix.UnixRights(t.l.k.Fd()), nil); err != nil {
		return err
	}
	if _, err := conn.Write(blob); err != nil {
		return err
	}
	if err := expect(conn, handReady); err != nil {
		return err
	}
	t.sent = true
	if _, err := conn.Write([]byte{handGo}); err != nil {
		return err
	}
	return expect(conn, handDone)
}

func expect(conn *net.UnixConn, want byte) error {
	var got [1]byte
	if _, err := io.ReadFull(conn, got[:]); err != nil {
		return err
	}
	if got[0] != want {
		return fmt.Errorf("the other side says %q, want %q", got[0], want)
	}
	return nil
}

// Receive takes a guest that another process sends.
//
// Errors: ErrHandover, those of the socket. Nothing is kept then.
func Receive(conn *net.UnixConn) (*Takeover, error) {
	t, err := receive(conn)
	if err != nil {
		return nil, &Error{Op: "receive a guest", Err: because(ErrHandover, err)}
	}
	return t, nil
}

func receive(conn *net.UnixConn) (_ *Takeover, err error) {
	var head [16]byte
	fds, err := readWithFDs(conn, head[:])
	defer func() {
		if err != nil {
			for _, fd := range fds {
				unix.Close(fd)
			}
		}
	}()
	switch {
	case err != nil:
		return nil, err
	case string(head[:8]) != handMagic || len(fds) != 1:
		return nil, fmt.Errorf("it begins with %q and %d descriptors, want %q and one", head[:8], len(fds), handMagic)
	}
	length := binary.LittleEndian.Uint64(head[8:])
	if length > maxBlob {
		return nil, fmt.Errorf("a description of %d bytes", length)
	}
	// Grown as it comes: the length alone is no reason to allocate that much.
	blob, err := io.ReadAll(io.LimitReader(conn, int64(length)))
	if err != nil {
		return nil, err
	}
	if uint64(len(blob)) != length {
		return nil, io.ErrUnexpectedEOF
	}
	t, err := decodeTakeover(blob)
	if err != nil {
		return nil, err
	}
	fd, err := uffd.FromFD(fds[0])
	if err != nil {
		return nil, err
	}
	t.l.k, fds = fd, nil
	for _, b := range []byte{handReady, handGo, handDone} {
		if b == handGo {
			err = expect(conn, b)
		} else {
			_, err = conn.Write([]byte{b})
		}
		if err != nil && b != handDone {
			fd.Close() // the sender has its own
			return nil, err
		}
	}
	// It is ours since handGo; if the confirmation did not arrive the sender
	// knows that it may be.
	return t, nil
}

// readWithFDs fills p and returns the descriptors that came with it.
func readWithFDs(conn *net.UnixConn, p []byte) (fds []int, err error) {
	oob := make([]byte, unix.CmsgSpace(16*4))
	for n := 0; n < len(p); {
		k, oobn, flags, _, err := conn.ReadMsgUnix(p[n:], oob)
		got, parseErr := parseRights(oob[:oobn])
		fds = append(fds, got...)
		switch {
		case err != nil:
			return fds, err
		case parseErr != nil:
			return fds, parseErr
		case flags&unix.MSG_CTRUNC != 0:
			return fds, errors.New("more descriptors than there is room for")
		case k == 0:
			return fds, io.ErrUnexpectedEOF
		}
		n += k
	}
	return fds, nil
}

func parseRights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range msgs {
		got, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return fds, err
		}
		fds = append(fds, got...)
	}
	return fds, nil
}
