//go:build linux && amd64

package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

func sysShutdown(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, o.Shutdown(int(int32(a[1])))
}

// sysGetsockname, getpeername too: the ends of a pair have no names.
func sysGetsockname(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	family := binary.LittleEndian.AppendUint16(nil, unix.AF_UNIX)
	return 0, t.putOption(family, a[1], a[2])
}

// putOption writes as much of a value as the caller has room for, and its length.
func (t *Task) putOption(value []byte, at, lengthAt uint64) error {
	room, err := get[int32](t, lengthAt)
	switch {
	case err != nil:
		return err
	case room < 0:
		return unix.EINVAL
	}
	if err := t.writeGuest(value[:min(len(value), int(room))], at); err != nil {
		return err
	}
	return put(t, lengthAt, int32(len(value)))
}

// sysGetsockopt answers what libraries ask to find out what a descriptor is.
func sysGetsockopt(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	if a[1] != unix.SOL_SOCKET {
		return 0, unix.EOPNOTSUPP
	}
	value, ok := map[uint64]uint32{
		unix.SO_TYPE: unix.SOCK_STREAM, unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_PROTOCOL: 0, unix.SO_ERROR: 0,
		unix.SO_ACCEPTCONN: 0, unix.SO_SNDBUF: socketBuffer, unix.SO_RCVBUF: socketBuffer,
	}[a[2]]
	if !ok {
		return 0, unix.ENOPROTOOPT
	}
	return 0, t.putOption(binary.LittleEndian.AppendUint32(nil, value), a[3], a[4])
}

// socketBuffer is what Linux says by default.
const socketBuffer = 212992

// sysSetsockopt lets the sizes of buffers be asked for, which are what they are.
func sysSetsockopt(t *Task, a args) (uint64, error) {
	if err := t.checkSocket(a[0]); err != nil {
		return 0, err
	}
	if _, err := get[int32](t, a[3]); err != nil {
		return 0, err
	}
	if a[1] == unix.SOL_SOCKET && (a[2] == unix.SO_SNDBUF || a[2] == unix.SO_RCVBUF) {
		return 0, nil
	}
	return 0, unix.ENOPROTOOPT
}
