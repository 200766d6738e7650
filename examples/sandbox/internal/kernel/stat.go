//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

func sysStat(t *Task, a args) (uint64, error) { return sysNewfstatat(t, args{fdCWD, a[0], a[1]}) }

func sysLstat(t *Task, a args) (uint64, error) {
	return sysNewfstatat(t, args{fdCWD, a[0], a[1], unix.AT_SYMLINK_NOFOLLOW})
}

func sysFstat(t *Task, a args) (uint64, error) {
	st, err := t.statFD(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[1], st)
}

func sysNewfstatat(t *Task, a args) (uint64, error) {
	st, err := t.statAt(a[0], a[1], a[3])
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[2], st)
}

func (t *Task) statFD(fd int) (unix.Stat_t, error) {
	o, err := t.files.get(fd)
	if err != nil {
		return unix.Stat_t{}, err
	}
	defer o.Unref()
	return o.File.Stat()
}

// statAt is the status of a path, or of the descriptor itself with AT_EMPTY_PATH.
func (t *Task) statAt(dirfd, at, flags uint64) (unix.Stat_t, error) {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_EMPTY_PATH|statxSyncType) != 0 {
		return unix.Stat_t{}, unix.EINVAL
	}
	p, err := "", error(nil)
	if at != 0 || flags&unix.AT_EMPTY_PATH == 0 {
		p, err = t.path(at)
	}
	if err != nil {
		return unix.Stat_t{}, err
	}
	if p == "" && flags&unix.AT_EMPTY_PATH != 0 {
		if int32(dirfd) != atFDCWD {
			return t.statFD(int(int32(dirfd)))
		}
		p = "."
	}
	v, err := t.viewerAt(int32(dirfd), p)
	if err != nil {
		return unix.Stat_t{}, err
	}
	return t.k.Namespace.Stat(v, p, nofollow(flags))
}

func sysStatx(t *Task, a args) (uint64, error) {
	if a[3]&(1<<31) != 0 {
		return 0, unix.EINVAL
	}
	st, err := t.statAt(a[0], a[1], a[2])
	if err != nil {
		return 0, err
	}
	stamp := func(ts unix.Timespec) unix.StatxTimestamp {
		return unix.StatxTimestamp{Sec: ts.Sec, Nsec: uint32(ts.Nsec)}
	}
	return 0, put(t, a[4], unix.Statx_t{
		Mask: unix.STATX_BASIC_STATS, Blksize: uint32(st.Blksize), Nlink: uint32(st.Nlink),
		Uid: st.Uid, Gid: st.Gid, Mode: uint16(st.Mode), Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks),
		Atime: stamp(st.Atim), Ctime: stamp(st.Ctim), Mtime: stamp(st.Mtim),
		Rdev_major: unix.Major(st.Rdev), Rdev_minor: unix.Minor(st.Rdev),
		Dev_major: unix.Major(st.Dev), Dev_minor: unix.Minor(st.Dev),
	})
}

// sysStatfs answers for all file systems alike: read-only and full.
func sysStatfs(t *Task, a args) (uint64, error) {
	v, p, err := t.pathAt(fdCWD, a[0])
	if err != nil {
		return 0, err
	}
	room, err := t.k.Namespace.Room(v, p)
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[1], statfsOf(room))
}

func sysFstatfs(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, put(t, a[1], statfsOf(t.k.Namespace.RoomOf(o)))
}

// statfsOf describes a file system: that of memory, or one which is only read and full.
func statfsOf(r vfs.Room) unix.Statfs_t {
	s := unix.Statfs_t{
		Type: unix.RAMFS_MAGIC, Bsize: pageSize, Frsize: pageSize, Namelen: 255, Flags: unix.ST_RDONLY,
		Blocks: r.Bytes / pageSize, Bfree: r.Free / pageSize, Bavail: r.Free / pageSize, Files: r.Files, Ffree: r.FreeFiles,
	}
	if r.Writable {
		s.Type, s.Flags = unix.TMPFS_MAGIC, 0
	}
	return s
}

// statxSyncType is AT_STATX_SYNC_TYPE: how fresh the answer must be.
const statxSyncType = 0x6000
