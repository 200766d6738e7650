//go:build linux && amd64

package vfs

import (
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 64 << 10 // Linux's default capacity

	// pipeBuf is what a write puts in whole or not at all.
	pipeBuf = 4096

	// maxPipes bounds the buffers of a guest that opens pipes without end:
	// together 64 MiB, which is Linux's own bound for one user.
	maxPipes = 1024
)

var (
	openPipes  atomic.Int64
	pipeSerial atomic.Uint64
)

// pipe is the buffer between a reader and a writer end. The slice grows up to
// pipeSize as it is filled: most pipes carry a line or two.
type pipe struct {
	ino uint64 // immutable

	mu      sync.Mutex
	buf     []byte // guarded by mu
	start   int    // of the unread bytes in buf; guarded by mu
	readers int    // guarded by mu: 0 or 1, since dup and fork share the Open
	writers int    // guarded by mu
	filled  uint64 // how often the reader got something to see; guarded by mu
	drained uint64 // how often the writer did; guarded by mu

	queue Queue
}

type (
	pipeReader struct{ *pipe }
	pipeWriter struct{ *pipe }
)

// NewPipe returns the two ends. ENFILE when too many are open.
func NewPipe(flags int) (r, w *Open, err error) {
	if openPipes.Add(1) > maxPipes {
		openPipes.Add(-1)
		return nil, nil, unix.ENFILE
	}
	p := &pipe{ino: pipeSerial.Add(1), readers: 1, writers: 1}
	name := fmt.Sprintf("pipe:[%d]", p.ino)
	r = NewOpen(pipeReader{p}, name, unix.O_RDONLY|flags&unix.O_NONBLOCK)
	w = NewOpen(pipeWriter{p}, name, unix.O_WRONLY|flags&unix.O_NONBLOCK)
	return r, w, nil
}

func (p *pipe) Stat() (unix.Stat_t, error) {
	return unix.Stat_t{Ino: p.ino, Mode: unix.S_IFIFO | 0o600, Nlink: 1, Blksize: 4096}, nil
}

func (p *pipe) Watch(ready chan<- struct{}) (stop func()) { return p.queue.Watch(ready) }

// release drops one end; the last one returns the buffer.
func (p *pipe) release(end *int) {
	p.mu.Lock()
	*end--
	p.filled, p.drained = p.filled+1, p.drained+1
	if p.readers == 0 && p.writers == 0 {
		p.buf = nil
		openPipes.Add(-1)
	}
	p.mu.Unlock()
	p.queue.Wake()
}

func (r pipeReader) Close() error { r.release(&r.readers); return nil }
func (w pipeWriter) Close() error { w.release(&w.writers); return nil }

func (r pipeReader) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }
func (w pipeWriter) ReadAt([]byte, int64) (int, error)  { return 0, unix.EBADF }

func (r pipeReader) ReadAt(p []byte, _ int64) (int, error) {
	r.mu.Lock()
	wasFull := !r.hasRoomLocked()
	n := copy(p, r.buf[r.start:])
	r.start += n
	if wasFull && r.hasRoomLocked() {
		r.drained++
	}
	if r.start == len(r.buf) {
		r.buf, r.start = r.buf[:0], 0
	}
	atEnd := r.writers == 0
	r.mu.Unlock()
	if n > 0 {
		r.queue.Wake()
		return n, nil
	}
	if len(p) > 0 && !atEnd {
		return 0, unix.EAGAIN
	}
	return 0, nil
}

// WriteAt appends what there is room for; up to pipeBuf bytes go in whole or
// not at all. EPIPE without a reader: the signal is the caller's business.
func (w pipeWriter) WriteAt(p []byte, _ int64) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.mu.Lock()
	if w.readers == 0 {
		w.mu.Unlock()
		return 0, unix.EPIPE
	}
	room := pipeSize - (len(w.buf) - w.start)
	if room == 0 || (len(p) <= pipeBuf && room < len(p)) {
		w.mu.Unlock()
		return 0, unix.EAGAIN
	}
	n := min(room, len(p))
	if w.start > 0 && len(w.buf)+n > cap(w.buf) {
		w.buf = w.buf[:copy(w.buf, w.buf[w.start:])]
		w.start = 0
	}
	w.buf = append(w.buf, p[:n]...)
	w.filled++
	w.mu.Unlock()
	w.queue.Wake()
	return n, nil
}

func (r pipeReader) Ready() (ev Events) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.buf) > r.start {
		ev |= unix.POLLIN
	}
	if r.writers == 0 {
		ev |= unix.POLLHUP
	}
	return ev
}

func (w pipeWriter) Ready() (ev Events) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.hasRoomLocked() {
		ev |= unix.POLLOUT
	}
	if w.readers == 0 {
		ev |= unix.POLLERR
	}
	return ev
}

// hasRoomLocked: POLLOUT promises that pipeBuf bytes can be written.
func (p *pipe) hasRoomLocked() bool { return pipeSize-(len(p.buf)-p.start) >= pipeBuf }

// EdgeSource counts writes for the reader, and for the writer each time that a
// full pipe has room again, as Linux does.
func (p *pipe) EdgeSource() (EdgeSource, error) {
	of := func(n *uint64) func() uint64 {
		return func() uint64 {
			p.mu.Lock()
			defer p.mu.Unlock()
			return *n
		}
	}
	return edges{&p.queue, of(&p.filled), of(&p.drained)}, nil
}

// Buffered returns how many bytes wait to be read: FIONREAD.
func (p *pipe) Buffered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.buf) - p.start
}
