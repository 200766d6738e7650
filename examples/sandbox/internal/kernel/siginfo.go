//go:build linux && amd64

package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

// Origins of a signal, <asm-generic/siginfo.h>.
const (
	siUser   = 0
	siKernel = 0x80
	siTkill  = -6
	siTimer  = -2

	segvMapErr, segvAccErr = 1, 2
	busAdrAln, busAdrErr   = 1, 2
	busMCEErrAR            = 4
	fpeIntDiv, fpeIntOvf   = 1, 2
	fpeFltDiv, fpeFltOvf   = 3, 4
	fpeFltUnd, fpeFltRes   = 5, 6
	fpeFltInv              = 7
	illIllOpn              = 2
	trapBrkpt, trapTrace   = 1, 2

	cldExited, cldKilled, cldStopped, cldContinued = 1, 2, 5, 6

	sigInfoSize = 128
)

// sigInfo is what is known about a signal: siginfo_t with its union spread out.
type sigInfo struct {
	sig, code int
	pid       int    // kill, SIGCHLD
	status    int    // SIGCHLD
	addr      uint64 // faults
	value     uint64 // sigqueue
	raw       []byte // as the guest gave it: rt_sigqueueinfo

	timer  *posixTimer // that has expired, else nil
	missed int         // how often besides
}

func (i sigInfo) isFault() bool { return bit(i.sig)&synchronous != 0 && i.code > 0 && i.pid == 0 }

// trap is a thread's last fault as signal frames show it.
type trap struct{ vector, code, cr2 uint64 }

// trapOf describes an exit. Of an address that can be no program's it says no more
// than Linux does: that the page is there, whether or not.
func trapOf(exit kvm.Exit, cr2 uint64) trap {
	t := trap{uint64(exit.Vector), uint64(exit.ErrorCode), cr2}
	const present, reserved = 1, 8
	if exit.Kind == kvm.ExitPageFault && cr2 >= stackTop {
		t.code = t.code&^reserved | present
	}
	return t
}

// encode lays the information out as siginfo_t.
func (i sigInfo) encode() []byte {
	b := make([]byte, sigInfoSize)
	if i.raw != nil {
		copy(b, i.raw)
		return b
	}
	le := binary.LittleEndian
	le.PutUint32(b[0:], uint32(i.sig))
	le.PutUint32(b[8:], uint32(i.code))
	switch {
	case i.timer != nil:
		le.PutUint32(b[16:], uint32(i.timer.id))
		le.PutUint32(b[20:], uint32(i.missed))
		le.PutUint64(b[24:], i.value)
	case i.isFault():
		le.PutUint64(b[16:], i.addr)
	default:
		le.PutUint32(b[16:], uint32(i.pid))
		le.PutUint32(b[20:], uint32(unix.Getuid()))
		le.PutUint64(b[24:], i.value)
		if i.sig == int(unix.SIGCHLD) {
			le.PutUint32(b[24:], uint32(i.status))
		}
	}
	return b
}

func kernelSignal(sig int) sigInfo { return sigInfo{sig: sig, code: siKernel} }

func userSignal(sig, code, pid int) sigInfo { return sigInfo{sig: sig, code: code, pid: pid} }

// childInfo is what a parent is told about a child's change of state.
func childInfo(pid int, s waitStatus) sigInfo {
	info := sigInfo{sig: int(unix.SIGCHLD), pid: pid}
	switch {
	case s == continuedStatus:
		info.code, info.status = cldContinued, int(unix.SIGCONT)
	case s&0xff == 0x7f:
		info.code, info.status = cldStopped, s.code()
	case s.signal() != 0:
		info.code, info.status = cldKilled, s.signal()
	default:
		info.code, info.status = cldExited, s.code()
	}
	return info
}
