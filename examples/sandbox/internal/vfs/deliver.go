//go:build linux && amd64

package vfs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Deliver hands on what was read, and returns how much of it has arrived: all, or
// less and an error. It may wait. What has not arrived is not lost: a file gives it
// up only then, as far as the kernel's does.
type Deliver func(p []byte) (int, error)

// PieceWriter is a File that takes what is written piece by piece, each of them
// whole or not at all.
type PieceWriter interface {
	File
	// Offer returns how many bytes of a write of total, at most most, are to be
	// gathered for WritePieces at a time.
	Offer(total uint64, most int) int
	// WritePieces writes the pieces of asked bytes that p, the first of them, has
	// whole. EFAULT where those do not begin with one.
	WritePieces(p []byte, asked int) (int, error)
}

// deliverer is a File with a way of its own to give up what has arrived.
type deliverer interface {
	readTo(p []byte, deliver Deliver) (int, error)
}

// messenger is a File of which a message that cannot be delivered whole is lost.
type messenger interface{ loses() }

func (e *eventFD) loses() {}
func (t *TimerFD) loses() {}

// ReadTo reads up to len(p) bytes, for which p is room, and has them delivered.
func (o *Open) ReadTo(p []byte, deliver Deliver) (int, error) {
	if !o.CanRead() {
		return 0, unix.EBADF
	}
	if d, ok := o.File.(deliverer); ok {
		return d.readTo(p, deliver)
	}
	if _, ok := o.File.(Sizer); ok {
		o.mu.Lock()
		defer o.mu.Unlock()
		n, err := readAt(o.File, p, o.off, deliver)
		o.off += int64(n)
		return n, err
	}
	n, err := readAt(o.File, p, 0, deliver)
	if _, ok := o.File.(messenger); ok && err != nil {
		return 0, err
	}
	return n, err
}

// ReadAtTo is ReadTo from an offset, which does not move the description's.
func (o *Open) ReadAtTo(p []byte, off int64, deliver Deliver) (int, error) {
	return readAt(o.File, p, off, deliver)
}

func readAt(f File, p []byte, off int64, deliver Deliver) (int, error) {
	n, err := f.ReadAt(p, off)
	if n == 0 {
		return 0, err
	}
	done, undelivered := deliver(p[:n])
	if undelivered != nil {
		err = undelivered
	}
	return done, err
}

// WritePieces writes p, the first of asked bytes, as the file takes them.
func (o *Open) WritePieces(p []byte, asked int) (int, error) {
	if w, ok := o.File.(PieceWriter); ok && o.CanWrite() {
		return w.WritePieces(p, asked)
	}
	return o.Write(p)
}

// ReadDir is getdents64(2): records that are delivered one by one. The next call
// begins with the first that has not arrived.
func (o *Open) ReadDir(buf []byte, deliver Deliver) (done int, err error) {
	dir, ok := o.File.(Directory)
	if !ok {
		return 0, unix.ENOTDIR
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	at := o.off
	n, err := dir.ReadDir(buf, &o.off)
	for done < n {
		size := int(binary.LittleEndian.Uint16(buf[done+16:]))
		if _, err := deliver(buf[done : done+size]); err != nil {
			if o.off = at; done > 0 {
				return done, nil
			}
			return 0, err
		}
		at = int64(binary.LittleEndian.Uint64(buf[done+8:])) // d_off: where the next one is
		done += size
	}
	return done, err
}
