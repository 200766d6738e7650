//go:build linux && amd64

package kernel

import (
	"encoding/binary"

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
}

func sysRead(t *Task, a args) (uint64, error)  { return t.read(a[0], []iovec{{a[1], a[2]}}, -1) }
func sysWrite(t *Task, a args) (uint64, error) { return t.write(a[0], []iovec{{a[1], a[2]}}, -1) }

func sysPread64(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.read(a[0], []iovec{{a[1], a[2]}}, int64(a[3]))
}

func sysPwrite64(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.write(a[0], []iovec{{a[1], a[2]}}, int64(a[3]))
}

func sysReadv(t *Task, a args) (uint64, error)  { return t.vector(a, -1, t.read) }
func sysWritev(t *Task, a args) (uint64, error) { return t.vector(a, -1, t.write) }

func sysPreadv(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.vector(a, int64(a[3]), t.read)
}

func sysPwritev(t *Task, a args) (uint64, error) {
	if int64(a[3]) < 0 {
		return 0, unix.EINVAL
	}
	return t.vector(a, int64(a[3]), t.write)
}

// vector reads the iovecs and passes them on.
func (t *Task) vector(a args, off int64, move func(uint64, []iovec, int64) (uint64, error)) (uint64, error) {
	n := a[2]
	if n > maxIOVecs {
		return 0, unix.EINVAL
	}
	raw := make([]byte, n*16)
	if err := t.readGuest(raw, a[1]); err != nil {
		return 0, err
	}
	iovs := make([]iovec, n)
	total := uint64(0)
	for i := range iovs {
		v := iovec{binary.LittleEndian.Uint64(raw[i*16:]), binary.LittleEndian.Uint64(raw[i*16+8:])}
		if int64(v.length) < 0 {
			return 0, unix.EINVAL
		}
		v.length = min(v.length, maxCount-total)
		total += v.length
		iovs[i] = v
	}
	return move(a[0], iovs, off)
}

func (t *Task) transfer(fd uint64, iovs []iovec, off int64) (*transfer, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return nil, err
	}
	if _, seekable := o.File.(vfs.Sizer); off >= 0 && !seekable {
		defer o.Unref()
		if _, isDir := o.File.(vfs.Directory); isDir {
			return nil, unix.EISDIR
		}
		return nil, unix.ESPIPE
	}
	for i := range iovs {
		iovs[i].length = min(iovs[i].length, maxCount)
		if iovs[i].length > 0 && (iovs[i].base > stackTop || iovs[i].length > stackTop-iovs[i].base) {
			o.Unref()
			return nil, unix.EFAULT // before anything is taken out of a pipe
		}
	}
	return &transfer{t, o, iovs, off}, nil
}

func (t *Task) read(fd uint64, iovs []iovec, off int64) (uint64, error) {
	x, err := t.transfer(fd, iovs, off)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if !x.o.CanRead() {
		return 0, unix.EBADF
	}
	if u, ok := x.o.File.(*vfs.UserFault); ok {
		return t.readFaults(x, u)
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
		if err != nil {
			return partial(done, err)
		}
		copied, err := x.scatter(p[:n])
		done += copied
		if err != nil {
			return partial(done, err)
		}
		if n < len(p) || n == 0 {
			break
		}
	}
	return done, nil
}

func (x *transfer) readSome(p []byte, wait bool) (n int, err error) {
	switch {
	case x.off >= 0:
		n, err = x.o.File.ReadAt(p, x.off)
		x.off += int64(n)
	case wait:
		n, err = x.t.untilReady(x.o, func() (int, error) { return x.o.Read(p) })
	default:
		n, err = x.o.Read(p)
	}
	return n, err
}

func (t *Task) write(fd uint64, iovs []iovec, off int64) (uint64, error) {
	x, err := t.transfer(fd, iovs, off)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	if !x.o.CanWrite() {
		return 0, unix.EBADF
	}
	done, err := x.writeAll()
	if err == unix.EPIPE {
		t.k.mu.Lock()
		_ = t.k.sendLocked(t.proc, t, userSignal(int(unix.SIGPIPE), siUser, t.proc.pid))
		t.k.mu.Unlock()
	}
	return done, err
}

// writeAll writes everything, waiting where it has to.
func (x *transfer) writeAll() (done uint64, err error) {
	for !x.isDone() || done == 0 {
		p, err := x.gather(x.t.bounce(x.left()))
		if err != nil && len(p) == 0 {
			return partial(done, err)
		}
		for len(p) > 0 || done == 0 {
			n, err := x.writeSome(p)
			done += uint64(n)
			p = p[n:]
			if err != nil {
				return partial(done, err)
			}
			if n == 0 {
				return done, nil
			}
		}
		if err != nil {
			return partial(done, err)
		}
	}
	return done, nil
}

func (x *transfer) writeSome(p []byte) (n int, err error) {
	if x.off >= 0 {
		n, err = x.o.File.WriteAt(p, x.off)
		x.off += int64(n)
		return n, err
	}
	return x.t.untilReady(x.o, func() (int, error) { return x.o.Write(p) })
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
