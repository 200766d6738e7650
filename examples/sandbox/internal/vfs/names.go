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
	case f.host != nil && mode&unix.W_OK != 0 && !ns.isShadowed(f.path):
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

// Mknod makes a file or a pipe with a name. EPERM for devices.
func (ns *Namespace) Mknod(v *Viewer, p string, mode uint32) error {
	switch mode & unix.S_IFMT {
	case unix.S_IFIFO, unix.S_IFREG:
	case 0:
		mode |= unix.S_IFREG
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFSOCK:
		return unix.EPERM
	default:
		return unix.EINVAL
	}
	return ns.make(v, p, mode&(unix.S_IFMT|0o7777), "")
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

// isShadowed reports whether what the host has at a path may be changed in memory.
func (ns *Namespace) isShadowed(full string) bool {
	rel, ok := below(full, "/tmp")
	return ok && rel != "" && ns.Tmp != nil
}

// Remove is unlinkat(2): flags has AT_REMOVEDIR for a directory.
func (ns *Namespace) Remove(v *Viewer, p string, flags int) error {
	f, err := ns.lookup(v, p, unix.O_NOFOLLOW)
	if err != nil {
		return err
	}
	defer f.close()
	if f.tmp == nil && (f.host == nil || !ns.isShadowed(f.path)) {
		return unix.EROFS
	}
	dir, name, full, err := ns.parent(v, p)
	if err != nil {
		return err
	}
	isDir := f.status().Mode&unix.S_IFMT == unix.S_IFDIR
	switch wantDir := flags&unix.AT_REMOVEDIR != 0; {
	case wantDir && !isDir:
		return unix.ENOTDIR
	case !wantDir && isDir:
		return unix.EISDIR
	case isDir && !ns.isEmpty(f):
		return unix.ENOTEMPTY
	}
	if ns.hostHas(full) {
		dir.hide(name) // before the node goes, so that nobody sees what is behind it
	}
	if f.tmp == nil {
		return nil
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
	defer f.close()
	oldDir, oldName, oldFull, err := ns.parent(v, from)
	if err != nil {
		return err
	}
	behind := ns.hostHas(oldFull)
	if behind && f.status().Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EXDEV
	}
	newDir, newName, newFull, err := ns.parent(v, to)
	if err != nil {
		return err
	}
	if err := ns.makeRoom(v, to, newFull, flags); err != nil {
		return err
	}
	n, err := ns.shadow(f, withBytes)
	if err != nil {
		return err
	}
	if ns.hostHas(newFull) {
		n.coverUp()
	}
	if behind && oldFull != newFull {
		oldDir.hide(oldName) // the node shows still
	}
	return oldDir.fs.rename(oldDir, oldName, newDir, newName, flags)
}

// makeRoom has memory know of what a rename is to replace, so that it is replaced as
// if it had always been there.
func (ns *Namespace) makeRoom(v *Viewer, to, full string, flags int) error {
	if !ns.hostHas(full) {
		return nil
	}
	f, err := ns.lookup(v, to, unix.O_NOFOLLOW)
	if err == unix.ENOENT {
		return nil // hidden
	}
	if err != nil {
		return err
	}
	defer f.close()
	switch {
	case flags&unix.RENAME_NOREPLACE != 0:
		return unix.EEXIST
	case f.status().Mode&unix.S_IFMT == unix.S_IFDIR && !ns.isEmpty(f):
		return unix.ENOTEMPTY
	}
	_, err = ns.shadow(f, withoutBytes)
	return err
}

// Truncate sets an open file's size. EINVAL for what has none to set.
func (o *Open) Truncate(size int64) error {
	f, ok := o.File.(*TmpFile)
	if !ok || !o.CanWrite() {
		return unix.EINVAL
	}
	return f.Truncate(size)
}
