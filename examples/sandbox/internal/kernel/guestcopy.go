//go:build linux && amd64

package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	maxPath = 4096

	// maxCount caps what one read or write moves: Linux's MAX_RW_COUNT.
	maxCount = 0x7fff_f000

	// bounceSize is how much of it is moved at a time, and all the host memory
	// that a transfer of any length costs.
	bounceSize = 64 << 10
)

// copyError reduces a failed copy to the errno that the guest sees.
func copyError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, guestmem.ErrNoMemory):
		return unix.ENOMEM
	case isErrno(err, unix.ENAMETOOLONG):
		return unix.ENAMETOOLONG
	}
	return unix.EFAULT
}

func isErrno(err error, e unix.Errno) bool { return errors.Is(err, e) }

// readGuest fills p from guest memory, or fails.
func (t *Task) readGuest(p []byte, at uint64) error {
	_, err := t.proc.mm.as.ReadAt(t.call, p, addr.GVA(at))
	return copyError(err)
}

// writeGuest writes all of p, or fails.
func (t *Task) writeGuest(p []byte, at uint64) error {
	_, err := t.proc.mm.as.WriteAt(t.call, p, addr.GVA(at))
	return copyError(err)
}

// get reads a structure of fixed layout.
func get[T any](t *Task, at uint64) (v T, err error) {
	b := make([]byte, binary.Size(v))
	if err := t.readGuest(b, at); err != nil {
		return v, err
	}
	err = binary.Read(bytes.NewReader(b), binary.LittleEndian, &v)
	return v, err
}

// put writes a structure of fixed layout.
func put[T any](t *Task, at uint64, v T) error {
	b, err := binary.Append(nil, binary.LittleEndian, v)
	if err != nil {
		return err
	}
	return t.writeGuest(b, at)
}

// path reads a path. ENAMETOOLONG without an end in PATH_MAX bytes.
func (t *Task) path(at uint64) (string, error) {
	s, err := t.proc.mm.as.ReadCString(t.call, addr.GVA(at), maxPath)
	return s, copyError(err)
}

// bounce returns the task's buffer, n bytes of it at most.
func (t *Task) bounce(n uint64) []byte {
	if t.buf == nil {
		t.buf = make([]byte, bounceSize)
	}
	return t.buf[:min(n, bounceSize)]
}

const atFDCWD = unix.AT_FDCWD

// viewer is how the process looks paths up.
func (t *Task) viewer() *vfs.Viewer {
	return &vfs.Viewer{Cwd: t.fs.dir(), Proc: t.procEntry}
}

// viewerAt is viewer with a relative path starting at a directory descriptor.
func (t *Task) viewerAt(dirfd int32, path string) (*vfs.Viewer, error) {
	v := t.viewer()
	if dirfd == atFDCWD || (path != "" && path[0] == '/') {
		return v, nil
	}
	o, err := t.files.get(int(dirfd))
	if err != nil {
		return nil, err
	}
	defer o.Unref()
	st, err := o.File.Stat()
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && path != "" {
		return nil, unix.ENOTDIR
	}
	v.Cwd = o.Path
	return v, nil
}

// pathAt reads a path and says how to look it up from dirfd.
func (t *Task) pathAt(dirfd, at uint64) (*vfs.Viewer, string, error) {
	p, err := t.path(at)
	if err != nil {
		return nil, "", err
	}
	v, err := t.viewerAt(int32(dirfd), p)
	return v, p, err
}

func itoa(n int) string { return strconv.Itoa(n) }

func commName(s string) string { return s[:min(len(s), 15)] }
