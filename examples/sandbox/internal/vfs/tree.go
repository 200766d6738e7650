//go:build linux && amd64

package vfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Tree is the host directory that a guest takes for "/".
type Tree struct {
	dir  *os.File // O_PATH
	path string   // canonical host path, without a slash at the end ("" for "/")
}

// OpenTree opens a host directory as a root.
func OpenTree(dir string) (*Tree, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	t := &Tree{dir: os.NewFile(uintptr(fd), dir)}
	canonical, err := os.Readlink(procFD(fd))
	if err != nil {
		t.dir.Close()
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	t.path = strings.TrimSuffix(canonical, "/")
	return t, nil
}

// Close closes the root.
func (t *Tree) Close() error { return t.dir.Close() }

// GuestPath translates a canonical host path, and reports whether it lies in the tree.
func (t *Tree) GuestPath(host string) (string, bool) {
	rest, ok := strings.CutPrefix(host, t.path)
	if !ok || (rest != "" && rest[0] != '/') {
		return host, false
	}
	return filepath.Clean("/" + rest), true
}

// hostNode is a resolved host path, pinned by an O_PATH descriptor.
type hostNode struct {
	fd   int
	path string // canonical, as the guest sees it
	stat unix.Stat_t
}

func (n *hostNode) close() { unix.Close(n.fd) }

// lookup resolves a guest path inside the tree. With O_NOFOLLOW in nofollow a
// symbolic link at its end is what is found, else what that leads to.
func (t *Tree) lookup(path string, nofollow int) (*hostNode, error) {
	how := unix.OpenHow{
		Flags:   uint64(unix.O_PATH | unix.O_CLOEXEC | nofollow&unix.O_NOFOLLOW),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := retry(func() (int, error) { return openat2(int(t.dir.Fd()), path, &how) })
	if err != nil {
		return nil, errno(err)
	}
	n := &hostNode{fd: fd}
	if err := unix.Fstat(fd, &n.stat); err != nil {
		n.close()
		return nil, errno(err)
	}
	host, err := os.Readlink(procFD(fd))
	if err != nil {
		n.close()
		return nil, errno(err)
	}
	n.path, _ = t.GuestPath(host)
	return n, nil
}

// firstLink finds the first name in a path that is a symbolic link and returns
// the path with the link's target in its place. It is asked where a lookup finds
// nothing: the link may lead to a file system that the host's kernel, which
// follows links by itself, knows nothing of.
func (t *Tree) firstLink(full string) (next string, ok bool) {
	// Mostly a name is simply not there: one call says so where no link stands before it.
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := retry(func() (int, error) { return openat2(int(t.dir.Fd()), full, &how) })
	switch err {
	case nil:
		unix.Close(fd)
	case unix.ENOENT:
		return "", false
	}
	names := strings.Split(strings.Trim(full, "/"), "/")
	for i := range names {
		dir := "/" + strings.Join(names[:i], "/")
		n, err := t.lookup(filepath.Clean(dir)+"/"+names[i], unix.O_NOFOLLOW)
		if err != nil {
			return "", false
		}
		isLink := n.stat.Mode&unix.S_IFMT == unix.S_IFLNK
		target, err := n.readlink()
		n.close()
		if isLink && err == nil {
			return join(dir, target) + "/" + strings.Join(names[i+1:], "/"), true
		}
	}
	return "", false
}

func (n *hostNode) readlink() (string, error) {
	buf := make([]byte, maxPath)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return "", errno(err)
	}
	return string(buf[:size]), nil
}

// openat2 answers EAGAIN when a rename raced with "..": the kernel asks for another try.
func openat2(dir int, path string, how *unix.OpenHow) (int, error) {
	for range 16 {
		fd, err := unix.Openat2(dir, path, how)
		if err != unix.EAGAIN {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// open opens what the node pins: the very file that was looked at, since its
// type decides. Device nodes, sockets and FIFOs stay closed.
func (n *hostNode) open() (File, error) {
	switch n.stat.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		return nil, unix.ELOOP
	default:
		return nil, unix.EACCES
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(procFD(n.fd), unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, errno(err)
	}
	f := os.NewFile(uintptr(fd), n.path)
	if n.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return &hostDir{f}, nil
	}
	return &HostFile{File: f, stat: n.stat}, nil
}

// HostFile is a regular file of the host, open for reading.
type HostFile struct {
	File *os.File
	stat unix.Stat_t // as it was opened
}

// OpenHost opens a regular file by its host path: the program to run, which
// need not lie below the root. EACCES for anything but a regular file.
func OpenHost(path string) (*HostFile, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0) })
	if err != nil {
		return nil, errno(err)
	}
	n := &hostNode{fd: fd, path: path}
	defer n.close()
	if err := unix.Fstat(fd, &n.stat); err != nil {
		return nil, errno(err)
	}
	if n.stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return nil, unix.EISDIR
	}
	f, err := n.open()
	if err != nil {
		return nil, err
	}
	return f.(*HostFile), nil
}

// Info returns the file's status when it was opened.
func (f *HostFile) Info() unix.Stat_t { return f.stat }

// CanExecute reports whether the file may be executed by the sandbox itself.
func (f *HostFile) CanExecute() bool {
	return f.stat.Mode&0o111 != 0 &&
		unix.Faccessat(unix.AT_FDCWD, procFD(int(f.File.Fd())), unix.X_OK, unix.AT_EACCESS) == nil
}

func (f *HostFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	if err == io.EOF {
		err = nil
	}
	return n, errno(err)
}

func (f *HostFile) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }
func (f *HostFile) Close() error                       { return f.File.Close() }

func (f *HostFile) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(int(f.File.Fd()), &st)
	return st, err
}

// Size returns the file's size now.
func (f *HostFile) Size() (int64, error) {
	st, err := f.Stat()
	return st.Size, err
}

// hostDir is a directory of the host. Its position is the host descriptor's
// own, so *off only ever says where the last seek went.
type hostDir struct{ *os.File }

func (d *hostDir) ReadAt([]byte, int64) (int, error)  { return 0, unix.EISDIR }
func (d *hostDir) WriteAt([]byte, int64) (int, error) { return 0, unix.EBADF }

func (d *hostDir) Stat() (st unix.Stat_t, err error) {
	err = unix.Fstat(int(d.Fd()), &st)
	return st, err
}

// ReadDir passes the host's records through: they have the guest's layout.
func (d *hostDir) ReadDir(buf []byte, off *int64) (int, error) {
	if _, err := unix.Seek(int(d.Fd()), *off, unix.SEEK_SET); err != nil {
		return 0, errno(err)
	}
	n, err := retry(func() (int, error) { return unix.Getdents(int(d.Fd()), buf) })
	if err != nil {
		return 0, errno(err)
	}
	if at, err := unix.Seek(int(d.Fd()), 0, unix.SEEK_CUR); err == nil {
		*off = at
	}
	return n, nil
}

func procFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// errno reduces an error of the os package to its errno.
func errno(err error) error {
	var e unix.Errno
	switch {
	case err == nil:
		return nil
	case errors.As(err, &e):
		return e
	case errors.Is(err, os.ErrClosed):
		return unix.EBADF
	}
	return unix.EIO
}

// Dup returns a second descriptor of the file, for an owner that outlives f.
func (f *HostFile) Dup() (*os.File, error) {
	fd, err := unix.FcntlInt(f.File.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, errno(err)
	}
	return os.NewFile(uintptr(fd), f.File.Name()), nil
}

// Reopen opens the same file again, with an owner of its own.
func (f *HostFile) Reopen() (*HostFile, error) {
	return OpenHost(procFD(int(f.File.Fd())))
}
