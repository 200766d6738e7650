//go:build linux && amd64

package vfs

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Open opens a path with the flags and mode of open(2). The namespace is
// read-only but for /tmp: EROFS for what would change it.
func (ns *Namespace) Open(v *Viewer, p string, flags int, mode uint32) (*Open, error) {
	nofollow := flags & unix.O_NOFOLLOW
	if flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL {
		nofollow = unix.O_NOFOLLOW
	}
	f, err := ns.lookup(v, p, nofollow)
	if err == unix.ENOENT && flags&unix.O_CREAT != 0 {
		if strings.HasSuffix(p, "/") {
			return nil, unix.EISDIR
		}
		return ns.create(v, p, flags, mode)
	}
	if err != nil {
		return nil, err
	}
	defer f.close()
	if flags&(unix.O_CREAT|unix.O_EXCL) == unix.O_CREAT|unix.O_EXCL {
		return nil, unix.EEXIST
	}
	return ns.openFound(v, f, flags)
}

func (ns *Namespace) openFound(v *Viewer, f *found, flags int) (*Open, error) {
	st := f.status()
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	isWrite := flags&unix.O_ACCMODE != unix.O_RDONLY
	switch {
	case flags&unix.O_DIRECTORY != 0 && !isDir:
		return nil, unix.ENOTDIR
	case flags&unix.O_PATH != 0:
		return NewOpen(&bytesFile{stat: st}, f.path, flags), nil
	case st.Mode&unix.S_IFMT == unix.S_IFLNK && (f.entry == nil || f.entry.Jump == nil):
		return nil, unix.ELOOP
	case isDir && (isWrite || flags&unix.O_CREAT != 0):
		return nil, unix.EISDIR
	}
	switch {
	case f.entry != nil && f.entry.Jump != nil:
		return f.entry.Jump()
	case f.entry != nil:
		if isWrite && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return nil, unix.EACCES
		}
		return opened(f.entry.open())(f.path, flags)
	case f.tmp != nil && isDir:
		return opened(newListing(st, func() []Name { return f.tmp.names(ns.hostNames(f.path)) }))(f.path, flags)
	case f.tmp != nil && f.tmp.fifo != nil:
		return f.tmp.openFIFO(f.path, flags)
	case f.tmp != nil:
		return NewOpen(f.tmp.open(flags), f.path, flags), nil
	case isWrite:
		kept := withBytes
		if flags&unix.O_TRUNC != 0 {
			kept = withoutBytes
		}
		n, err := ns.shadow(f, kept)
		if err != nil {
			return nil, err
		}
		return NewOpen(n.open(flags), f.path, flags), nil
	}
	return opened(f.host.open())(f.path, flags)
}

// opened passes an error on, or makes a description of the file.
func opened(file File, err error) func(path string, flags int) (*Open, error) {
	return func(path string, flags int) (*Open, error) {
		if err != nil {
			return nil, err
		}
		return NewOpen(file, path, flags), nil
	}
}

// parent finds the directory in memory that a new or old name lies in, which one of the
// host's becomes. EROFS where the name lies in a file system that does not change.
func (ns *Namespace) parent(v *Viewer, p string) (dir *tmpNode, name, full string, err error) {
	full, err = v.absolute(p)
	if err != nil {
		return nil, "", "", err
	}
	for len(full) > 1 && full[len(full)-1] == '/' {
		full = full[:len(full)-1]
	}
	dirPath, name := splitPath(full)
	f, err := ns.lookup(v, dirPath, 0)
	if err != nil {
		return nil, "", "", err
	}
	defer f.close()
	switch st := f.status(); {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, "", "", unix.ENOTDIR
	case name == "" || name == "." || name == "..":
		return nil, "", "", unix.EBUSY
	case len(name) > 255:
		return nil, "", "", unix.ENAMETOOLONG
	}
	dir, err = ns.shadow(f, withBytes)
	return dir, name, join(f.path, name), err
}

func (ns *Namespace) create(v *Viewer, p string, flags int, mode uint32) (*Open, error) {
	dir, name, full, err := ns.parent(v, p)
	if err != nil {
		return nil, err
	}
	n, err := dir.fs.create(dir, name, unix.S_IFREG|mode&0o7777, "")
	if err != nil {
		return nil, err
	}
	return NewOpen(n.open(flags), full, flags), nil
}

// hostNames lists the host's directory behind one in memory.
func (ns *Namespace) hostNames(p string) []Name {
	if mountOf(p) != "" {
		return nil // /dev/shm has none behind it
	}
	n, err := ns.Tree.lookup(p, 0)
	if err != nil {
		return nil
	}
	defer n.close()
	f, err := n.open()
	if err != nil {
		return nil
	}
	defer f.Close()
	d, ok := f.(*hostDir)
	if !ok {
		return nil
	}
	entries, _ := d.File.ReadDir(-1)
	var names []Name
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Fstatat(int(d.Fd()), e.Name(), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
			names = append(names, Name{e.Name(), st.Ino, uint8(st.Mode >> 12)})
		}
	}
	return names
}
