//go:build linux && amd64

package vfs

import (
	"errors"
	"math"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Events is a set of POLLIN, POLLOUT, POLLHUP, POLLERR.
type Events uint16

// File is what an open file description reads and writes. Safe for concurrent
// use. Streams ignore the offset. Nothing here blocks: EAGAIN asks the caller
// to wait by Watch, which such a file then has.
type File interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Stat() (unix.Stat_t, error)
	Close() error
}

// Waitable is a File that is not always ready.
type Waitable interface {
	File
	// Ready returns what poll(2) would report now.
	Ready() Events
	// Watch sends to ready (without blocking) whenever Ready may have changed, until stop is called.
	Watch(ready chan<- struct{}) (stop func())
}

// Sizer is a File with an offset, and an end that seeking can start from.
type Sizer interface {
	File
	Size() (int64, error)
}

// Directory is a File that lists names. ReadDir fills buf with whole
// linux_dirent64 records from position *off on, and moves *off.
type Directory interface {
	File
	ReadDir(buf []byte, off *int64) (int, error)
}

// Open is an open file description: what dup and fork share.
type Open struct {
	File File
	Path string // canonical, in the guest's namespace; "" or "pipe:[7]" where there is none

	flags atomic.Uint32 // O_ACCMODE, O_APPEND, O_NONBLOCK, O_DIRECTORY, O_PATH
	refs  atomic.Int32

	mu  sync.Mutex
	off int64 // guarded by mu

	hasLocks atomic.Bool // somebody lets go of them when this is closed

	hookMu sync.Mutex
	hooks  map[*func()]struct{} // run before the file is closed; guarded by hookMu
}

// NewOpen returns a description with one reference.
func NewOpen(f File, path string, flags int) *Open {
	o := &Open{File: f, Path: path}
	o.flags.Store(uint32(flags &^ (unix.O_CREAT | unix.O_EXCL | unix.O_TRUNC | unix.O_CLOEXEC | unix.O_NOCTTY)))
	o.refs.Store(1)
	return o
}

// Ref adds a reference and returns o.
func (o *Open) Ref() *Open {
	o.refs.Add(1)
	return o
}

// Unref drops a reference; the last one closes the file.
func (o *Open) Unref() {
	if o.refs.Add(-1) != 0 {
		return
	}
	o.hookMu.Lock()
	hooks := o.hooks
	o.hooks = nil
	o.hookMu.Unlock()
	for hook := range hooks {
		(*hook)()
	}
	o.File.Close()
}

// onClose has hook run once, after the last reference is gone and before the
// file is closed, unless unhook is called first. The caller has a reference.
func (o *Open) onClose(hook func()) (unhook func()) {
	o.hookMu.Lock()
	defer o.hookMu.Unlock()
	if o.hooks == nil {
		o.hooks = make(map[*func()]struct{})
	}
	key := &hook
	o.hooks[key] = struct{}{}
	return func() {
		o.hookMu.Lock()
		defer o.hookMu.Unlock()
		delete(o.hooks, key)
	}
}

// OnClose has hook run once, when the last reference is gone. The caller has one.
func (o *Open) OnClose(hook func()) { o.onClose(hook) }

// TakeLocks reports whether this is the first lock that the description is to have.
func (o *Open) TakeLocks() bool { return o.hasLocks.CompareAndSwap(false, true) }

// Flags returns the open flags as F_GETFL does.
func (o *Open) Flags() int { return int(o.flags.Load()) }

// SetFlags changes what F_SETFL may: O_APPEND and O_NONBLOCK.
func (o *Open) SetFlags(flags int) {
	const settable = unix.O_APPEND | unix.O_NONBLOCK
	for {
		old := o.flags.Load()
		if o.flags.CompareAndSwap(old, old&^settable|uint32(flags)&settable) {
			return
		}
	}
}

// CanRead reports whether the description was opened for reading.
func (o *Open) CanRead() bool {
	f := o.Flags()
	return f&unix.O_PATH == 0 && f&unix.O_ACCMODE != unix.O_WRONLY
}

// CanWrite reports whether the description was opened for writing.
func (o *Open) CanWrite() bool {
	f := o.Flags()
	return f&unix.O_PATH == 0 && f&unix.O_ACCMODE != unix.O_RDONLY
}

// Read reads at the offset and moves it.
func (o *Open) Read(p []byte) (int, error) {
	if !o.CanRead() {
		return 0, unix.EBADF
	}
	if _, ok := o.File.(Sizer); !ok {
		return o.File.ReadAt(p, 0)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	n, err := o.File.ReadAt(p, o.off)
	o.off += int64(n)
	return n, err
}

// Write writes at the offset, or at the end under O_APPEND, and moves it.
func (o *Open) Write(p []byte) (int, error) { return o.WriteUpTo(p, math.MaxInt64) }

// WriteUpTo is Write that makes no file longer than limit. ErrLimit where it would begin
// there, or behind.
func (o *Open) WriteUpTo(p []byte, limit int64) (int, error) {
	if !o.CanWrite() {
		return 0, unix.EBADF
	}
	sizer, ok := o.File.(Sizer)
	if !ok {
		return o.File.WriteAt(p, 0)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.Flags()&unix.O_APPEND != 0 {
		if f, ok := o.File.(*TmpFile); ok { // another description may append too
			f.node.appending.Lock()
			defer f.node.appending.Unlock()
		}
		end, err := sizer.Size()
		if err != nil {
			return 0, err
		}
		o.off = end
	}
	n, err := WriteAtUpTo(o.File, p, o.off, limit)
	o.off += int64(n)
	return n, err
}

// ErrLimit says that a file may not get as long as asked: EFBIG and a signal.
var ErrLimit = errors.New("beyond the limit on the size of files")

// WriteAtUpTo is f.WriteAt, likewise.
func WriteAtUpTo(f File, p []byte, off, limit int64) (int, error) {
	if off >= limit && len(p) > 0 {
		return 0, ErrLimit
	}
	return f.WriteAt(p[:min(int64(len(p)), limit-min(off, limit))], off)
}

// Seek is lseek(2). ESPIPE on streams, EINVAL before the beginning, ENXIO for
// SEEK_DATA and SEEK_HOLE behind the end (no file here is known to have holes).
// On files without a position that is no error, and 0.
func (o *Open) Seek(off int64, whence int) (int64, error) {
	if whence < unix.SEEK_SET || whence > unix.SEEK_HOLE {
		return 0, unix.EINVAL
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if f, ok := o.File.(stander); ok {
		return 0, f.standsStill()
	}
	sizer, isSizer := o.File.(Sizer)
	if _, isDir := o.File.(Directory); !isSizer && !isDir {
		return 0, unix.ESPIPE
	}
	var size int64
	if isSizer {
		var err error
		if size, err = sizer.Size(); err != nil {
			return 0, err
		}
	}
	base := int64(0)
	switch whence {
	case unix.SEEK_SET:
	case unix.SEEK_CUR:
		base = o.off
	case unix.SEEK_END:
		base = size
	case unix.SEEK_DATA, unix.SEEK_HOLE:
		if off < 0 || off >= size {
			return 0, unix.ENXIO
		}
		if whence == unix.SEEK_HOLE {
			off = size
		}
	default:
		return 0, unix.EINVAL
	}
	to := base + off
	if (off > 0 && to < base) || to < 0 {
		return 0, unix.EINVAL
	}
	o.off = to
	return to, nil
}

// stander is a File whose position is always 0, whatever lseek is asked for.
type stander interface{ standsStill() error }

func (e *eventFD) standsStill() error   { return nil }
func (t *TimerFD) standsStill() error   { return nil }
func (e *Epoll) standsStill() error     { return nil }
func (u *UserFault) standsStill() error { return nil }
func (d *device) standsStill() error    { return nil }

// Ready returns what poll would report: a file that never waits is always ready.
func (o *Open) Ready() Events {
	if w, ok := o.File.(Waitable); ok {
		return w.Ready()
	}
	return unix.POLLIN | unix.POLLOUT
}

// Watch is Waitable.Watch, and nothing for a file that is always ready.
func (o *Open) Watch(ready chan<- struct{}) (stop func()) {
	if w, ok := o.File.(Waitable); ok {
		return w.Watch(ready)
	}
	return func() {}
}
