//go:build linux && amd64

package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// fifo is a pipe with a name: one pipe for all who have it open, a new one once nobody
// has.
type fifo struct {
	mu   sync.Mutex
	pipe *pipe // nil: nobody has had it open yet; guarded by mu
}

// Ends of a pipe with a name.
type (
	fifoReader struct {
		pipeReader
		fifoEnd
	}
	fifoWriter struct {
		pipeWriter
		fifoEnd
	}
	// fifoBoth is what O_RDWR opens: it never ends, since it is its own writer.
	fifoBoth struct {
		pipeReader
		fifoEnd
	}
)

// fifoEnd is what the ends have in common.
type fifoEnd struct {
	node *tmpNode
	// others is how often the other end had been opened when this one was, less one
	// if somebody had it then: he may be gone before we look, and was met all the same.
	others uint64
}

func (e fifoEnd) Stat() (unix.Stat_t, error) { return e.node.status(), nil }

// openFIFO opens an end as open(2) says, but for that it does not wait: Open.Peer tells
// who has to. ENXIO for a writer that would not wait and finds nobody; ENFILE.
func (n *tmpNode) openFIFO(path string, flags int) (*Open, error) {
	f := n.fifo
	f.mu.Lock()
	defer f.mu.Unlock()
	access := flags & unix.O_ACCMODE
	readers, writers := 1, 1
	switch access {
	case unix.O_RDONLY:
		writers = 0
	case unix.O_WRONLY:
		readers = 0
	}
	others, joined := f.pipe.join(readers, writers, flags)
	if !joined {
		if access == unix.O_WRONLY && flags&unix.O_NONBLOCK != 0 {
			return nil, unix.ENXIO
		}
		if openPipes.Add(1) > maxPipes {
			openPipes.Add(-1)
			return nil, unix.ENFILE
		}
		f.pipe = &pipe{ino: pipeSerial.Add(1), kind: pipeKind, readers: readers, writers: writers}
		f.pipe.opened = [2]uint64{uint64(readers), uint64(writers)}
	}
	p := f.pipe
	var file File
	switch access {
	case unix.O_RDONLY:
		file = fifoReader{pipeReader{p}, fifoEnd{n, others}}
	case unix.O_WRONLY:
		file = fifoWriter{pipeWriter{p}, fifoEnd{n, others}}
	default:
		file = fifoBoth{pipeReader{p}, fifoEnd{n, 0}}
	}
	p.queue.Wake() // who waits for an end like this
	return NewOpen(file, path, flags), nil
}

// join adds ends to a pipe that somebody has open, and returns what fifoEnd.others says.
// It fails where nobody has, and for a writer that would not wait and finds no reader.
func (p *pipe) join(readers, writers, flags int) (others uint64, joined bool) {
	if p == nil {
		return 0, false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.readers == 0 && p.writers == 0 {
		return 0, false
	}
	if readers == 0 && p.readers == 0 && flags&unix.O_NONBLOCK != 0 {
		return 0, false
	}
	switch {
	case writers == 0:
		others = met(p.opened[1], p.writers)
	case readers == 0:
		others = met(p.opened[0], p.readers)
	}
	p.readers, p.writers = p.readers+readers, p.writers+writers
	p.opened[0], p.opened[1] = p.opened[0]+uint64(readers), p.opened[1]+uint64(writers)
	return others, true
}

// met is fifoEnd.others of who finds an end opened so often, and had by so many now.
func met(opened uint64, now int) uint64 {
	if now > 0 {
		return opened - 1
	}
	return opened
}

func (p *pipe) openedSoFar() (readers, writers uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opened[0], p.opened[1]
}

// Peer returns EAGAIN as long as whoever opened an end of a pipe with a name has to wait
// for the other: until it was opened, be it closed again by now.
func (o *Open) Peer() error {
	if o.Flags()&unix.O_NONBLOCK != 0 {
		return nil
	}
	switch f := o.File.(type) {
	case fifoReader:
		if _, w := f.openedSoFar(); f.writersNow() == 0 && w == f.others {
			return unix.EAGAIN
		}
	case fifoWriter:
		if r, _ := f.openedSoFar(); f.readersNow() == 0 && r == f.others {
			return unix.EAGAIN
		}
	}
	return nil
}

func (p *pipe) writersNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.writers
}

func (p *pipe) readersNow() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.readers
}

func (f fifoReader) Stat() (unix.Stat_t, error) { return f.fifoEnd.Stat() }
func (f fifoWriter) Stat() (unix.Stat_t, error) { return f.fifoEnd.Stat() }
func (f fifoBoth) Stat() (unix.Stat_t, error)   { return f.fifoEnd.Stat() }

// Ready: a reader that has never had a writer has not lost one.
func (f fifoReader) Ready() Events {
	ev := f.pipeReader.Ready()
	if _, w := f.openedSoFar(); w == f.others && ev&unix.POLLIN == 0 {
		ev &^= unix.POLLHUP
	}
	return ev
}

func (f fifoBoth) writer() pipeWriter                       { return pipeWriter{f.pipe} }
func (f fifoBoth) WriteAt(p []byte, off int64) (int, error) { return f.writer().WriteAt(p, off) }
func (f fifoBoth) Offer(total uint64, most int) int         { return f.writer().Offer(total, most) }
func (f fifoBoth) WritePieces(p []byte, n int) (int, error) { return f.writer().WritePieces(p, n) }
func (f fifoBoth) Ready() Events                            { return f.pipeReader.Ready() | f.writer().Ready() }

func (f fifoBoth) Close() error {
	_ = f.pipeReader.Close()
	return f.writer().Close()
}
