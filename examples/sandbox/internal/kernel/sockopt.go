//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"math"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
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
	o, s, err := t.socket(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	if a[1] != unix.SOL_SOCKET {
		return 0, unix.EOPNOTSUPP
	}
	le := binary.LittleEndian
	switch a[2] {
	case unix.SO_PEERCRED:
		cred := le.AppendUint32(nil, uint32(s.Peer))
		cred = le.AppendUint32(le.AppendUint32(cred, uint32(unix.Geteuid())), uint32(unix.Getegid()))
		return 0, t.putOption(cred, a[3], a[4])
	case unix.SO_RCVTIMEO, unix.SO_SNDTIMEO:
		tv := unix.NsecToTimeval(timeoutOf(s, a[2]).Load())
		return 0, t.putOption(le.AppendUint64(le.AppendUint64(nil, uint64(tv.Sec)), uint64(tv.Usec)), a[3], a[4])
	}
	value, ok := map[uint64]uint32{
		unix.SO_TYPE: uint32(s.Type), unix.SO_DOMAIN: unix.AF_UNIX, unix.SO_PROTOCOL: 0, unix.SO_ERROR: 0,
		unix.SO_ACCEPTCONN: 0, unix.SO_SNDBUF: socketBuffer, unix.SO_RCVBUF: socketBuffer,
	}[a[2]]
	if !ok {
		return 0, unix.ENOPROTOOPT
	}
	return 0, t.putOption(le.AppendUint32(nil, value), a[3], a[4])
}

// timeoutOf is where a socket keeps SO_RCVTIMEO or SO_SNDTIMEO.
func timeoutOf(s *vfs.Socket, option uint64) *atomic.Int64 {
	if option == unix.SO_RCVTIMEO {
		return &s.ReadTimeout
	}
	return &s.WriteTimeout
}

// socketBuffer is what Linux says by default.
const socketBuffer = 212992

// sysSetsockopt sets how long calls wait, and lets the sizes of buffers be asked for,
// which are what they are.
func sysSetsockopt(t *Task, a args) (uint64, error) {
	o, s, err := t.socket(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	if a[1] != unix.SOL_SOCKET {
		return 0, unix.ENOPROTOOPT
	}
	switch a[2] {
	case unix.SO_RCVTIMEO, unix.SO_SNDTIMEO:
		tv, err := get[unix.Timeval](t, a[3])
		switch {
		case err != nil:
			return 0, err
		case tv.Usec < 0 || tv.Usec >= 1e6:
			return 0, unix.EDOM
		}
		wait := int64(0) // for ever, as if less than nothing were asked for
		if tv.Sec >= 0 {
			const most = math.MaxInt64/int64(time.Second) - 1
			wait = min(tv.Sec, most)*int64(time.Second) + tv.Usec*int64(time.Microsecond)
		}
		timeoutOf(s, a[2]).Store(wait)
		return 0, nil
	case unix.SO_SNDBUF, unix.SO_RCVBUF:
		_, err := get[int32](t, a[3])
		return 0, err
	}
	if _, err := get[int32](t, a[3]); err != nil {
		return 0, err
	}
	return 0, unix.ENOPROTOOPT
}
