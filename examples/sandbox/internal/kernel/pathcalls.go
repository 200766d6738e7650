//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

func sysOpen(t *Task, a args) (uint64, error) { return sysOpenat(t, args{fdCWD, a[0], a[1], a[2]}) }

func sysCreat(t *Task, a args) (uint64, error) {
	return sysOpenat(t, args{fdCWD, a[0], unix.O_CREAT | unix.O_WRONLY | unix.O_TRUNC, a[1]})
}

// fdCWD is AT_FDCWD as an argument.
const fdCWD = ^uint64(-unix.AT_FDCWD - 1)

func sysOpenat(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	flags := int(int32(a[2]))
	if flags&unix.O_TMPFILE == unix.O_TMPFILE {
		return 0, unix.EOPNOTSUPP
	}
	o, err := t.k.Namespace.Open(v, p, flags, t.fs.mask(uint32(a[3])))
	if err != nil {
		return 0, err
	}
	if err := t.waitPeer(o); err != nil {
		o.Unref()
		return 0, err
	}
	fd, err := t.files.add(o, 0, flags)
	return uint64(fd), err
}

func sysAccess(t *Task, a args) (uint64, error) {
	return sysFaccessat(t, args{fdCWD, a[0], a[1]})
}

func sysFaccessat(t *Task, a args) (uint64, error) {
	return sysFaccessat2(t, args{a[0], a[1], a[2]})
}

func sysFaccessat2(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	return 0, t.k.Namespace.Access(v, p, uint32(a[2]), nofollow(a[3]))
}

// nofollow translates AT_SYMLINK_NOFOLLOW to vfs's O_NOFOLLOW.
func nofollow(flags uint64) int {
	if flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		return unix.O_NOFOLLOW
	}
	return 0
}

func sysReadlink(t *Task, a args) (uint64, error) {
	return sysReadlinkat(t, args{fdCWD, a[0], a[1], a[2]})
}

func sysReadlinkat(t *Task, a args) (uint64, error) {
	if int32(a[3]) <= 0 {
		return 0, unix.EINVAL
	}
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	target, err := t.k.Namespace.Readlink(v, p)
	if err != nil {
		return 0, err
	}
	n := min(len(target), int(int32(a[3])))
	return uint64(n), t.writeGuest([]byte(target[:n]), a[2])
}

func sysGetcwd(t *Task, a args) (uint64, error) {
	cwd := append([]byte(t.fs.dir()), 0)
	if uint64(len(cwd)) > a[1] {
		return 0, unix.ERANGE
	}
	return uint64(len(cwd)), t.writeGuest(cwd, a[0])
}

func sysChdir(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(fdCWD, a[0])
	if err != nil {
		return 0, err
	}
	dir, err := t.k.Namespace.Canonical(v, p)
	if err != nil {
		return 0, err
	}
	if err := t.k.Namespace.Access(v, p, unix.X_OK, 0); err != nil {
		return 0, err
	}
	t.fs.setDir(dir)
	return 0, nil
}

func sysFchdir(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	if _, ok := o.File.(vfs.Directory); !ok {
		return 0, unix.ENOTDIR
	}
	t.fs.setDir(o.Path)
	return 0, nil
}

func sysUmask(t *Task, a args) (uint64, error) {
	c := t.fs
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.umask
	c.umask = uint32(a[0]) & 0o777
	return uint64(old), nil
}

func sysMkdir(t *Task, a args) (uint64, error) { return sysMkdirat(t, args{fdCWD, a[0], a[1]}) }

func sysMkdirat(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	return 0, t.k.Namespace.Mkdir(v, p, t.fs.mask(uint32(a[2])))
}

func sysRmdir(t *Task, a args) (uint64, error) {
	return sysUnlinkat(t, args{fdCWD, a[0], unix.AT_REMOVEDIR})
}

func sysUnlink(t *Task, a args) (uint64, error) { return sysUnlinkat(t, args{fdCWD, a[0]}) }

func sysUnlinkat(t *Task, a args) (uint64, error) {
	if a[2]&^unix.AT_REMOVEDIR != 0 {
		return 0, unix.EINVAL
	}
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	return 0, t.k.Namespace.Remove(v, p, int(a[2]))
}

func sysSymlink(t *Task, a args) (uint64, error) { return sysSymlinkat(t, args{a[0], fdCWD, a[1]}) }

func sysSymlinkat(t *Task, a args) (uint64, error) {
	target, err := t.path(a[0])
	if err != nil {
		return 0, err
	}
	v, p, err := t.pathAt(a[1], a[2])
	if err != nil {
		return 0, err
	}
	return 0, t.k.Namespace.Symlink(v, target, p)
}

func sysRename(t *Task, a args) (uint64, error) {
	return sysRenameat2(t, args{fdCWD, a[0], fdCWD, a[1]})
}

func sysRenameat(t *Task, a args) (uint64, error) {
	return sysRenameat2(t, args{a[0], a[1], a[2], a[3]})
}

func sysRenameat2(t *Task, a args) (uint64, error) {
	v, from, to, err := t.twoPathsAt(a)
	if err != nil {
		return 0, err
	}
	return 0, t.k.Namespace.Rename(v, from, to, int(a[4]))
}

// twoPathsAt reads the paths of a call whose first four arguments are a directory and
// a path, twice. One viewer sees both names.
func (t *Task) twoPathsAt(a args) (v *vfs.Viewer, from, to string, err error) {
	v, from, err = t.pathAt(a[0], a[1])
	if err != nil {
		return nil, "", "", err
	}
	there, to, err := t.pathAt(a[2], a[3])
	if err == nil && to != "" && to[0] != '/' && there.Cwd != v.Cwd {
		to = there.Cwd + "/" + to
	}
	return v, from, to, err
}

func sysTruncate(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(fdCWD, a[0])
	if err != nil {
		return 0, err
	}
	o, err := t.k.Namespace.Open(v, p, unix.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, t.truncate(o, int64(a[1]))
}

func sysMknod(t *Task, a args) (uint64, error) { return sysMknodat(t, args{fdCWD, a[0], a[1]}) }

func sysMknodat(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(a[0], a[1])
	if err != nil {
		return 0, err
	}
	mode := uint32(a[2])
	return 0, t.k.Namespace.Mknod(v, p, mode&unix.S_IFMT|t.fs.mask(mode&^unix.S_IFMT))
}

// waitPeer waits for the other end of a pipe with a name.
func (t *Task) waitPeer(o *vfs.Open) error {
	for ready := make(chan struct{}, 1); ; {
		stop := o.Watch(ready)
		err := o.Peer()
		if err == unix.EAGAIN {
			err = t.sleep(ready, nil)
			if stop(); err == nil {
				continue
			}
			return err
		}
		stop()
		return err
	}
}
