//go:build linux

package server

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/handshake"
	"github.com/guestmm/guestmm/uffd/pager"
)

// How a guest goes to another server, on a connection of its own; "→" is from
// who gives:
//
//	→ magic, length, descriptors: the pidfd, and the client's socket if there is one
//	→ a parcel, JSON
//	← 'Y': it can be taken; 'N': not
//	→← what pager.Takeover.Send and pager.Receive say
//	← 'Y': it is served; 'N': it could not be, and its process was killed
//
// A listening socket goes the same way, without the last two.
const (
	parcelMagic = "UFFDHND1"
	maxParcel   = 64 << 10
	say         = 'Y'
	refuse      = 'N'
	// handTimeout bounds one attempt.
	handTimeout = 30 * time.Second
	// handAgain is the pace at which a standby server is looked for.
	handAgain = 100 * time.Millisecond
)

type parcel struct {
	Kind  string `json:"kind"` // "guest" or "socket"
	Path  string `json:"path,omitempty"`
	Image string `json:"image,omitempty"`
	PID   int    `json:"pid,omitempty"`
	UID   int    `json:"uid,omitempty"`
}

// handOver gives the guest to the standby server, trying until ctx is done. t
// is still the caller's after an error, and used up else.
func (c *session) handOver(ctx context.Context, t *pager.Takeover) error {
	p := parcel{Kind: "guest", Image: hex.EncodeToString(c.s.o.Image[:]), PID: c.peer.PID, UID: c.peer.UID}
	err := c.s.toStandby(ctx, func(conn *net.UnixConn) error {
		if t.Sent() {
			return giveUp{fmt.Errorf("%w: it was not confirmed", pager.ErrHandover)}
		}
		return c.handTo(conn, p, t)
	})
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	c.s.o.Metrics.Handover("out", outcome)
	c.log.Info("handover", "outcome", outcome, "err", err)
	return err
}

func (c *session) handTo(conn *net.UnixConn, p parcel, t *pager.Takeover) error {
	pidfd, err := c.peer.Dup()
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	fds := []int{pidfd}
	if c.conn != nil {
		f, err := c.conn.File()
		if err != nil {
			return err
		}
		defer f.Close()
		fds = append(fds, int(f.Fd()))
	}
	if err := sendParcel(conn, p, fds); err != nil {
		return err
	}
	if err := t.Send(conn); err != nil {
		return err
	}
	if err := hear(conn); err != nil {
		return giveUp{fmt.Errorf("%w: the standby server could not go on: %w", pager.ErrHandover, err)}
	}
	return nil
}

// handListener gives the socket for clients to the standby server, and reports
// whether it took it. Clients that connect meanwhile wait in its queue.
func (s *Server) handListener(l *socket) bool {
	f, err := l.File()
	if err != nil {
		return false
	}
	defer f.Close()
	// Closed here first: two servers must not accept from one queue.
	l.Close()
	// There is no waiting: a standby server that comes later makes its own.
	err = s.once(func(conn *net.UnixConn) error {
		return sendParcel(conn, parcel{Kind: "socket", Path: l.path}, []int{int(f.Fd())})
	})
	if err != nil {
		s.o.Log.Info("nobody takes the socket over", "err", err)
		return false
	}
	l.leave()
	return true
}

// giveUp is an error after which trying again makes no sense.
type giveUp struct{ error }

func (g giveUp) Unwrap() error { return g.error }

// toStandby connects to the standby server and has f talk to it, until f
// succeeds, gives up, or ctx is done; once at least.
func (s *Server) toStandby(ctx context.Context, f func(*net.UnixConn) error) error {
	for {
		err := s.once(f)
		if err == nil || errors.As(err, new(giveUp)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(handAgain):
		}
	}
}

func (s *Server) once(f func(*net.UnixConn) error) error {
	conn, err := net.DialTimeout("unix", s.o.Standby, handTimeout)
	if err != nil {
		return err
	}
	defer conn.Close()
	unixConn := conn.(*net.UnixConn)
	if err := conn.SetDeadline(time.Now().Add(handTimeout)); err != nil {
		return err
	}
	if err := trusted(unixConn); err != nil {
		return err
	}
	return f(unixConn)
}

// trusted wants the other side to be this user, or root: it gets, or gives, all
// of a guest's memory.
func trusted(conn *net.UnixConn) error {
	peer, err := handshake.PeerOf(conn)
	if err != nil {
		return err
	}
	defer peer.Close()
	if peer.UID != 0 && peer.UID != os.Geteuid() {
		return fmt.Errorf("%w: a server of user %d", handshake.ErrPeer, peer.UID)
	}
	return nil
}

func sendParcel(conn *net.UnixConn, p parcel, fds []int) error {
	body, err := json.Marshal(p)
	if err != nil {
		return err
	}
	head := binary.LittleEndian.AppendUint32([]byte(parcelMagic), uint32(len(body)))
	if _, _, err := conn.WriteMsgUnix(head, unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	if _, err := conn.Write(body); err != nil {
		return err
	}
	return hear(conn)
}

// hear wants the other side to say yes.
func hear(conn *net.UnixConn) error {
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != say {
		return giveUp{fmt.Errorf("%w: the standby server refuses", pager.ErrHandover)}
	}
	return nil
}
