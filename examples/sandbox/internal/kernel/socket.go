//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// sysSocket: there is no network, and no family of it.
func sysSocket(*Task, args) (uint64, error) { return 0, unix.EAFNOSUPPORT }

// sysSocketpair is the one kind of socket there is: between two processes of the
// guest, a stream as event loops wake themselves by, or one of messages.
func sysSocketpair(t *Task, a args) (uint64, error) {
	const typeMask = 0xf
	flags, typ := int(a[1])&^typeMask, int(a[1])&typeMask
	switch {
	case a[0] != unix.AF_UNIX:
		return 0, unix.EAFNOSUPPORT
	case flags&^(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) != 0:
		return 0, unix.EINVAL
	case typ != unix.SOCK_STREAM && typ != unix.SOCK_DGRAM && typ != unix.SOCK_SEQPACKET:
		return 0, unix.ESOCKTNOSUPPORT
	case a[2] != 0 && a[2] != unix.AF_UNIX:
		return 0, unix.EPROTONOSUPPORT
	}
	x, y, err := vfs.NewSocketPair(typ, flags, t.proc.pid)
	if err != nil {
		return 0, err
	}
	xfd, err := t.addFile(x, flags)
	if err != nil {
		y.Unref()
		return 0, err
	}
	yfd, err := t.addFile(y, flags)
	if err == nil {
		if err = put(t, a[3], [2]uint32{uint32(xfd), uint32(yfd)}); err != nil {
			_ = t.files.close(int(yfd))
		}
	}
	if err != nil {
		_ = t.files.close(int(xfd))
	}
	return 0, err
}

// sysNotSocket is every call on a socket that a pair does not need.
func sysNotSocket(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	return 0, unix.EOPNOTSUPP
}

func (t *Task) checkSocket(fd uint64) error {
	o, _, err := t.socket(fd)
	if err != nil {
		return err
	}
	o.Unref()
	return nil
}

// socket finds one by a descriptor. EBADF, ENOTSOCK.
func (t *Task) socket(fd uint64) (*vfs.Open, *vfs.Socket, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return nil, nil, err
	}
	s, ok := o.File.(*vfs.Socket)
	if !ok {
		o.Unref()
		return nil, nil, unix.ENOTSOCK
	}
	return o, s, nil
}
