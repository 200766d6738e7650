//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

func sysClose(t *Task, a args) (uint64, error) { return 0, t.files.close(int(int32(a[0]))) }

func sysCloseRange(t *Task, a args) (uint64, error) {
	const cloexec, unshare = 4, 2
	if a[0] > a[1] || a[2]&^(cloexec|unshare) != 0 {
		return 0, unix.EINVAL
	}
	for _, fd := range t.files.names() {
		switch {
		case uint64(fd) < a[0] || uint64(fd) > a[1]:
		case a[2]&cloexec != 0:
			_, _ = t.files.cloexec(fd, func(bool) bool { return true })
		default:
			_ = t.files.close(fd)
		}
	}
	return 0, nil
}

func sysLseek(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	to, err := o.Seek(int64(a[1]), int(int32(a[2])))
	return uint64(to), err
}

func sysDup(t *Task, a args) (uint64, error) { return t.dupFrom(a[0], 0, 0) }

func (t *Task) dupFrom(fd uint64, min, flags int) (uint64, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return 0, err
	}
	n, err := t.files.add(o, min, flags)
	return uint64(n), err
}

func sysDup2(t *Task, a args) (uint64, error) {
	if uint32(a[0]) == uint32(a[1]) {
		o, err := t.files.get(int(int32(a[0])))
		if err != nil {
			return 0, err
		}
		o.Unref()
		return a[1], nil
	}
	return sysDup3(t, args{a[0], a[1]})
}

func sysDup3(t *Task, a args) (uint64, error) {
	to := uint32(a[1])
	if a[2]&^unix.O_CLOEXEC != 0 || uint32(a[0]) == to {
		return 0, unix.EINVAL
	}
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	if !t.files.allows(uint64(to)) {
		o.Unref()
		return 0, unix.EBADF
	}
	t.files.set(int(to), o, int(a[2]))
	return uint64(to), nil
}

func sysFcntl(t *Task, a args) (uint64, error) {
	fd := int(int32(a[0]))
	o, err := t.files.get(fd)
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	switch a[1] {
	case unix.F_DUPFD, unix.F_DUPFD_CLOEXEC:
		if !t.files.allows(a[2]) {
			return 0, unix.EINVAL
		}
		flags := 0
		if a[1] == unix.F_DUPFD_CLOEXEC {
			flags = unix.O_CLOEXEC
		}
		n, err := t.files.add(o.Ref(), int(a[2]), flags)
		return uint64(n), err
	case unix.F_GETFD:
		is, err := t.files.cloexec(fd, func(was bool) bool { return was })
		if is {
			return unix.FD_CLOEXEC, err
		}
		return 0, err
	case unix.F_SETFD:
		_, err := t.files.cloexec(fd, func(bool) bool { return a[2]&unix.FD_CLOEXEC != 0 })
		return 0, err
	case unix.F_GETFL:
		return uint64(o.Flags()), nil
	case unix.F_SETFL:
		o.SetFlags(int(a[2]))
		return 0, nil
	case unix.F_ADD_SEALS:
		return 0, o.AddSeals(uint32(a[2]))
	case unix.F_GET_SEALS:
		seals, err := o.Seals()
		return uint64(seals), err
	case unix.F_GETPIPE_SZ, unix.F_SETPIPE_SZ:
		st, err := o.File.Stat()
		switch {
		case err != nil:
			return 0, err
		case st.Mode&unix.S_IFMT != unix.S_IFIFO:
			return 0, unix.EBADF
		case a[1] == unix.F_SETPIPE_SZ && a[2] > vfs.PipeSize:
			return 0, unix.EPERM // no more than /proc/sys/fs/pipe-max-size
		}
		return vfs.PipeSize, nil
	case unix.F_SETLK, unix.F_SETLKW, unix.F_OFD_SETLK, unix.F_OFD_SETLKW, unix.F_GETLK, unix.F_OFD_GETLK:
		return 0, t.fcntlLock(o, a[1], a[2])
	}
	return 0, unix.EINVAL
}

// sysMemfdCreate makes a file that counts as one of /tmp.
func sysMemfdCreate(t *Task, a args) (uint64, error) {
	const noexecSeal, exec = 8, 16 // MFD_
	const maxName = 249
	if a[1]&^(unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|noexecSeal|exec) != 0 || a[1]&(noexecSeal|exec) == noexecSeal|exec {
		return 0, unix.EINVAL
	}
	name, err := t.space().ReadCString(t.call, gva(a[0]), maxName+1)
	switch {
	case isErrno(err, unix.ENAMETOOLONG):
		return 0, unix.EINVAL
	case err != nil:
		return 0, copyError(err)
	}
	f, err := t.k.Namespace.Tmp.NewMemfd(a[1]&(unix.MFD_ALLOW_SEALING|noexecSeal) != 0)
	if err != nil {
		return 0, err
	}
	if a[1]&noexecSeal != 0 {
		f.ForbidExec()
	}
	flags := 0
	if a[1]&unix.MFD_CLOEXEC != 0 {
		flags = unix.O_CLOEXEC
	}
	return t.addFile(vfs.NewOpen(f, "/memfd:"+name+" (deleted)", unix.O_RDWR), flags)
}

func sysPipe(t *Task, a args) (uint64, error) { return sysPipe2(t, args{a[0]}) }

func sysPipe2(t *Task, a args) (uint64, error) {
	flags := int(a[1])
	if flags&^(unix.O_CLOEXEC|unix.O_NONBLOCK) != 0 {
		return 0, unix.EINVAL
	}
	r, w, err := vfs.NewPipe(flags)
	if err != nil {
		return 0, err
	}
	rfd, err := t.files.add(r, 0, flags)
	if err != nil {
		w.Unref()
		return 0, err
	}
	wfd, err := t.files.add(w, 0, flags)
	if err == nil {
		err = put(t, a[0], [2]uint32{uint32(rfd), uint32(wfd)})
		if err != nil {
			t.files.takeBack(wfd, w)
		}
	}
	if err != nil {
		t.files.takeBack(rfd, r)
	}
	return 0, err
}

func sysGetdents64(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	p := t.bounce(uint64(uint32(a[2])))
	at := a[1]
	n, err := o.ReadDir(p, func(p []byte) (int, error) {
		err := t.writeGuest(p, at)
		at += uint64(len(p))
		return len(p), err
	})
	return uint64(n), err
}

func sysFtruncate(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, t.truncate(o, int64(a[1]))
}

// sysFsync is every call that says "make it durable": nothing here is.
func sysFsync(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	o.Unref()
	return 0, nil
}
