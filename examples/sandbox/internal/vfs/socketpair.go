//go:build linux && amd64

package vfs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Socket is one end of a pair of connected sockets, of streams or of messages: two
// pipes, one for each direction. It is all that there is of sockets.
type Socket struct {
	in   pipeReader
	out  pipeWriter
	Type int // SOCK_; immutable

	// ReadTimeout and WriteTimeout are SO_RCVTIMEO and SO_SNDTIMEO, 0 for none; Peer is
	// the process that made the pair.
	ReadTimeout, WriteTimeout atomic.Int64 // ns
	Peer                      int          // immutable

	endOut                sync.Once   // of Close and Shutdown
	isInEnded, isOutEnded atomic.Bool // by Shutdown
}

// NewSocketPair returns the two ends of a pair that a process makes: SOCK_STREAM,
// SOCK_SEQPACKET or SOCK_DGRAM. ENFILE when too many pipes are open.
func NewSocketPair(typ, flags, pid int) (a, b *Open, err error) {
	k := recordKind
	if typ == unix.SOCK_STREAM {
		k = socketKind
	}
	r1, w1, err := newPipe(0, k)
	if err != nil {
		return nil, nil, err
	}
	r2, w2, err := newPipe(0, k)
	if err != nil {
		r1.Unref()
		w1.Unref()
		return nil, nil, err
	}
	open := func(r, w *Open) *Open {
		s := &Socket{in: r.File.(pipeReader), out: w.File.(pipeWriter), Type: typ, Peer: pid}
		return NewOpen(s, "socket:["+r.Path[len("pipe:["):], unix.O_RDWR|flags&unix.O_NONBLOCK)
	}
	return open(r1, w2), open(r2, w1), nil
}

func (s *Socket) ReadAt(p []byte, off int64) (int, error)  { return s.read(s.in.ReadAt(p, off)) }
func (s *Socket) WriteAt(p []byte, off int64) (int, error) { return s.WritePieces(p, len(p)) }
func (s *Socket) Buffered() int                            { return s.in.Buffered() }

func (s *Socket) readTo(p []byte, deliver Deliver) (int, error) {
	return s.read(s.in.readTo(p, deliver))
}

// read is what a read of what is there comes to, after a Shutdown.
func (s *Socket) read(n int, err error) (int, error) {
	if err == unix.EAGAIN && s.isInEnded.Load() {
		err = nil
	}
	return n, err
}

func (s *Socket) Offer(total uint64, most int) int { return s.out.Offer(total, most) }

func (s *Socket) WritePieces(p []byte, asked int) (int, error) { return s.Send(p, asked, nil) }

func (s *Socket) Stat() (unix.Stat_t, error) {
	return unix.Stat_t{Ino: s.in.ino, Mode: unix.S_IFSOCK | 0o777, Nlink: 1, Blksize: 4096}, nil
}

// Close tells the other end, and lets both pipes go.
func (s *Socket) Close() error {
	_ = s.in.Close()
	s.endOut.Do(func() { _ = s.out.Close() })
	return nil
}

// Shutdown is shutdown(2): where nothing more is written, the other end reads the end of
// the file behind what is there; where nothing more is read, this one does, and the other
// end finds nobody to write to. EINVAL, ENOTSOCK.
func (o *Open) Shutdown(how int) error {
	s, ok := o.File.(*Socket)
	switch {
	case !ok:
		return unix.ENOTSOCK
	case how < unix.SHUT_RD || how > unix.SHUT_RDWR:
		return unix.EINVAL
	}
	if how != unix.SHUT_WR {
		s.isInEnded.Store(true)
		s.in.refuse()
	}
	if how != unix.SHUT_RD {
		s.isOutEnded.Store(true)
		s.endOut.Do(func() { _ = s.out.Close() })
	}
	s.in.queue.Wake() // whoever waits at this end
	return nil
}

// Ready is POLLHUP only when both ends write no more: what the other one has written
// can be read still, and then the end of the file.
func (s *Socket) Ready() Events {
	in, out := s.in.Ready(), s.out.Ready()
	ev := in&unix.POLLIN | out&unix.POLLOUT
	if in&unix.POLLHUP != 0 || s.isInEnded.Load() {
		ev |= unix.POLLIN | unix.POLLRDHUP
		if out&unix.POLLERR != 0 || s.isOutEnded.Load() {
			ev |= unix.POLLOUT | unix.POLLHUP
		}
	}
	return ev
}

func (s *Socket) Watch(ready chan<- struct{}) (stop func()) {
	stopIn, stopOut := s.in.Watch(ready), s.out.Watch(ready)
	return func() {
		stopIn()
		stopOut()
	}
}

func (s *Socket) EdgeSource() (EdgeSource, error) {
	in, _ := s.in.EdgeSource()
	out, _ := s.out.EdgeSource()
	return socketEdges{in, out}, nil
}

type socketEdges struct{ in, out EdgeSource }

// Edges: the end of the other side shows on the way in.
func (e socketEdges) Edges(wanted Events) uint64 {
	n := uint64(0)
	out := wanted & (unix.POLLOUT | pollWRNorm)
	if out != 0 {
		n += e.out.Edges(out)
	}
	if out == 0 || wanted&(unix.POLLIN|pollRDNorm) != 0 {
		n += e.in.Edges(unix.POLLIN)
	}
	return n
}

func (e socketEdges) Watch(ready chan<- struct{}) (stop func()) {
	stopIn, stopOut := e.in.Watch(ready), e.out.Watch(ready)
	return func() {
		stopIn()
		stopOut()
	}
}

func (e socketEdges) Close() {}
