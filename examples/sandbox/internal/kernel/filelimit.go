//go:build linux && amd64

package kernel

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// fileLimit is RLIMIT_FSIZE: how long a file the process may make.
func (t *Task) fileLimit() int64 {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	l, err := t.proc.limits.get(unix.RLIMIT_FSIZE)
	if err != nil {
		return math.MaxInt64
	}
	return int64(min(l.Cur, math.MaxInt64))
}

// tooLong is what becomes of who goes beyond it: EFBIG, after a signal.
func (t *Task) tooLong() error {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	_ = t.k.sendLocked(t.proc, t, userSignal(int(unix.SIGXFSZ), siUser, t.proc.pid))
	return unix.EFBIG
}

// mayGrow says whether a file may get a size: it may shrink, whatever the limit.
func (t *Task) mayGrow(f *vfs.TmpFile, size int64) error {
	if size <= t.fileLimit() {
		return nil
	}
	if now, err := f.Size(); err != nil || size <= now {
		return err
	}
	return t.tooLong()
}

// truncate sets an open file's size.
func (t *Task) truncate(o *vfs.Open, size int64) error {
	if f, ok := o.File.(*vfs.TmpFile); ok && o.CanWrite() {
		if err := t.mayGrow(f, size); err != nil {
			return err
		}
	}
	return o.Truncate(size)
}

// sysFallocate gives a file of memory its bytes, or takes them away.
func sysFallocate(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	mode, off, length := int(int32(a[1])), int64(a[2]), int64(a[3])
	const known = unix.FALLOC_FL_KEEP_SIZE | unix.FALLOC_FL_PUNCH_HOLE
	f, isFile := o.File.(*vfs.TmpFile)
	switch {
	case off < 0 || length <= 0:
		return 0, unix.EINVAL
	case mode&^known != 0, mode&known == unix.FALLOC_FL_PUNCH_HOLE:
		return 0, unix.EOPNOTSUPP
	case !o.CanWrite():
		return 0, unix.EBADF
	case !isFile:
		return 0, notAllocatable(o)
	case off > math.MaxInt64-length:
		return 0, unix.EFBIG
	case mode&unix.FALLOC_FL_PUNCH_HOLE != 0:
		return 0, f.PunchHole(off, length)
	case mode&unix.FALLOC_FL_KEEP_SIZE == 0:
		if err := t.mayGrow(f, off+length); err != nil {
			return 0, err
		}
		return 0, f.Allocate(off, length, vfs.GrowSize)
	}
	return 0, f.Allocate(off, length, vfs.KeepSize)
}

// notAllocatable is why what is no file of memory has no bytes to be given.
func notAllocatable(o *vfs.Open) error {
	st, err := o.File.Stat()
	switch {
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT == unix.S_IFIFO:
		return unix.ESPIPE
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return unix.EISDIR
	case st.Mode&unix.S_IFMT == unix.S_IFREG:
		return unix.EOPNOTSUPP
	}
	return unix.ENODEV
}
