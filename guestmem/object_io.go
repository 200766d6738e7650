package guestmem

import (
	"context"
	"fmt"
	"io"
	"math"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What read(2) and write(2) do with a file that is mapped: they go by the same
// pages.

// ReadAt copies what the object holds from off on to p, and returns how many bytes it
// copied; fewer than len(p) only with an error. It sees every store to a shared area
// that was made before. It waits for who takes pages out of the object, and
// for what has to be read from the source.
//
// What an object without a source does not have yet takes no frame to be read.
//
// Errors: io.EOF past the end; ErrInvalid for a negative offset; ErrNoMemory; ErrIO
// with the source's error; ErrClosed; that of ctx.
func (o *Object) ReadAt(ctx context.Context, p []byte, off int64) (done int, err error) {
	if off < 0 {
		return 0, o.ioOpError("read object", off, len(p), ErrInvalid)
	}
	if err := o.hold(); err != nil {
		return 0, o.ioOpError("read object", off, len(p), err)
	}
	defer o.unref()
	if o.host != nil {
		return o.readHost(ctx, p, off)
	}
	if o.device != nil {
		in, gpa := o.onDevice(p, off)
		if done, err = o.mem.ReadAt(in, gpa); err == nil && done < len(p) {
			err = io.EOF
		}
		return done, err
	}
	for done < len(p) {
		at := uint64(off) + uint64(done)
		size := o.size.Load()
		if at >= size {
			return done, io.EOF
		}
		piece := p[done:min(uint64(len(p)), uint64(done)+size-at)]
		n, there := o.copyOut(piece, at)
		done += n
		if there {
			continue
		}
		if err := o.fill(ctx, at/addr.PageSize); err != nil {
			return done, o.ioOpError("read object", int64(at), len(p)-done, err)
		}
	}
	return done, nil
}

// copyOut copies from one page, if that is there or need not be.
func (o *Object) copyOut(p []byte, at uint64) (n int, there bool) {
	o.punching.RLock()
	defer o.punching.RUnlock()
	size := o.size.Load()
	if at >= size {
		return 0, true // it was cut short: who asks again finds the end
	}
	p = p[:min(uint64(len(p)), size-at, addr.PageSize-at%addr.PageSize)]
	f, there := o.page(at / addr.PageSize)
	if !there {
		if o.src != nil {
			return 0, false
		}
		// Nobody has stored to it: to be read, it takes no frame.
		clear(p)
		return len(p), true
	}
	o.mem.pastDoor(func() { n = copy(p, o.mem.arena.Bytes(f)[at%addr.PageSize:]) })
	return n, true
}

// WriteAt copies p to the object from off on, and returns how many bytes it copied;
// fewer than len(p) only with an error. The object grows as far as was copied. Every
// area shows it at once, but for pages that a private one has copied.
//
// Errors: ErrInvalid for a negative offset; ErrDenied for an object that is read-only;
// ErrOverflow (EOVERFLOW) beyond what an offset can say; ErrNoMemory; ErrIO with the
// source's error; ErrClosed; that of ctx.
func (o *Object) WriteAt(ctx context.Context, p []byte, off int64) (done int, err error) {
	const op = "write object"
	switch {
	case off < 0:
		return 0, o.ioOpError(op, off, len(p), ErrInvalid)
	case o.readOnly:
		return 0, o.ioOpError(op, off, len(p), ErrDenied)
	case off > math.MaxInt64-int64(len(p)):
		return 0, o.ioOpError(op, off, len(p), ErrOverflow)
	}
	if err := o.hold(); err != nil {
		return 0, o.ioOpError(op, off, len(p), err)
	}
	defer o.unref()
	switch {
	case o.host != nil:
		return o.writeHost(ctx, p, off)
	case o.device != nil:
		in, gpa := o.onDevice(p, off)
		if done, err = o.mem.WriteAt(in, gpa); err == nil && done < len(p) {
			err = o.ioOpError(op, off+int64(done), len(p)-done, ErrBus)
		}
		return done, err
	}
	for done < len(p) {
		at := uint64(off) + uint64(done)
		n := o.copyIn(p[done:], at)
		done += n
		if n > 0 {
			continue
		}
		if err := o.fill(ctx, at/addr.PageSize); err != nil {
			return done, o.ioOpError(op, int64(at), len(p)-done, err)
		}
	}
	return done, nil
}

// copyIn copies to one page, if that is there; the size follows what was copied.
func (o *Object) copyIn(p []byte, at uint64) (n int) {
	o.punching.RLock()
	defer o.punching.RUnlock()
	index := at / addr.PageSize
	f, there := o.page(index)
	if !there {
		return 0
	}
	o.mem.pastDoor(func() {
		o.mem.stored(f)
		n = copy(o.mem.arena.Bytes(f)[at%addr.PageSize:], p)
	})
	o.noteStore(index) // who writes back waits until punching is free
	o.mu.Lock()
	was := o.size.Load()
	o.noteTail(was, at+uint64(n))
	o.size.Store(max(was, at+uint64(n)))
	o.mu.Unlock()
	return n
}

func (o *Object) ioOpError(op string, off int64, n int, err error) error {
	return &Error{Op: op, Err: fmt.Errorf("%s at %#x, %#x bytes: %w", o.name, off, n, err)}
}
