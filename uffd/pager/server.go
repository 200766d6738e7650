package pager

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
)

// A Server serves the page faults of any number of guests by goroutines that
// they share. It is safe for concurrent use.
type Server struct {
	o Options

	mu   sync.Mutex
	more sync.Cond // something to do, or a worker too many
	// Guarded by mu:
	guests  map[*Guest]struct{}
	ready   ring[*Guest] // those with faults waiting, each once
	fillers ring[*Guest] // those with something to fill, each once
	shared  int          // workers in use beyond each guest's own
	filling int          // of those, who fill
	surplus int          // workers that shall end
	closed  bool

	workers  sync.WaitGroup
	spinning atomic.Int32 // readers that spin
	maxSpin  int32        // immutable

	// hook is called at points where tests stop or kill a goroutine. Nil, or
	// set before the first guest is added.
	hook func(*Guest, point)
}

// A point is a place in the code where a server may die.
type point uint8

const (
	pointTaken     point = iota // events read, not marked; gate held
	pointMarked                 // marked, faults not served
	pointClaimed                // a page was claimed
	pointRead                   // its bytes were read
	pointInstall                // about to install; gate held
	pointInstalled              // installed, not recorded; gate held
	pointSettled                // recorded
	nPoints
)

// NewServer makes a server without guests.
func NewServer(o Options) *Server {
	o.setDefaults()
	s := &Server{o: o, guests: make(map[*Guest]struct{}), maxSpin: int32(runtime.GOMAXPROCS(0) - 1)}
	s.more.L = &s.mu
	for range o.Workers {
		s.startWorker()
	}
	return s
}

// Add begins to serve a guest. The descriptor is duplicated first of all, so
// that from here on it cannot be lost with anything else.
//
// Errors: ErrInvalid, ErrOverlap, ErrBeyondSource, ErrWrongImage, ErrServed (found
// out from Linux 5.12 on), ErrClosed, ErrNotSupported, EMFILE. After an error nothing
// is served and nothing kept.
func (s *Server) Add(o GuestOptions) (*Guest, error) {
	if o.FD == nil {
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: ErrInvalid}
	}
	if o.FD.UserModeOnly() {
		return nil, &Error{Op: "add guest", Guest: o.Name,
			Err: fmt.Errorf("%w: a userfaultfd of user mode alone hears of no vCPU, and of no system call", ErrInvalid)}
	}
	held, err := o.FD.Dup()
	if err != nil {
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
	}
	g, err := s.add(held, hearsRemovals(held), o)
	if err != nil {
		held.Close()
		return nil, err
	}
	return g, nil
}

// add serves k, which it owns if it succeeds.
func (s *Server) add(k kernel, removals bool, o GuestOptions) (*Guest, error) {
	o.setDefaults()
	if err := o.check(); err != nil {
		return nil, err
	}
	regions, err := checkRegions(o.Regions, o.Source.Size())
	if err != nil {
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
	}
	l := newLedger(o.Name, k, regions)
	l.removals = removals
	if o.Ledger != nil {
		if err := l.share(o.Ledger, o.Image); err != nil {
			return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
		}
	}
	return s.serve(l, o)
}

// serve starts a guest on a ledger that nobody serves.
func (s *Server) serve(l *ledger, o GuestOptions) (*Guest, error) {
	g, err := newGuest(s, l, o)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	if err := s.refuses(g); err != nil {
		s.mu.Unlock()
		g.abandon()
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
	}
	s.guests[g] = struct{}{}
	s.startWorker()
	s.mu.Unlock()
	go g.run()
	if !o.fillLater {
		g.startFill()
	}
	return g, nil
}

// refuses says why g cannot be added.
//
// Preconditions:
//   - s.mu is held.
func (s *Server) refuses(g *Guest) error {
	if s.closed {
		return ErrClosed
	}
	for other := range s.guests {
		if other.w.id == g.w.id && g.w.id != (fileID{}) {
			return fmt.Errorf("%w: by guest %s", ErrServed, other.o.Name)
		}
	}
	return nil
}

// A fileID tells userfaultfds apart, whatever number a descriptor has: device and
// inode. It is zero where they share one.
type fileID struct{ dev, ino uint64 }

// leave forgets a guest and ends its worker. Workers that are busy with it may
// be held up by its source for long: they are replaced, and end when they are
// done.
func (s *Server) leave(g *Guest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.guests[g]; !ok {
		return
	}
	delete(s.guests, g)
	g.left = true
	g.queue = ring[job]{}
	s.shared -= max(0, g.inflight-1) + g.filling
	s.filling -= g.filling
	if !s.closed {
		for range g.inflight + g.filling {
			s.startWorker()
		}
	}
	s.surplus++
	s.more.Broadcast()
}

// Guests returns those that are being served.
func (s *Server) Guests() []*Guest {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Guest, 0, len(s.guests))
	for g := range s.guests {
		out = append(out, g)
	}
	return out
}

// Close ends the server. Each guest's policy is applied with ErrServerClosed:
// see Policy. It returns once all that has been done and the workers have
// ended; a source that does not heed its context holds it up. It may be called
// again, but not from a function of a guest's owner.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	for _, g := range s.Guests() {
		g.end(&Error{Op: "serve", Guest: g.o.Name, Err: ErrServerClosed})
		<-g.told
	}
	s.mu.Lock()
	if s.surplus < maxWorkers {
		s.surplus = maxWorkers
	}
	s.more.Broadcast()
	s.mu.Unlock()
	s.workers.Wait()
	return nil
}

// maxWorkers is more than there can be.
const maxWorkers = 1 << 30

func isAny(err error, targets ...error) bool {
	for _, t := range targets {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}
