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

// takeConnection deals with a server that hands something over.
func (s *Server) takeConnection(conn *net.UnixConn) {
	defer s.end(conn)
	defer conn.Close()
	session, err := s.take(conn)
	switch {
	case err != nil:
		s.o.Metrics.Handover("in", "failed")
		s.o.Log.Warn("nothing taken over", "reason", reason(err), "err", err)
	case session != nil:
		s.o.Metrics.Handover("in", "done")
		session.log.Info("taken over", "missing", session.guest.Missing())
		s.start(session)
	}
}

func (s *Server) take(conn *net.UnixConn) (*session, error) {
	if err := conn.SetDeadline(time.Now().Add(handTimeout)); err != nil {
		return nil, err
	}
	if err := trusted(conn); err != nil {
		return nil, err
	}
	p, files, err := receiveParcel(conn)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	switch {
	case p.Kind == "socket" && len(files) == 1:
		return nil, s.takeSocket(conn, p, files[0])
	case p.Kind == "guest" && (len(files) == 1 || len(files) == 2):
		return s.takeGuest(conn, p, files)
	}
	return nil, tell(conn, refuse, fmt.Errorf("%w: a %q with %d descriptors", pager.ErrHandover, p.Kind, len(files)))
}

// tell answers, and returns err, or what became of answering.
func tell(conn *net.UnixConn, answer byte, err error) error {
	_, writeErr := conn.Write([]byte{answer})
	if err != nil {
		return err
	}
	return writeErr
}

// takeSocket goes on listening where the other server did, if this one is to
// listen there and does not yet.
func (s *Server) takeSocket(conn *net.UnixConn, p parcel, f *os.File) error {
	if p.Path != s.o.Listen {
		return tell(conn, refuse, fmt.Errorf("%w: the socket is %q, and this server's %q", pager.ErrHandover, p.Path, s.o.Listen))
	}
	l, err := net.FileListener(f)
	if err != nil {
		return tell(conn, refuse, fmt.Errorf("%w: %w", pager.ErrHandover, err))
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return tell(conn, refuse, fmt.Errorf("%w: a socket of another kind", pager.ErrHandover))
	}
	sock, err := own(unixListener, p.Path)
	if err != nil {
		return tell(conn, refuse, fmt.Errorf("%w: %w", pager.ErrHandover, err))
	}
	if !s.adopt(sock) {
		sock.leave()
		return tell(conn, refuse, fmt.Errorf("%w: this server listens there already", pager.ErrHandover))
	}
	return tell(conn, say, nil)
}

func (s *Server) takeGuest(conn *net.UnixConn, p parcel, files []*os.File) (*session, error) {
	if want := hex.EncodeToString(s.o.Image[:]); p.Image != want {
		return nil, tell(conn, refuse, fmt.Errorf("%w: it is of %s", pager.ErrWrongImage, p.Image))
	}
	c, o, err := s.adoptSession(p, files)
	if err != nil {
		return nil, tell(conn, refuse, err)
	}
	if err := tell(conn, say, nil); err != nil {
		c.release()
		return nil, err
	}
	t, err := pager.Receive(conn)
	if err != nil {
		c.release()
		return nil, err
	}
	// From here on the guest is this server's.
	if c.guest, err = s.takeOver(t, o); err != nil {
		c.killNow()
		t.Close()
		c.release()
		return nil, tell(conn, refuse, err)
	}
	if err := tell(conn, say, nil); err != nil {
		// The other side takes it for lost, and kills the process, which is seen.
		c.log.Warn("the takeover could not be confirmed", "err", err)
	}
	return c, nil
}

// takeOver is the pager's, tried again for a while where there is no room for a
// descriptor: nobody else has the guest any more.
func (s *Server) takeOver(t *pager.Takeover, o pager.GuestOptions) (*pager.Guest, error) {
	ctx, cancel := context.WithTimeout(s.force, min(s.o.StandbyWait, handTimeout/2)) // the giver waits for no longer
	defer cancel()
	for {
		g, err := s.pager.TakeOver(t, o)
		if handshake.Shortage(err) == "" {
			return g, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(handAgain):
		}
	}
}

// adoptSession makes a session of what came with a guest.
func (s *Server) adoptSession(p parcel, files []*os.File) (*session, pager.GuestOptions, error) {
	pidfd, err := unix.FcntlInt(files[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, pager.GuestOptions{}, fmt.Errorf("%w: %w", pager.ErrHandover, err)
	}
	peer, err := handshake.PeerFromFD(pidfd, p.PID, p.UID)
	if err != nil {
		return nil, pager.GuestOptions{}, err
	}
	if err := peer.MayBeKilled(); err != nil { // also: it is no pidfd
		peer.Close()
		return nil, pager.GuestOptions{}, fmt.Errorf("%w: %w", pager.ErrHandover, errors.Join(ErrCannotKill, err))
	}
	var client *net.UnixConn
	if len(files) == 2 {
		conn, err := net.FileConn(files[1])
		if err == nil {
			var ok bool
			if client, ok = conn.(*net.UnixConn); !ok {
				conn.Close()
			}
		}
	}
	c, o, err := s.newSession(peer, client)
	if err != nil {
		peer.Close()
		if client != nil {
			client.Close()
		}
		return nil, o, err
	}
	o.Fill.Replay = s.o.WorkingSet
	return c, o, nil
}

// release gives back a session that got no guest.
func (c *session) release() {
	c.kill.Close()
	c.peer.Close()
	if c.conn != nil {
		c.conn.Close()
	}
}

// receiveParcel reads what is to come, and the descriptors.
func receiveParcel(conn *net.UnixConn) (p parcel, files []*os.File, err error) {
	head := make([]byte, len(parcelMagic)+4)
	oob := make([]byte, unix.CmsgSpace(4*handshake.MaxDescriptors))
	n, oobn, flags, _, err := conn.ReadMsgUnix(head, oob)
	for _, fd := range handshake.Rights(oob[:max(oobn, 0)]) {
		files = append(files, os.NewFile(uintptr(fd), "handed over"))
	}
	bad := func(err error) (parcel, []*os.File, error) {
		return parcel{}, files, fmt.Errorf("%w: %w", pager.ErrHandover, err)
	}
	if err != nil {
		return bad(err)
	}
	if _, err := io.ReadFull(conn, head[n:]); err != nil {
		return bad(err)
	}
	length := binary.LittleEndian.Uint32(head[len(parcelMagic):])
	if string(head[:len(parcelMagic)]) != parcelMagic || length > maxParcel || flags&unix.MSG_CTRUNC != 0 {
		return bad(fmt.Errorf("it begins with %q", head))
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(conn, body); err != nil {
		return bad(err)
	}
	if err := json.Unmarshal(body, &p); err != nil {
		return bad(err)
	}
	return p, files, nil
}
