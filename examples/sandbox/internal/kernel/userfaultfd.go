//go:build linux && amd64

package kernel

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Requests of userfaultfd, and of /dev/userfaultfd.
const (
	uffdioAPI          = 0xc018aa3f
	uffdioRegister     = 0xc020aa00
	uffdioUnregister   = 0x8010aa01
	uffdioWake         = 0x8010aa02
	uffdioCopy         = 0xc028aa03
	uffdioZero         = 0xc020aa04
	uffdioMove         = 0xc028aa05
	uffdioWriteProtect = 0xc018aa06
	uffdioContinue     = 0xc020aa07
	uffdioPoison       = 0xc020aa08

	userfaultfdNew = 0xaa00

	uffdAPI          = 0xaa
	uffdUserModeOnly = 1
	uffdAPIIoctls    = 1<<0x3f | 1<<0 | 1<<1
)

type (
	apiArg      struct{ API, Features, Ioctls uint64 }
	rangeArg    struct{ Start, Length uint64 }
	registerArg struct{ Start, Length, Mode uint64 }
	copyArg     struct{ Dst, Src, Length, Mode uint64 }
)

func sysUserfaultfd(t *Task, a args) (uint64, error) { return t.newUserfault(a[0]) }

func (t *Task) newUserfault(flags uint64) (uint64, error) {
	if flags&^(uffdUserModeOnly|unix.O_CLOEXEC|unix.O_NONBLOCK) != 0 {
		return 0, unix.EINVAL
	}
	return t.addFile(vfs.NewUserFault(t.space(), nil, int(flags), flags&uffdUserModeOnly != 0), int(flags))
}

// userfaultIoctl is ioctl(2) of a userfaultfd.
func (t *Task) userfaultIoctl(u *vfs.UserFault, req uint32, at uint64) error {
	m := u.Monitor()
	if req == uffdioAPI {
		return t.userfaultAPI(u, at)
	}
	if m == nil {
		return unix.EINVAL
	}
	switch req {
	case uffdioRegister:
		a, err := get[registerArg](t, at)
		if err != nil {
			return err
		}
		ioctls, err := m.Register(gva(a.Start), a.Length, uffd.Mode(a.Mode))
		if err != nil {
			return err
		}
		return put(t, at+24, uint64(ioctls))
	case uffdioUnregister, uffdioWake:
		a, err := get[rangeArg](t, at)
		if err != nil {
			return err
		}
		if req == uffdioWake {
			return m.Wake(gva(a.Start), a.Length)
		}
		return m.Unregister(gva(a.Start), a.Length)
	case uffdioWriteProtect:
		a, err := get[registerArg](t, at)
		if m.Changing() {
			return unix.EAGAIN // before the argument is looked at
		}
		if err != nil {
			return err
		}
		fl, ok := flagsOf(a.Mode, uffd.Armed, uffd.DontWake)
		if !ok {
			fl = badFlags
		}
		return m.WriteProtect(gva(a.Start), a.Length, fl)
	case uffdioCopy, uffdioMove:
		a, err := get[copyArg](t, at)
		if err != nil {
			return err
		}
		return t.userfaultCopy(u, m, a, req, at+32)
	case uffdioZero, uffdioContinue, uffdioPoison:
		a, err := get[registerArg](t, at)
		if err != nil {
			return err
		}
		install := map[uint32]func(at addr.GVA, length uint64, fl uffd.Flags) (uint64, error){
			uffdioZero: m.Zero, uffdioContinue: m.Continue, uffdioPoison: m.Poison,
		}[req]
		known := []uffd.Flags{uffd.DontWake, uffd.Armed}
		if req != uffdioContinue {
			known = known[:1]
		}
		fl, ok := flagsOf(a.Mode, known...)
		if !ok || a.Start%addr.PageSize != 0 {
			fl = badFlags
		}
		if err := refused(m, fl, rangeArg{a.Start, a.Length}); err != nil {
			return err
		}
		done, err := install(gva(a.Start), a.Length, fl)
		return t.installed(at+24, done, err)
	}
	return unix.EINVAL
}

// badFlags are none that any call takes, so that errors come in Linux's order.
const badFlags = ^uffd.Flags(0)

// flagsOf translates a mode: what its bits mean, from the lowest.
func flagsOf(mode uint64, bits ...uffd.Flags) (fl uffd.Flags, ok bool) {
	for i, b := range bits {
		if mode&(1<<i) != 0 {
			fl |= b
		}
	}
	return fl, mode>>len(bits) == 0
}

// userfaultAPI is the handshake.
func (t *Task) userfaultAPI(u *vfs.UserFault, at uint64) error {
	a, err := get[apiArg](t, at)
	if err != nil {
		return err
	}
	features := uffd.Features(a.Features)
	if a.API != uffdAPI || features&^guestmem.MonitorFeatures != 0 {
		_ = put(t, at, apiArg{})
		return unix.EINVAL
	}
	if err := put(t, at, apiArg{uffdAPI, uint64(guestmem.MonitorFeatures), uffdAPIIoctls}); err != nil {
		return err
	}
	if err := u.Negotiate(guestmem.MonitorOptions{Features: features, UserModeOnly: u.UserOnly}); err != nil {
		_ = put(t, at, apiArg{})
		return err
	}
	return nil
}

// refused is the error of an install whose arguments are wrong, of which the result
// in the guest's memory is not told; nil beside a change, of which it is told first.
func refused(m *guestmem.Monitor, fl uffd.Flags, ranges ...rangeArg) error {
	if m.Changing() {
		return nil
	}
	b := m.AddressSpace().Bounds()
	for _, r := range ranges {
		end := r.Start + r.Length
		if r.Length == 0 || r.Length%addr.PageSize != 0 || end <= r.Start || gva(r.Start) < b.Start || gva(end) > b.End {
			return unix.EINVAL
		}
	}
	if fl == badFlags {
		return unix.EINVAL
	}
	return nil
}

// installed tells the guest how far an install went. Of a part that is done it says
// EAGAIN, whatever stopped it, as Linux does.
func (t *Task) installed(at, done uint64, err error) error {
	if errors.Is(err, guestmem.ErrGone) && done == 0 {
		return err
	}
	answer := done
	if err != nil {
		if answer = errnoResult(err); done > 0 {
			answer, err = done, unix.EAGAIN
		}
	}
	if e := put(t, at, answer); e != nil {
		return e
	}
	return err
}

// userfaultCopy copies, or moves, and puts the result at at.
func (t *Task) userfaultCopy(u *vfs.UserFault, m *guestmem.Monitor, a copyArg, req uint32, at uint64) error {
	moves := req == uffdioMove
	bits, aligned := []uffd.Flags{uffd.DontWake, uffd.Armed}, a.Dst
	if moves {
		bits[1], aligned = uffd.AllowHoles, a.Dst|a.Src
	}
	fl, ok := flagsOf(a.Mode, bits...)
	if !ok || aligned%addr.PageSize != 0 || moves && u.Space != t.space() {
		fl = badFlags
	}
	src := rangeArg{a.Src, a.Length}
	if !moves {
		// What is copied may be said to lie where nothing can be mapped: EFAULT, in its turn.
		src.Start = max(src.Start, uint64(m.AddressSpace().Bounds().Start))
	}
	if err := refused(m, fl, src, rangeArg{a.Dst, a.Length}); err != nil {
		return err
	}
	if moves {
		done, err := m.Move(gva(a.Dst), gva(a.Src), a.Length, fl)
		return t.installed(at, done, err)
	}
	done, err := m.CopyFunc(gva(a.Dst), a.Length, fl, func(p []byte, off uint64) (int, error) {
		return t.space().ReadAt(t.call, p, gva(a.Src+off))
	})
	return t.installed(at, done, err)
}

// readFaults is read(2) of a userfaultfd: as many messages as there are and fit.
// The child of a fork gets a descriptor; where there is no room for one, the message
// waits for the next read.
func (t *Task) readFaults(x *transfer, u *vfs.UserFault) (uint64, error) {
	m := u.Monitor()
	if m == nil || x.left() < guestmem.MonitorMessageSize {
		return 0, unix.EINVAL
	}
	p := t.bounce(x.left() / guestmem.MonitorMessageSize * guestmem.MonitorMessageSize)
	n, err := t.untilReady(x.o, 0, func() (int, error) { return t.readMessages(m, u, p) })
	if err != nil {
		return 0, err
	}
	return x.scatter(p[:n])
}

func (t *Task) readMessages(m *guestmem.Monitor, u *vfs.UserFault, p []byte) (n int, err error) {
	for ; n+guestmem.MonitorMessageSize <= len(p); n += guestmem.MonitorMessageSize {
		var e [1]guestmem.MonitorEvent
		var fd int
		got, err := m.ReadAccept(e[:], func(child *guestmem.Monitor) error {
			o := vfs.NewUserFault(child.AddressSpace(), child, u.Flags, u.UserOnly)
			o.Ref() // a failed add is not to close the monitor
			var err error
			if fd, err = t.files.add(o, 0, u.Flags); err != nil {
				return err
			}
			o.Unref()
			return nil
		})
		if err != nil && n == 0 {
			return 0, err
		}
		if got == 0 || err != nil {
			break
		}
		e[0].Encode(p[n:], uint32(fd))
	}
	if n == 0 {
		return 0, unix.EAGAIN
	}
	return n, nil
}
