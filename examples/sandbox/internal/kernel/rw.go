//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const maxIOVecs = 1024

// iovec is a piece of guest memory.
type iovec struct{ base, length uint64 }

// transfer is one read or write: pieces of guest memory, moved through the
// bounce buffer.
type transfer struct {
	t    *Task
	o    *vfs.Open
	iovs []iovec
	off  int64 // -1: at the description's own offset

	noWait bool          // EAGAIN rather than wait
	rights []*vfs.Open   // that the first bytes written carry
	limit  time.Duration // how long to wait; 0: for ever
}

func sysRead(t *Task, a args) (uint64, error)  { return t.read(a[0], -1, single(a)) }
func sysWrite(t *Task, a args) (uint64, error) { return t.write(a[0], -1, single(a)) }

func sysPread64(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.read(a[0], int64(a[3]), single(a))
}

func sysPwrite64(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.write(a[0], int64(a[3]), single(a))
}

func sysReadv(t *Task, a args) (uint64, error)  { return t.read(a[0], -1, t.vector(a)) }
func sysWritev(t *Task, a args) (uint64, error) { return t.write(a[0], -1, t.vector(a)) }

func sysPreadv(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.read(a[0], int64(a[3]), t.vector(a))
}

func sysPwritev(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.write(a[0], int64(a[3]), t.vector(a))
}

// pieces is which memory a call moves. It is asked once the descriptor is known to
// do for the call.
type pieces func() ([]iovec, error)

// single is that of read and write.
func single(a args) pieces {
	return func() ([]iovec, error) {
		return []iovec{{a[1], min(a[2], maxCount)}}, accessible(a[1], a[2])
	}
}

// vector is that of calls with an array of them.
func (t *Task) vector(a args) pieces {
	return func() ([]iovec, error) {
		n := a[2]
		if n > maxIOVecs {
			return nil, unix.EINVAL
		}
		raw := make([]byte, n*16)
		if err := t.readGuest(raw, a[1]); err != nil {
			return nil, err
		}
		iovs := make([]iovec, n)
		for i := range iovs {
			iovs[i] = iovec{binary.LittleEndian.Uint64(raw[i*16:]), binary.LittleEndian.Uint64(raw[i*16+8:])}
			if int64(iovs[i].length) < 0 {
				return nil, unix.EINVAL
			}
		}
		total := uint64(0)
		for i := range iovs {
			v := &iovs[i]
			if err := accessible(v.base, v.length); err != nil {
				return nil, err
			}
			v.length = min(v.length, maxCount-total)
			total += v.length
		}
		return iovs, nil
	}
}

// accessible is EFAULT where nothing of a program's can be.
func accessible(base, length uint64) error {
	if base > stackTop || length > stackTop-base {
		return unix.EFAULT
	}
	return nil
}

// transfer finds what a call moves to or from.
func (t *Task) transfer(fd uint64, off int64) (*transfer, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return nil, err
	}
	if _, seekable := o.File.(vfs.Sizer); off >= 0 && !seekable && !vfs.IsDevice(o.File) {
		defer o.Unref()
		if _, isDir := o.File.(vfs.Directory); isDir {
			return nil, unix.EISDIR
		}
		return nil, unix.ESPIPE
	}
	return &transfer{t: t, o: o, off: off}, nil
}

func (t *Task) read(fd uint64, off int64, of pieces) (uint64, error) {
	x, err := t.transfer(fd, off)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if !x.o.CanRead() {
		return 0, unix.EBADF
	}
	if x.iovs, err = of(); err != nil {
		return 0, err
	}
	switch f := x.o.File.(type) {
	case *vfs.UserFault:
		return t.readFaults(x, f)
	case *vfs.Socket:
		got, err := x.receive(f, 0)
		releaseAll(got.rights)
		return got.done, err
	}
	if t.k.isCheckpoint(x.o) {
		return 0, t.captureAtStdin()
	}
	return x.readAll()
}

// readAll reads until the pieces are full, the file has no more for now, or
// something goes wrong; only the first piece is waited for.
func (x *transfer) readAll() (done uint64, err error) {
	for !x.isDone() || done == 0 {
		p := x.t.bounce(x.left())
		n, err := x.readSome(p, done == 0)
		if done += uint64(n); err != nil {
			return partial(done, err)
		}
		if n < len(p) || n == 0 {
			break
		}
	}
	return done, nil
}

// readSome reads as much as p is room for, and moves past what has arrived.
func (x *transfer) readSome(p []byte, wait bool) (n int, err error) {
	deliver := func(p []byte) (int, error) {
		n, err := x.scatter(p)
		return int(n), err
	}
	if x.off >= 0 {
		n, err = x.o.ReadAtTo(p, x.off, deliver)
		x.off += int64(n)
		return n, err
	}
	return x.try(wait, func() (int, error) { return x.o.ReadTo(p, deliver) })
}

// try does what answers EAGAIN where it would have to wait.
func (x *transfer) try(wait bool, move func() (int, error)) (int, error) {
	if !wait || x.noWait {
		return move()
	}
	return x.t.untilReady(x.o, x.limit, move)
}

func (t *Task) write(fd uint64, off int64, of pieces) (uint64, error) {
	x, err := t.transfer(fd, off)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if !x.o.CanWrite() {
		return 0, unix.EBADF
	}
	if x.iovs, err = of(); err != nil {
		return 0, err
	}
	var done uint64
	s, isSocket := x.o.File.(*vfs.Socket)
	if isSocket {
		done, err = x.send(s, 0)
	} else {
		done, err = x.writeAll()
	}
	if err == unix.EPIPE && (!isSocket || s.Type == unix.SOCK_STREAM) {
		t.brokenPipe()
	}
	return done, err
}

// brokenPipe tells who writes where nobody reads.
func (t *Task) brokenPipe() {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	_ = t.k.sendLocked(t.proc, t, userSignal(int(unix.SIGPIPE), siUser, t.proc.pid))
}

// writeAll writes everything, waiting where it has to. Of what it cannot read from
// the guest's memory a file takes the head, and what takes pieces the whole ones.
func (x *transfer) writeAll() (done uint64, err error) {
	if !vfs.Looks(x.o.File) {
		if _, err := x.o.File.WriteAt(nil, 0); err != nil {
			return 0, err
		}
		return x.left(), nil
	}
	w, inPieces := x.o.File.(vfs.PieceWriter)
	for {
		asked := int(min(x.left(), bounceSize))
		if inPieces {
			asked = w.Offer(x.left(), bounceSize)
		}
		p, fault := x.gather(x.t.bounce(uint64(asked)))
		if !inPieces {
			if asked = len(p); asked == 0 && fault != nil {
				return partial(done, fault)
			}
		}
		for first := true; first || asked > 0; first = false {
			n, err := x.writeSome(p, asked)
			done += uint64(n)
			switch {
			case err == unix.EFAULT && fault != nil:
				return partial(done, fault)
			case err == vfs.ErrLimit && done == 0:
				return 0, x.t.tooLong()
			case err != nil || n == 0:
				return partial(done, err)
			}
			p, asked = p[n:], asked-n
		}
		if fault != nil || x.isDone() {
			return partial(done, fault)
		}
	}
}

// writeSome writes of asked bytes what p has, the first of them.
func (x *transfer) writeSome(p []byte, asked int) (n int, err error) {
	if _, isFile := x.o.File.(*vfs.TmpFile); isFile {
		return x.writeFile(p)
	}
	if x.off >= 0 {
		n, err = x.o.File.WriteAt(p, x.off)
		x.off += int64(n)
		return n, err
	}
	return x.try(true, func() (int, error) {
		if s, ok := x.o.File.(*vfs.Socket); ok {
			n, err := s.Send(p, asked, x.rights)
			if n > 0 {
				x.rights = nil // under way
			}
			return n, err
		}
		return x.o.WritePieces(p, asked)
	})
}

// writeFile writes what the limit on the size of files lets it. vfs.ErrLimit.
func (x *transfer) writeFile(p []byte) (n int, err error) {
	limit := x.t.fileLimit()
	if x.off < 0 {
		n, err = x.o.WriteUpTo(p, limit)
	} else {
		n, err = vfs.WriteAtUpTo(x.o.File, p, x.off, limit)
		x.off += int64(n)
	}
	return n, err
}

// partial reports an error only if nothing was done.
func partial(done uint64, err error) (uint64, error) {
	if done > 0 {
		return done, nil
	}
	return 0, err
}

func (x *transfer) isDone() bool { return x.left() == 0 }

func (x *transfer) left() (n uint64) {
	for _, v := range x.iovs {
		n += v.length
	}
	return n
}

// scatter writes p to the pieces and moves past what was written.
func (x *transfer) scatter(p []byte) (done uint64, err error) {
	return x.walk(p, func(p []byte, at addr.GVA) (int, error) {
		return x.t.proc.mm.as.WriteAt(x.t.call, p, at)
	})
}

// gather fills p from the pieces and moves past what was read.
func (x *transfer) gather(p []byte) ([]byte, error) {
	n, err := x.walk(p, func(p []byte, at addr.GVA) (int, error) {
		return x.t.proc.mm.as.ReadAt(x.t.call, p, at)
	})
	return p[:n], err
}

func (x *transfer) walk(p []byte, move func([]byte, addr.GVA) (int, error)) (done uint64, err error) {
	for len(p) > 0 && len(x.iovs) > 0 {
		v := &x.iovs[0]
		if v.length == 0 {
			x.iovs = x.iovs[1:]
			continue
		}
		n, err := move(p[:min(uint64(len(p)), v.length)], addr.GVA(v.base))
		done += uint64(n)
		v.base, v.length, p = v.base+uint64(n), v.length-uint64(n), p[n:]
		if err != nil {
			return done, copyError(err)
		}
	}
	return done, nil
}
