//go:build linux && amd64

package kernel

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// nodeAt finds a file that is to be changed by a path.
func (t *Task) nodeAt(dirfd, at, flags uint64) (vfs.Node, error) {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return vfs.Node{}, unix.EINVAL
	}
	if flags&unix.AT_EMPTY_PATH != 0 && int32(dirfd) != atFDCWD {
		if p, err := t.path(at); err != nil || p == "" {
			if err != nil {
				return vfs.Node{}, err
			}
			return t.nodeOf(dirfd)
		}
	}
	v, p, err := t.pathAt(dirfd, at)
	if err != nil {
		return vfs.Node{}, err
	}
	return t.k.Namespace.Node(v, p, nofollow(flags))
}

// nodeOf finds it by a descriptor.
func (t *Task) nodeOf(fd uint64) (vfs.Node, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return vfs.Node{}, err
	}
	defer o.Unref()
	return t.k.Namespace.NodeOf(t.viewer(), o)
}

func sysChmod(t *Task, a args) (uint64, error) { return sysFchmodat(t, args{fdCWD, a[0], a[1]}) }

func sysFchmodat(t *Task, a args) (uint64, error) {
	n, err := t.nodeAt(a[0], a[1], 0)
	if err != nil {
		return 0, err
	}
	return 0, n.Chmod(uint32(a[2]))
}

func sysFchmod(t *Task, a args) (uint64, error) {
	n, err := t.nodeOf(a[0])
	if err != nil {
		return 0, err
	}
	return 0, n.Chmod(uint32(a[1]))
}

func sysChown(t *Task, a args) (uint64, error) {
	return sysFchownat(t, args{fdCWD, a[0], a[1], a[2]})
}

func sysLchown(t *Task, a args) (uint64, error) {
	return sysFchownat(t, args{fdCWD, a[0], a[1], a[2], unix.AT_SYMLINK_NOFOLLOW})
}

func sysFchownat(t *Task, a args) (uint64, error) {
	n, err := t.nodeAt(a[0], a[1], a[4])
	if err != nil {
		return 0, err
	}
	return 0, n.Chown(uint32(a[2]), uint32(a[3]))
}

func sysFchown(t *Task, a args) (uint64, error) {
	n, err := t.nodeOf(a[0])
	if err != nil {
		return 0, err
	}
	return 0, n.Chown(uint32(a[1]), uint32(a[2]))
}

func sysUtime(t *Task, a args) (uint64, error) {
	if a[1] == 0 {
		return t.setTimes(fdCWD, a[0], 0, nil)
	}
	v, err := get[[2]int64](t, a[1])
	if err != nil {
		return 0, err
	}
	return t.setTimes(fdCWD, a[0], 0, []unix.Timespec{{Sec: v[0]}, {Sec: v[1]}})
}

func sysUtimes(t *Task, a args) (uint64, error) { return sysFutimesat(t, args{fdCWD, a[0], a[1]}) }

func sysFutimesat(t *Task, a args) (uint64, error) {
	if a[2] == 0 {
		return t.setTimes(a[0], a[1], 0, nil)
	}
	v, err := get[[2]unix.Timeval](t, a[2])
	if err != nil {
		return 0, err
	}
	for _, tv := range v {
		if tv.Usec < 0 || tv.Usec >= 1e6 {
			return 0, unix.EINVAL
		}
	}
	return t.setTimes(a[0], a[1], 0, []unix.Timespec{{Sec: v[0].Sec, Nsec: v[0].Usec * 1000}, {Sec: v[1].Sec, Nsec: v[1].Usec * 1000}})
}

func sysUtimensat(t *Task, a args) (uint64, error) {
	if a[2] == 0 {
		return t.setTimes(a[0], a[1], a[3], nil)
	}
	v, err := get[[2]unix.Timespec](t, a[2])
	if err != nil {
		return 0, err
	}
	if v[0].Nsec == unix.UTIME_OMIT && v[1].Nsec == unix.UTIME_OMIT {
		return 0, nil // whatever the path
	}
	return t.setTimes(a[0], a[1], a[3], v[:])
}

// setTimes sets the times of access and modification, to now without any.
func (t *Task) setTimes(dirfd, at, flags uint64, times []unix.Timespec) (uint64, error) {
	now := unix.NsecToTimespec(time.Now().UnixNano())
	set := vfs.Times{Access: &now, Modified: &now}
	for i, to := range []**unix.Timespec{&set.Access, &set.Modified} {
		if times == nil {
			break
		}
		switch ns := times[i].Nsec; {
		case ns == unix.UTIME_OMIT:
			*to = nil
		case ns == unix.UTIME_NOW:
		case ns < 0 || ns >= 1e9:
			return 0, unix.EINVAL
		default:
			*to = &times[i]
		}
	}
	var n vfs.Node
	var err error
	if at == 0 && int32(dirfd) != atFDCWD {
		n, err = t.nodeOf(dirfd) // futimens
	} else {
		n, err = t.nodeAt(dirfd, at, flags)
	}
	if err != nil {
		return 0, err
	}
	return 0, n.SetTimes(set)
}

func sysLink(t *Task, a args) (uint64, error) { return sysLinkat(t, args{fdCWD, a[0], fdCWD, a[1]}) }

func sysLinkat(t *Task, a args) (uint64, error) {
	if a[4]&^unix.AT_SYMLINK_FOLLOW != 0 {
		return 0, unix.EINVAL
	}
	v, from, to, err := t.twoPathsAt(a)
	if err != nil {
		return 0, err
	}
	last := unix.O_NOFOLLOW
	if a[4]&unix.AT_SYMLINK_FOLLOW != 0 {
		last = 0
	}
	return 0, t.k.Namespace.Link(v, from, to, last)
}

// Extended attributes: no file has any, nor can it get one.

// sysXattr is every call on one of them by a path.
func sysXattr(t *Task, a args) (uint64, error) { return 0, t.noXattr(a, 0) }

func sysLxattr(t *Task, a args) (uint64, error) {
	return 0, t.noXattr(a, unix.AT_SYMLINK_NOFOLLOW)
}

func (t *Task) noXattr(a args, flags uint64) error {
	if _, err := t.statAt(fdCWD, a[0], flags); err != nil {
		return err
	}
	return unix.EOPNOTSUPP
}

func sysFxattr(t *Task, a args) (uint64, error) {
	if _, err := t.statFD(int(int32(a[0]))); err != nil {
		return 0, err
	}
	return 0, unix.EOPNOTSUPP
}

// sysListxattr and the next two list none.
func sysListxattr(t *Task, a args) (uint64, error) {
	_, err := t.statAt(fdCWD, a[0], 0)
	return 0, err
}

func sysLlistxattr(t *Task, a args) (uint64, error) {
	_, err := t.statAt(fdCWD, a[0], unix.AT_SYMLINK_NOFOLLOW)
	return 0, err
}

func sysFlistxattr(t *Task, a args) (uint64, error) {
	_, err := t.statFD(int(int32(a[0])))
	return 0, err
}
