//go:build linux

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/handshake"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd/pager"
)

// A session is one client that is served, until its process has ended or
// somebody else serves it.
type session struct {
	s    *Server
	name string
	log  *slog.Logger
	peer *handshake.Peer
	// conn is the client's socket, open for as long as it is served: its hanging
	// up tells the client that nobody does any more. Nil if there is none.
	conn *net.UnixConn

	guest *pager.Guest
	kill  *pager.Peer // the process, as the pager has it

	// takeover is where the pager leaves the guest under the policy Standby, once.
	takeover chan *pager.Takeover
}

// ErrCannotKill: the policy is to kill clients that cannot be served, and this
// one may not be.
var ErrCannotKill = errors.New("the client could not be killed")

// admit shakes hands with a client and begins to serve it. After an error
// nothing of it is kept but conn.
func (s *Server) admit(conn *net.UnixConn) (*session, error) {
	if err := conn.SetDeadline(time.Now().Add(s.o.HandshakeTimeout)); err != nil {
		return nil, fmt.Errorf("%w: %w", handshake.ErrPeer, err)
	}
	peer, err := handshake.PeerOf(conn)
	if err != nil {
		return nil, err
	}
	c, err := s.serve(conn, peer)
	if err != nil {
		peer.Close()
		return nil, fmt.Errorf("process %d: %w", peer.PID, err)
	}
	return c, nil
}

func (s *Server) serve(conn *net.UnixConn, peer *handshake.Peer) (*session, error) {
	// A peer that cannot be killed could only be left hanging.
	if err := peer.MayBeKilled(); err != nil && s.o.Policy != pager.Park {
		return nil, fmt.Errorf("%w: %w", handshake.ErrPeer, errors.Join(ErrCannotKill, err))
	}
	request, err := handshake.Receive(conn, peer)
	if err != nil {
		return nil, err
	}
	defer request.FD.Close() // the pager has its own
	regions, err := s.regions(request.Mappings)
	if err != nil {
		return nil, err
	}
	if err := peer.Owns(request.Mappings); err != nil {
		return nil, err
	}
	c, o, err := s.newSession(peer, conn)
	if err != nil {
		return nil, err
	}
	o.FD, o.Regions, o.Fill.Replay = request.FD, regions, s.o.WorkingSet
	if c.guest, err = s.pager.Add(o); err != nil {
		c.kill.Close()
		return nil, err
	}
	_ = conn.SetDeadline(time.Time{})
	size := uint64(0)
	for _, r := range regions {
		size += r.Size
	}
	c.log.Info("serving", "uid", peer.UID, "regions", len(regions), "bytes", size,
		"features", request.FD.Features().String(), "other_descriptors", request.Extra)
	return c, nil
}

// regions makes regions of what the client says. The pager checks them; here is
// what bounds their sum, and what peer.Owns relies on.
func (s *Server) regions(in []handshake.Mapping) ([]pager.Region, error) {
	out := make([]pager.Region, len(in))
	left := s.o.Source.Size()
	for i, m := range in {
		switch {
		case m.Size == 0 || m.Start+m.Size < m.Start:
			return nil, fmt.Errorf("%w: region %d: empty, or its addresses overflow", pager.ErrInvalid, i)
		case m.Size > left:
			return nil, fmt.Errorf("%w: regions of more bytes than the memory file has, %d", pager.ErrBeyondSource, s.o.Source.Size())
		}
		left -= m.Size
		out[i] = pager.Region{Start: addr.HVA(m.Start), Size: m.Size, Offset: m.Offset, PageSize: m.PageSize}
	}
	return out, nil
}

// newSession makes a session without a guest, and the options for one.
func (s *Server) newSession(peer *handshake.Peer, conn *net.UnixConn) (*session, pager.GuestOptions, error) {
	name := fmt.Sprintf("client-%d", s.nextNumber())
	c := &session{s: s, name: name, log: logger(s.o.Log, name, peer), peer: peer, conn: conn, takeover: make(chan *pager.Takeover, 1)}
	var err error
	if c.kill, err = peer.Pager(); err != nil {
		return nil, pager.GuestOptions{}, fmt.Errorf("%w: %w", handshake.ErrPeer, err)
	}
	o := pager.GuestOptions{
		Name: name, Source: s.o.Source, Image: s.o.Image, Peer: c.kill,
		OnFailure: s.o.Policy, Observe: s.o.Metrics.Observe, OnProgress: c.progress,
		OnFork: c.forked,
	}
	o.Fill.Background = s.o.Background
	if s.o.Record != "" {
		o.Recording = pager.Record
	}
	if s.o.Policy == pager.Standby {
		// A child has no process of its own that could be handed over with it.
		o.Standby = func(t *pager.Takeover, _ error) { c.takeover <- t }
		o.Fork = pager.ForkRefuse
	}
	return c, o, nil
}

func (c *session) progress(p pager.Progress) {
	switch {
	case p.Err != nil:
		c.log.Warn("filling ended early", "phase", p.Phase, "pages", p.Done, "of", p.Total, "err", p.Err)
	case p.Phase == "complete":
		return // run says so
	}
	if c.s.o.Background == pager.FillAll {
		c.s.o.Progress(c.name, p.Done*addr.PageSize, p.Total*addr.PageSize)
	}
}

// forked serves a child of the client's for as long as the pager does. Its
// failures are the client's.
func (c *session) forked(child *pager.Guest) {
	c.log.Info("serving a forked child", "child", child.Name())
	c.s.o.Metrics.Add(child)
	c.s.sessions.Go(func() {
		<-child.Done()
		err := child.Err()
		c.s.o.Metrics.Ended(child, endOf(err))
		// There is no handle on the child's process. A descriptor that it may
		// still need stays open for as long as this process lives.
		if err == nil || errors.Is(err, pager.ErrPeerGone) || errors.Is(err, pager.ErrClosed) {
			child.Close()
		}
	})
}

func endOf(err error) string {
	switch {
	case err == nil:
		return "complete"
	case errors.Is(err, pager.ErrPeerGone):
		return "gone"
	}
	return reason(err)
}

// run waits for the end of the guest, and deals with it.
func (c *session) run() {
	s := c.s
	<-c.guest.Done()
	s.o.Ended(c.name)
	if err := s.record.add(c.guest.WorkingSet(), s.o.WorkingSet); err != nil {
		c.log.Error("the working set could not be written", "err", err)
	}
	err := c.guest.Err()
	if err == nil {
		// Every page is there. The client is watched until its end, unless the
		// server has better to do.
		c.report("complete", nil)
		select {
		case <-c.peer.Gone():
		case <-s.stopping:
		}
	} else {
		end := endOf(err)
		if err = c.settle(err); err == nil && end != "gone" {
			end = "handed_over"
		}
		c.report(end, err)
	}
	c.close()
	if s.o.Lifetime == FirstClient {
		select {
		case s.first <- err:
		default: // not the first
		}
	}
}

// report says how the guest has ended.
func (c *session) report(end string, err error) {
	c.s.o.Metrics.Ended(c.guest, end) // first: who reads the log finds it counted
	st := c.guest.Stats()
	c.log.Info("ended", "outcome", end, "err", err, "faults", st.Missing.Load(), "copied", st.Copied.Load(),
		"ahead", st.Prefetch.Load(), "zeroed", st.Zeroed.Load(), "removed", st.Removed.Load(), "failed", st.Failed.Load())
}

// settle stays until nobody can miss the descriptor any more. It returns nil if
// the client has ended by itself, or is served by somebody else.
func (c *session) settle(err error) error {
	switch {
	case errors.Is(err, pager.ErrPeerGone):
		return nil
	case c.s.o.Policy == pager.Standby:
		return c.standby(err)
	case c.s.o.Policy == pager.Park:
		return c.park(err)
	}
	// The pager has killed the client; if that has failed, it keeps the
	// descriptor, and this waits for the process to end.
	c.waitForEnd()
	return err
}

// waitForEnd waits until the process has ended, saying so if that takes long.
func (c *session) waitForEnd() {
	select {
	case <-c.peer.Gone():
		return
	case <-time.After(time.Second):
	}
	c.log.Error("the client does not end, and is left waiting for its pages", "err", ErrCannotKill)
	select {
	case <-c.peer.Gone():
	case <-c.s.force.Done():
	}
}

// park keeps the guest, which nobody serves, until its process has ended. Once
// this server stops, whoever takes over may have it.
func (c *session) park(why error) error {
	c.log.Warn("parked: the client waits for its pages", "err", why)
	t, err := c.guest.Detach()
	if err != nil {
		return errors.Join(why, err)
	}
	defer t.Close()
	select {
	case <-c.peer.Gone():
		return why
	case <-c.s.stopping:
	}
	ctx, cancel := context.WithCancel(c.s.force)
	defer cancel()
	go func() {
		defer cancel()
		select {
		case <-c.peer.Gone():
		case <-ctx.Done():
		}
	}()
	if c.s.o.Standby != "" && c.handOver(ctx, t) == nil {
		return nil
	}
	<-ctx.Done()
	c.killNow() // also who has ended: it is all the same
	return why
}

// standby hands the guest over; if nobody takes it, its process is killed.
func (c *session) standby(why error) error {
	c.log.Warn("handing over", "err", why)
	t := <-c.takeover
	defer t.Close() // which does nothing once it has been handed over
	ctx, cancel := c.s.patience()
	defer cancel()
	err := c.handOver(ctx, t)
	if err == nil {
		return nil
	}
	c.log.Error("nobody takes the client over: it is killed", "err", err)
	c.killNow()
	return errors.Join(why, err)
}

func (c *session) killNow() {
	if err := c.kill.Kill(); err != nil {
		c.log.Error("kill", "err", errors.Join(ErrCannotKill, err))
		c.waitForEnd()
	}
}

// close gives everything back.
func (c *session) close() {
	c.guest.Close()
	c.kill.Close()
	c.peer.Close()
	if c.conn != nil {
		c.conn.Close()
	}
}
