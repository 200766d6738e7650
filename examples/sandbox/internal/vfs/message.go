//go:build linux && amd64

package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// MaxRights is how many descriptors one message carries.
const MaxRights = 253

// Looking says whether what is received stays where it is: MSG_PEEK.
type Looking uint8

// What Receive does with what it shows.
const (
	Take Looking = iota
	Look
)

// Message is what Receive has come upon.
type Message struct {
	N      int     // bytes delivered
	Length int     // bytes that it had: of a message that was cut short more than N
	Rights []*Open // that it carries; a reference each is the caller's
	Ends   bool    // a stream's reader is to stop here: what follows came with another call
}

// Send writes of asked bytes those that p, the first of them, has in whole pieces; of a
// messages' socket a message. The first piece carries rights, which are taken over
// unless there is an error. EFAULT comes before EPIPE: that memory is bad is said
// before that nobody is there to read it. EMSGSIZE, EAGAIN.
func (s *Socket) Send(p []byte, asked int, rights []*Open) (int, error) {
	if len(p) < min(asked, s.out.kind.most) {
		return 0, unix.EFAULT
	}
	if s.isOutEnded.Load() {
		return 0, unix.EPIPE
	}
	return s.out.writeCarrying(p, asked, rights)
}

// IsRecords reports whether the socket is one of messages.
func (s *Socket) IsRecords() bool { return s.out.kind.records }

// MaxRecord is how long a message may be.
const MaxRecord = maxRecord

// Receive has a message, or what is there of a stream, delivered: of a stream up to and
// with the first piece that carries something. EAGAIN where nothing is there; a message
// of no length and no error at the end.
func (s *Socket) Receive(p []byte, how Looking, deliver Deliver) (m Message, err error) {
	in := s.in
	in.reading.Lock()
	defer in.reading.Unlock()
	for first := true; first || m.N < len(p); first = false {
		n, length, rights, found := in.look(p[m.N:], how)
		if !found {
			if m.N == 0 && !in.atEnd() {
				_, err = s.read(0, unix.EAGAIN)
			}
			return m, err
		}
		if got, err := deliver(p[m.N : m.N+n]); got < n {
			dropRights(rights)
			if m.N > 0 {
				err = nil
			}
			return m, err
		}
		m.N, m.Length = m.N+n, m.N+length
		if m.Rights = rights; how == Look {
			return m, nil
		}
		m.Rights = in.consume(n)
		if m.Ends = len(m.Rights) > 0 || in.kind.records; m.Ends {
			return m, nil
		}
	}
	return m, nil
}

// look copies what a Receive shows: the first piece, or to who only looks everything. The
// references to what it carries are new.
func (p *pipe) look(b []byte, how Looking) (n, length int, rights []*Open, found bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pieces) == 0 {
		return 0, 0, nil, false
	}
	length = p.pieces[0].n
	if how == Look {
		if !p.kind.records {
			length = len(p.buf) - p.start
		}
		for _, o := range p.pieces[0].rights {
			rights = append(rights, o.Ref())
		}
	}
	return copy(b[:min(len(b), length)], p.buf[p.start:]), length, rights, true
}

func (p *pipe) atEnd() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writers == 0
}

// dropRights lets go of what nobody has taken. No lock of a pipe is held: what is let go
// of may be the end of one.
func dropRights(rights []*Open) {
	for _, o := range rights {
		o.Unref()
	}
}

// inFlight are the pipes that something has been put into which may be an end of
// themselves: nobody would ever close those.
var inFlight flights

type flights struct {
	mu    sync.Mutex
	pipes map[*pipe]struct{} // guarded by mu
}

func (f *flights) add(p *pipe) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pipes == nil {
		f.pipes = make(map[*pipe]struct{})
	}
	f.pipes[p] = struct{}{}
}

func (f *flights) forget(p *pipe) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pipes, p)
}

// DropMessages lets go of all that is under way, once nobody is left to take it.
func DropMessages() {
	inFlight.mu.Lock()
	pipes := inFlight.pipes
	inFlight.pipes = nil
	inFlight.mu.Unlock()
	for p := range pipes {
		p.mu.Lock()
		pieces := append([]piece(nil), p.pieces...)
		for i := range p.pieces {
			p.pieces[i].rights = nil
		}
		p.mu.Unlock()
		for _, d := range pieces {
			dropRights(d.rights)
		}
	}
}
