//go:build linux

package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/guestmm/guestmm/examples/uffdhandler/internal/handshake"
	"github.com/guestmm/guestmm/uffd/pager"
)

// background is for what no client and no signal should end.
var background = context.Background()

const (
	// maxHandshakes bounds the clients that have connected and said nothing yet.
	// More wait in the socket's queue.
	maxHandshakes = 64
	// bindAgain is the pace at which a path is tried that another server uses,
	// which this one is to take over from.
	bindAgain = 200 * time.Millisecond
)

// A Server serves clients and guests handed over. It is made by New and used
// by one Run.
type Server struct {
	o      Options // immutable
	pager  *pager.Server
	record recorder

	takeovers *socket         // nil if none; immutable
	first     chan error      // how the first client has ended
	stopping  chan struct{}   // closed when the server begins to stop
	force     context.Context // immutable once Run has begun
	lastCall  context.Context // how long a standby server is waited for at the end; written before stopping is closed

	connections sync.WaitGroup // goroutines that accept or shake hands
	sessions    sync.WaitGroup

	mu        sync.Mutex
	clients   *socket               // nil while there is none; guarded by mu
	stopped   bool                  // guarded by mu
	open      map[net.Conn]struct{} // handshakes under way; guarded by mu
	nSessions int                   // so far; guarded by mu
}

// New makes a server and listens, so that clients may connect from its return
// on. Where Listen is in use and guests are to be taken over, it is tried again
// until it is free, or handed over too.
//
// Errors: ErrInUse, ErrNotSocket, pager.ErrInvalid, pager.ErrWrongImage, those
// of bind(2).
func New(o Options) (*Server, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	s := &Server{
		o: o, record: recorder{path: o.Record},
		first: make(chan error, 1), stopping: make(chan struct{}),
		open: make(map[net.Conn]struct{}),
	}
	if o.TakeOver != "" {
		var err error
		if s.takeovers, err = listen(o.TakeOver); err != nil {
			return nil, err
		}
		o.Log.Info("waiting for guests to take over", "socket", o.TakeOver)
	}
	if o.Listen != "" {
		err := s.listenForClients()
		if err != nil && !(errors.Is(err, ErrInUse) && s.takeovers != nil) {
			if s.takeovers != nil {
				s.takeovers.remove()
			}
			return nil, err
		}
		if err != nil {
			o.Log.Info("waiting for the socket to be free", "socket", o.Listen)
		}
	}
	s.pager = pager.NewServer(pager.Options{})
	return s, nil
}

func (s *Server) listenForClients() error {
	l, err := listen(s.o.Listen)
	if err != nil {
		return err
	}
	if !s.adopt(l) {
		l.remove()
	}
	return nil
}

// adopt makes l the socket for clients, if there is none and there shall be.
func (s *Server) adopt(l *socket) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || s.clients != nil {
		return false
	}
	s.clients = l
	s.o.Log.Info("listening", "socket", l.path)
	return true
}

// Run serves until ctx is done, or the first client has gone if that is what
// was asked for, and then does with the guests what the policy says. Under Park
// that lasts until the last of them has ended or was taken over; once force is
// done they are killed instead.
//
// With FirstClient it returns how the first client has ended: nil if it was
// served until its end.
func (s *Server) Run(ctx, force context.Context) (err error) {
	s.force = force
	if s.takeovers != nil {
		s.connections.Go(func() { s.accept(s.takeovers, s.takeConnection) })
	}
	if s.o.Listen != "" {
		s.connections.Go(s.acceptClients)
	}
	retry := time.NewTicker(s.o.RetryEvery)
	defer retry.Stop()
	for running := true; running; {
		select {
		case <-retry.C:
			s.retryParked()
		case err = <-s.first:
			running = s.o.Lifetime != FirstClient
		case <-ctx.Done():
			running, err = false, nil
		}
	}
	s.stop()
	return err
}

func (s *Server) retryParked() {
	for _, g := range s.pager.Guests() {
		if g.Stats().Parked.Load() > 0 {
			g.Retry()
		}
	}
}

// acceptClients waits until there is a socket for clients, and accepts there.
func (s *Server) acceptClients() {
	for {
		s.mu.Lock()
		l := s.clients
		s.mu.Unlock()
		if l != nil {
			s.accept(l, s.clientConnection)
			return
		}
		select {
		case <-s.stopping:
			return
		case <-time.After(bindAgain):
		}
		if err := s.listenForClients(); err != nil && !errors.Is(err, ErrInUse) {
			s.o.Log.Error("cannot listen", "err", err)
		}
	}
}

// begin notes that a handshake is under way, so that stop can end it.
func (s *Server) begin(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped && !s.finishes() {
		return false
	}
	s.open[conn] = struct{}{}
	return true
}

// finishes reports whether who has connected by the time of the end is served
// all the same, by whoever comes next.
func (s *Server) finishes() bool { return s.o.Policy == pager.Standby }

func (s *Server) end(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, conn)
}

// clientConnection deals with one who has connected.
func (s *Server) clientConnection(conn *net.UnixConn) {
	defer s.end(conn)
	session, err := s.admit(conn)
	if err != nil {
		s.o.Metrics.Client(reason(err))
		s.o.Log.Warn("client refused", "reason", reason(err), "err", err)
		conn.Close()
		return
	}
	s.o.Metrics.Client("served")
	s.start(session)
}

func (s *Server) start(session *session) {
	s.o.Metrics.Add(session.guest)
	s.sessions.Go(session.run)
}

// stop ends everything: no more clients, no more handshakes, and each guest as
// the policy says.
func (s *Server) stop() {
	s.mu.Lock()
	s.stopped = true
	l := s.clients
	for conn := range s.open {
		if s.finishes() {
			break
		}
		_ = conn.SetDeadline(time.Now()) // its goroutine closes it
	}
	s.mu.Unlock()
	var cancel context.CancelFunc
	s.lastCall, cancel = context.WithTimeout(s.force, s.o.StandbyWait)
	defer cancel()
	close(s.stopping)
	if s.takeovers != nil {
		s.takeovers.remove()
	}
	if l != nil && !(s.finishes() && s.handListener(l)) {
		l.remove()
	}
	s.connections.Wait()
	s.o.Log.Info("stopping", "guests", len(s.pager.Guests()), "policy", s.o.Policy.String())
	s.pager.Close()
	s.sessions.Wait()
	if err := s.record.flush(); err != nil {
		s.o.Log.Error("the working set could not be written", "err", err)
	}
}

// patience is how long a standby server is waited for. At the end all guests
// share one wait.
func (s *Server) patience() (context.Context, context.CancelFunc) {
	select {
	case <-s.stopping:
		return context.WithCancel(s.lastCall)
	default:
		return context.WithTimeout(s.force, s.o.StandbyWait)
	}
}

// reason is a short name of an error, for counting.
func reason(err error) string {
	if name := handshake.Name(err); name != "" {
		return name
	}
	for _, n := range pagerErrors {
		if errors.Is(err, n.err) {
			return n.name
		}
	}
	return "failed"
}

// pagerErrors are looked through in order: an error may be several of them.
var pagerErrors = []struct {
	err  error
	name string
}{
	{pager.ErrServerClosed, "server_closed"},
	{pager.ErrOverlap, "overlapping_regions"},
	{pager.ErrBeyondSource, "beyond_file"},
	{pager.ErrWrongImage, "wrong_image"},
	{pager.ErrServed, "already_served"},
	{pager.ErrInvalid, "bad_regions"},
	{pager.ErrTruncated, "truncated_file"},
	{pager.ErrSource, "unreadable_page"},
	{pager.ErrOutside, "fault_outside"},
	{pager.ErrStrayEvent, "stray_event"},
	{pager.ErrUnknownEvent, "unknown_event"},
	{pager.ErrForked, "forked"},
	{pager.ErrLivelock, "no_progress"},
	{pager.ErrPanicked, "panic"},
	{pager.ErrKernel, "kernel"},
	{pager.ErrHandover, "handover_failed"},
	{pager.ErrPeerGone, "gone"},
	{pager.ErrClosed, "closed"},
}

func (s *Server) nextNumber() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nSessions++
	return s.nSessions
}

func logger(l *slog.Logger, name string, peer *handshake.Peer) *slog.Logger {
	return l.With("guest", name, "pid", peer.PID)
}
