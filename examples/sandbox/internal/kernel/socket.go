//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// sysSocket: there is no network, and no family of it.
func sysSocket(*Task, args) (uint64, error) { return 0, unix.EAFNOSUPPORT }

// sysSocketpair is the one kind of socket there is: a stream between two
// processes of the guest, as event loops wake themselves by.
func sysSocketpair(t *Task, a args) (uint64, error) {
	const typeMask = 0xf
	flags := int(a[1]) &^ typeMask
	switch {
	case a[0] != unix.AF_UNIX:
		return 0, unix.EAFNOSUPPORT
	case flags&^(unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) != 0:
		return 0, unix.EINVAL
	case a[1]&typeMask != unix.SOCK_STREAM:
		return 0, unix.ESOCKTNOSUPPORT
	case a[2] != 0 && a[2] != unix.AF_UNIX:
		return 0, unix.EPROTONOSUPPORT
	}
	x, y, err := vfs.NewSocketPair(flags)
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
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return err
	}
	defer o.Unref()
	if !vfs.IsSocket(o.File) {
		return unix.ENOTSOCK
	}
	return nil
}

// sysSendto and sysRecvfrom are write and read; the flags that would change
// more than what blocks are refused.
func sysSendto(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	switch {
	case a[4] != 0:
		return 0, unix.EISCONN
	case a[3]&^(unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT) != 0:
		return 0, unix.EOPNOTSUPP
	}
	if a[3]&unix.MSG_NOSIGNAL != 0 || a[3]&unix.MSG_DONTWAIT != 0 {
		return t.sendNow(a)
	}
	return sysWrite(t, a)
}

// sendNow writes without a signal, and without waiting under MSG_DONTWAIT.
func (t *Task) sendNow(a args) (uint64, error) {
	x, err := t.socketTransfer(a)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	return x.writeAll()
}

// socketTransfer is a transfer with the flags of a socket's call.
func (t *Task) socketTransfer(a args) (*transfer, error) {
	iovs, err := single(a)()
	if err != nil {
		return nil, err
	}
	x, err := t.transfer(a[0], -1)
	if err != nil {
		return nil, err
	}
	x.iovs, x.noWait = iovs, a[3]&unix.MSG_DONTWAIT != 0
	return x, nil
}

func sysRecvfrom(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	switch {
	case a[3]&^unix.MSG_DONTWAIT != 0:
		return 0, unix.EOPNOTSUPP
	case a[3]&unix.MSG_DONTWAIT == 0:
		return sysRead(t, a)
	}
	x, err := t.socketTransfer(a)
	if err != nil {
		return 0, err
	}
	defer x.o.Unref()
	return x.readAll()
}
