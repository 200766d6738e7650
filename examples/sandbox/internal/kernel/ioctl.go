//go:build linux && amd64

package kernel

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// Requests that x/sys does not name.
const (
	fionbio  = 0x5421
	fionclex = 0x5450
	fioclex  = 0x5451
)

// kernelTermios is struct termios as the kernel has it; libc's is larger.
type kernelTermios struct {
	Iflag, Oflag, Cflag, Lflag uint32
	Line                       uint8
	Cc                         [19]uint8
}

func sysIoctl(t *Task, a args) (uint64, error) {
	o, err := t.files.get(int(int32(a[0])))
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	req := uint(uint32(a[1]))
	switch req {
	case fionbio:
		on, err := get[int32](t, a[2])
		if err != nil {
			return 0, err
		}
		flags := o.Flags() &^ unix.O_NONBLOCK
		if on != 0 {
			flags |= unix.O_NONBLOCK
		}
		o.SetFlags(flags)
		return 0, nil
	case fioclex, fionclex:
		_, err := t.files.cloexec(int(int32(a[0])), func(bool) bool { return req == fioclex })
		return 0, err
	case userfaultfdNew:
		if o.Path == "/dev/userfaultfd" {
			return t.newUserfault(a[2])
		}
	}
	if u, ok := o.File.(*vfs.UserFault); ok {
		return 0, t.userfaultIoctl(u, uint32(req), a[2])
	}
	switch req {
	case unix.TIOCINQ: // FIONREAD
		if p, ok := o.File.(interface{ Buffered() int }); ok {
			return 0, put(t, a[2], int32(p.Buffered()))
		}
	}
	fd, ok := vfs.Terminal(o.File)
	if !ok {
		return 0, unix.ENOTTY
	}
	return 0, t.terminal(fd, req, a[2])
}

// terminal passes on what line editing needs. ENOTTY if fd is no terminal.
func (t *Task) terminal(fd int, req uint, at uint64) error {
	termios, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return unix.ENOTTY
	}
	switch req {
	case unix.TCGETS:
		k := kernelTermios{Iflag: termios.Iflag, Oflag: termios.Oflag, Cflag: termios.Cflag, Lflag: termios.Lflag, Line: termios.Line}
		copy(k.Cc[:], termios.Cc[:])
		return put(t, at, k)
	case unix.TCSETS, unix.TCSETSW, unix.TCSETSF:
		k, err := get[kernelTermios](t, at)
		if err != nil {
			return err
		}
		saveTerminal(fd, *termios)
		termios.Iflag, termios.Oflag, termios.Cflag, termios.Lflag, termios.Line = k.Iflag, k.Oflag, k.Cflag, k.Lflag, k.Line
		copy(termios.Cc[:], k.Cc[:])
		return unix.IoctlSetTermios(fd, req, termios)
	case unix.TIOCGWINSZ:
		size, err := unix.IoctlGetWinsize(fd, req)
		if err != nil {
			return err
		}
		return put(t, at, *size)
	case unix.TIOCGPGRP:
		t.k.mu.Lock()
		pgrp := t.k.foreground
		t.k.mu.Unlock()
		return put(t, at, uint32(pgrp))
	case unix.TIOCSPGRP:
		pgrp, err := get[uint32](t, at)
		if err != nil {
			return err
		}
		t.k.mu.Lock()
		defer t.k.mu.Unlock()
		if !t.k.isGroupLocked(int(pgrp)) {
			return unix.EPERM
		}
		t.k.foreground = int(pgrp)
		return nil
	}
	return unix.ENOTTY
}

// savedTerminals are the host's terminals as they were before the guest's
// first change to each.
var savedTerminals struct {
	mu sync.Mutex
	by map[int]unix.Termios // guarded by mu
}

func saveTerminal(fd int, termios unix.Termios) {
	s := &savedTerminals
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = make(map[int]unix.Termios)
	}
	if _, saved := s.by[fd]; !saved {
		s.by[fd] = termios
	}
}

// RestoreTerminals undoes what the guest did to the host's terminals.
func RestoreTerminals() {
	s := &savedTerminals
	s.mu.Lock()
	defer s.mu.Unlock()
	for fd, termios := range s.by {
		_ = unix.IoctlSetTermios(fd, unix.TCSETSW, &termios)
	}
	clear(s.by)
}
