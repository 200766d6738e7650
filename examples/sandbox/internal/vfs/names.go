//go:build linux && amd64

package vfs

import (
	"golang.org/x/sys/unix"
)

// Stat returns a path's status; nofollow is unix.O_NOFOLLOW or 0.
func (ns *Namespace) Stat(v *Viewer, p string, nofollow int) (unix.Stat_t, error) {
	f, err := ns.lookup(v, p, nofollow)
	if err != nil {
		return unix.Stat_t{}, err
	}
	defer f.close()
	if f.entry != nil && f.entry.Jump != nil && nofollow == 0 {
		o, err := f.entry.Jump()
		if err != nil {
			return unix.Stat_t{}, err
		}
		defer o.Unref()
		return o.File.Stat()
	}
	return f.status(), nil
}

// Canonical returns the path of a directory without links, "." and "..": chdir's.
func (ns *Namespace) Canonical(v *Viewer, p string) (string, error) {
	f, err := ns.lookup(v, p, 0)
	if err != nil {
		return "", err
	}
	defer f.close()
	if st := f.status(); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return "", unix.ENOTDIR
	}
	return f.path, nil
}

// Readlink returns a symbolic link's target. EINVAL for anything else.
func (ns *Namespace) Readlink(v *Viewer, p string) (string, error) {
	f, err := ns.lookup(v, p, unix.O_NOFOLLOW)
	if err != nil {
		return "", err
	}
	defer f.close()
	switch {
	case f.entry != nil && f.entry.isLink():
		return f.entry.Target(), nil
	case f.tmp != nil && f.tmp.isLink():
		return f.tmp.target, nil
	case f.host != nil && f.host.stat.Mode&unix.S_IFMT == unix.S_IFLNK:
		return f.host.readlink()
	}
	return "", unix.EINVAL
}

// Access is faccessat(2): writing is refused everywhere but in /tmp and to devices.
func (ns *Namespace) Access(v *Viewer, p string, mode uint32, nofollow int) error {
	if mode&^7 != 0 {
		return unix.EINVAL
	}
	f, err := ns.lookup(v, p, nofollow)
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case f.host != nil && mode&unix.W_OK != 0:
		return unix.EROFS
	case f.host != nil && f.host.stat.Mode&unix.S_IFMT != unix.S_IFLNK:
		return errno(unix.Faccessat(unix.AT_FDCWD, procFD(f.host.fd), mode, unix.AT_EACCESS))
	}
	if st := f.status(); mode&unix.X_OK != 0 && st.Mode&0o111 == 0 {
		return unix.EACCES
	}
	return nil
}

// Mkdir and the calls below change /tmp and answer EROFS elsewhere.
func (ns *Namespace) Mkdir(v *Viewer, p string, mode uint32) error {
	return ns.make(v, p, unix.S_IFDIR|mode&0o1777, "")
}

// Symlink makes a link at p.
func (ns *Namespace) Symlink(v *Viewer, target, p string) error {
	if target == "" {
		return unix.ENOENT
	}
	return ns.make(v, p, unix.S_IFLNK|0o777, target)
}

func (ns *Namespace) make(v *Viewer, p string, mode uint32, target string) error {
	if f, err := ns.lookup(v, p, unix.O_NOFOLLOW); err == nil {
		f.close()
		return unix.EEXIST
	}
	dir, name, _, err := ns.parent(v, p)
	if err != nil {
		return err
	}
	_, err = dir.fs.create(dir, name, mode, target)
	return err
}

// Remove is unlinkat(2): flags has AT_REMOVEDIR for a directory.
func (ns *Namespace) Remove(v *Viewer, p string, flags int) error {
	f, err := ns.lookup(v, p, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	f.close()
	if f.tmp == nil {
		return unix.EROFS
	}
	dir, name, _, err := ns.parent(v, p)
	if err != nil {
		return err
	}
	return dir.fs.remove(dir, name, flags)
}

// Rename is renameat2(2) with RENAME_NOREPLACE or no flags.
func (ns *Namespace) Rename(v *Viewer, from, to string, flags int) error {
	if flags&^unix.RENAME_NOREPLACE != 0 {
		return unix.EINVAL
	}
	f, err := ns.lookup(v, from, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	f.close()
	if f.tmp == nil {
		return unix.EROFS
	}
	oldDir, oldName, _, err := ns.parent(v, from)
	if err != nil {
		return err
	}
	newDir, newName, _, err := ns.parent(v, to)
	if err != nil {
		return err
	}
	return oldDir.fs.rename(oldDir, oldName, newDir, newName, flags)
}

// Truncate sets an open file's size. EINVAL for what has none to set.
func (o *Open) Truncate(size int64) error {
	f, ok := o.File.(*TmpFile)
	if !ok || !o.CanWrite() {
		return unix.EINVAL
	}
	return f.Truncate(size)
}
