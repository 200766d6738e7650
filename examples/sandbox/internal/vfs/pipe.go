//go:build linux && amd64

package vfs

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	pipeSize = 64 << 10 // Linux's default capacity

	// PipeSize is how many bytes wait in any pipe.
	PipeSize = pipeSize

	// pipeBuf is what a write puts in whole or not at all: a page.
	pipeBuf   = 4096
	pipePages = pipeSize / pipeBuf

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
//
// What waits in it is divided as the kernel's is, into pages of pipeBuf bytes, of which
// there may be pipePages: a write fills the last one up only if what it has beside
// whole pages fits there. One that cannot be read from, or written to, the guest's
// memory as a whole stays, or does not come about.
type pipe struct {
	ino  uint64 // immutable
	kind *kind  // immutable

	// reading is held while what is first is delivered, so that it is so once.
	reading sync.Mutex

	mu      sync.Mutex
	buf     []byte  // guarded by mu
	start   int     // of the unread bytes in buf; guarded by mu
	pieces  []piece // that the unread bytes are made of; guarded by mu
	readers int     // guarded by mu; of a pipe without a name 0 or 1, since dup and fork share the Open
	writers int     // guarded by mu
	refuses bool    // the reader wants no more: shutdown; guarded by mu
	filled  uint64  // how often the reader got something to see; guarded by mu
	drained uint64  // how often the writer did; guarded by mu

	opened [2]uint64 // of one with a name, how often for reading and for writing; guarded by mu

	queue Queue
}

// piece is n bytes, the last of which is before end in its page.
type piece struct {
	n, end int
	rights []*Open // descriptions that a message carries; a reference each
}

// kind is how pieces are made: of pipes, or of what a socket carries.
type kind struct {
	most    int  // bytes in one
	pieces  int  // that may wait
	size    int  // bytes that may wait
	merges  bool // the last one is filled up
	records bool // each is a message: read whole, or cut short
}

var (
	pipeKind   = &kind{most: pipeBuf, pieces: pipePages, size: pipeSize, merges: true}
	socketKind = &kind{most: 48832, pieces: 256, size: pipeSize} // a buffer of the kernel's network code each
	recordKind = &kind{most: maxRecord, pieces: 278, size: 2 * maxRecord, records: true}
)

// maxRecord is how long a message may be: Linux's default buffer less what it costs.
const maxRecord = 212992 - 32

type (
	pipeReader struct{ *pipe }
	pipeWriter struct{ *pipe }
)

// NewPipe returns the two ends. ENFILE when too many are open.
func NewPipe(flags int) (r, w *Open, err error) { return newPipe(flags, pipeKind) }

func newPipe(flags int, k *kind) (r, w *Open, err error) {
	if openPipes.Add(1) > maxPipes {
		openPipes.Add(-1)
		return nil, nil, unix.ENFILE
	}
	p := &pipe{ino: pipeSerial.Add(1), kind: k, readers: 1, writers: 1}
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
	var dropped []piece
	if p.readers == 0 {
		dropped = slices.Clone(p.pieces) // nobody will take what they carry
		for i := range p.pieces {
			p.pieces[i].rights = nil
		}
	}
	if p.readers == 0 && p.writers == 0 {
		p.buf, p.pieces = nil, nil
		openPipes.Add(-1)
		inFlight.forget(p)
	}
	p.mu.Unlock()
	for _, d := range dropped {
		dropRights(d.rights)
	}
	p.queue.Wake()
}

func (r pipeReader) Close() error { r.release(&r.readers); return nil }
func (w pipeWriter) Close() error { w.release(&w.writers); return nil }

func (r pipeReader) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }
func (w pipeWriter) ReadAt([]byte, int64) (int, error)  { return 0, unix.EBADF }

func (r pipeReader) ReadAt(p []byte, _ int64) (int, error) {
	return r.readTo(p, func(p []byte) (int, error) { return len(p), nil })
}

func (r pipeReader) readTo(p []byte, deliver Deliver) (done int, err error) {
	r.reading.Lock()
	defer r.reading.Unlock()
	for done < len(p) {
		n, found, atEnd := r.peek(p[done:])
		if !found {
			if done == 0 && !atEnd {
				err = unix.EAGAIN
			}
			return done, err
		}
		if got, err := deliver(p[done : done+n]); got < n {
			if done > 0 {
				err = nil
			}
			return done, err
		}
		dropRights(r.consume(n))
		if done += n; r.kind.records {
			break
		}
	}
	return done, nil
}

// peek copies from the first piece. atEnd says that there is none, nor will be.
func (p *pipe) peek(b []byte) (n int, found, atEnd bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.pieces) == 0 {
		return 0, false, p.writers == 0
	}
	return copy(b[:min(len(b), p.pieces[0].n)], p.buf[p.start:]), true, false
}

// consume takes away what peek has shown, and of a message the rest. What it carried is
// the caller's.
func (p *pipe) consume(n int) (rights []*Open) {
	p.mu.Lock()
	wasFull := !p.hasRoomLocked()
	rights, p.pieces[0].rights = p.pieces[0].rights, nil
	if p.kind.records {
		n = p.pieces[0].n
	}
	p.start += n
	if p.pieces[0].n -= n; p.pieces[0].n == 0 {
		p.pieces = p.pieces[1:]
	}
	if wasFull && p.hasRoomLocked() {
		p.drained++
	}
	if p.start == len(p.buf) {
		p.buf, p.start = p.buf[:0], 0
	}
	p.mu.Unlock()
	p.queue.Wake()
	return rights
}

// WriteAt appends what there is room for; up to pipeBuf bytes go in whole or
// not at all. EPIPE without a reader: the signal is the caller's business.
func (w pipeWriter) WriteAt(p []byte, _ int64) (int, error) { return w.WritePieces(p, len(p)) }

// Offer keeps a write of more than most to whole pages, so that they are as one of
// any length would make them.
func (w pipeWriter) Offer(total uint64, most int) int {
	switch {
	case total <= uint64(most):
		return int(total)
	case !w.kind.merges:
		return w.kind.most
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	whole := most &^ (pipeBuf - 1)
	if rest := int(total % pipeBuf); w.fillsLocked(rest) {
		return whole - pipeBuf + rest
	}
	return whole
}

// fillsLocked reports whether n bytes go into the last page, beside what is there.
func (p *pipe) fillsLocked(n int) bool {
	return p.kind.merges && n > 0 && len(p.pieces) > 0 && p.pieces[len(p.pieces)-1].end+n <= pipeBuf
}

// WritePieces appends what there is room for.
func (w pipeWriter) WritePieces(p []byte, asked int) (done int, err error) {
	return w.writeCarrying(p, asked, nil)
}

// writeCarrying is WritePieces whose first piece carries rights: those are taken over,
// unless there is an error.
func (w pipeWriter) writeCarrying(p []byte, asked int, rights []*Open) (done int, err error) {
	if asked == 0 && !w.kind.records {
		return 0, nil
	}
	w.mu.Lock()
	first := len(w.pieces)
	done, err = w.writeLocked(p, asked)
	wrote := len(w.pieces) > first || done > 0
	if wrote {
		w.filled++
	}
	if len(rights) > 0 && len(w.pieces) > first {
		w.pieces[first].rights = rights
		inFlight.add(w.pipe)
	}
	w.mu.Unlock()
	if wrote {
		w.queue.Wake()
	}
	return done, err
}

func (w pipeWriter) writeLocked(p []byte, asked int) (done int, err error) {
	if w.readers == 0 || w.refuses {
		return 0, unix.EPIPE
	}
	if w.kind.records {
		return w.writeRecordLocked(p, asked)
	}
	if n := asked % pipeBuf; w.fillsLocked(n) {
		if len(p) < n {
			return 0, unix.EFAULT
		}
		w.appendLocked(p[:n])
		last := &w.pieces[len(w.pieces)-1]
		last.n, last.end, done = last.n+n, last.end+n, n
	}
	for done < asked {
		n := w.roomLocked(min(w.kind.most, asked-done), asked)
		switch {
		case n == 0:
			err = unix.EAGAIN
		case len(p)-done < n:
			err = unix.EFAULT
		}
		if err != nil {
			if done > 0 {
				err = nil
			}
			return done, err
		}
		w.appendLocked(p[done : done+n])
		w.pieces = append(w.pieces, piece{n: n, end: n})
		done += n
	}
	return done, nil
}

// writeRecordLocked appends a message, which may be empty. EMSGSIZE.
func (w pipeWriter) writeRecordLocked(p []byte, asked int) (int, error) {
	switch {
	case asked > w.kind.most:
		return 0, unix.EMSGSIZE
	case len(p) < asked:
		return 0, unix.EFAULT
	case len(w.pieces) >= w.kind.pieces || asked > w.kind.size-(len(w.buf)-w.start):
		return 0, unix.EAGAIN
	}
	w.appendLocked(p)
	w.pieces = append(w.pieces, piece{n: asked, end: asked})
	return asked, nil
}

// roomLocked returns how many of n bytes a new piece may have, 0 if there is to be
// none: of a socket's part of a write of more than pipeBuf.
func (p *pipe) roomLocked(n, asked int) int {
	room := p.kind.size - (len(p.buf) - p.start)
	switch {
	case len(p.pieces) >= p.kind.pieces:
		return 0
	case n <= room:
		return n
	case asked <= pipeBuf:
		return 0
	}
	return room
}

func (p *pipe) appendLocked(b []byte) {
	if p.start > 0 && len(p.buf)+len(b) > cap(p.buf) {
		p.buf = p.buf[:copy(p.buf, p.buf[p.start:])]
		p.start = 0
	}
	p.buf = append(p.buf, b...)
}

func (r pipeReader) Ready() (ev Events) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.pieces) > 0 {
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
	if w.readers == 0 || w.refuses {
		ev |= unix.POLLERR
	}
	return ev
}

// hasRoomLocked: POLLOUT promises that pipeBuf bytes can be written.
func (p *pipe) hasRoomLocked() bool { return p.roomLocked(pipeBuf, pipeBuf) == pipeBuf }

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

// Buffered returns how many bytes wait to be read: FIONREAD. Of messages those of the
// first.
func (p *pipe) Buffered() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.kind.records && len(p.pieces) > 0 {
		return p.pieces[0].n
	}
	return len(p.buf) - p.start
}

// refuse has writers find that nobody reads any more.
func (p *pipe) refuse() {
	p.mu.Lock()
	p.refuses = true
	p.filled, p.drained = p.filled+1, p.drained+1
	p.mu.Unlock()
	p.queue.Wake()
}
