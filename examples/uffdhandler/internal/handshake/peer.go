//go:build linux

package handshake

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd/pager"
)

// A Peer is the process at the other end of a socket. It is safe for concurrent
// use.
type Peer struct {
	PID, UID int

	file *os.File // a pidfd that the runtime's poller knows
	once sync.Once
	gone chan struct{}
}

// PeerOf returns the process that connected, or that listened before, by what
// the kernel noted then. SO_PEERPIDFD names it beyond doubt (Linux 6.5); before,
// the process of its number is taken, which is another one only if it has
// ended and the number has come round already.
//
// Errors: ErrPeer.
func PeerOf(conn *net.UnixConn) (*Peer, error) {
	var cred *unix.Ucred
	pidfd := -1
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	var optErr error
	err = raw.Control(func(fd uintptr) {
		if cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); optErr != nil {
			return
		}
		pidfd, optErr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		if errors.Is(optErr, unix.ENOPROTOOPT) {
			pidfd, optErr = unix.PidfdOpen(int(cred.Pid), 0)
		}
	})
	if err = errors.Join(err, optErr); err != nil {
		return nil, fmt.Errorf("%w: its process: %w", ErrPeer, err)
	}
	p, err := PeerFromFD(pidfd, int(cred.Pid), int(cred.Uid))
	if err != nil {
		return nil, err
	}
	if p.HasEnded() {
		p.Close()
		return nil, fmt.Errorf("%w: process %d has ended", ErrPeer, cred.Pid)
	}
	return p, nil
}

// PeerFromFD takes a pidfd over, also where it fails.
//
// Errors: ErrPeer.
func PeerFromFD(pidfd, pid, uid int) (*Peer, error) {
	unix.CloseOnExec(pidfd)
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("%w: pidfd: %w", ErrPeer, err)
	}
	return &Peer{PID: pid, UID: uid, file: os.NewFile(uintptr(pidfd), "pidfd"), gone: make(chan struct{})}, nil
}

// HasEnded reports whether the process has ended.
func (p *Peer) HasEnded() bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	err = raw.Control(func(fd uintptr) { ended = isReadable(fd) })
	return err != nil || ended
}

func isReadable(fd uintptr) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(set, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0
		}
	}
}

// lookAgain is the pace where a pidfd can only be asked.
const lookAgain = 100 * time.Millisecond

// Gone is closed when the process has ended, or the Peer was closed.
func (p *Peer) Gone() <-chan struct{} {
	p.once.Do(func() {
		raw, err := p.file.SyscallConn()
		if err != nil {
			close(p.gone)
			return
		}
		go func() {
			defer close(p.gone)
			if raw.Read(isReadable) == nil {
				return
			}
			// It was closed, or the poller does not take pidfds. Nobody may think
			// that a process has ended which has not.
			for raw.Control(func(uintptr) {}) == nil && !p.HasEnded() {
				time.Sleep(lookAgain)
			}
		}()
	})
	return p.gone
}

// MayBeKilled reports why this process may not kill the peer, if so.
func (p *Peer) MayBeKilled() error { return p.signal(0) }

// Kill kills the process.
func (p *Peer) Kill() error { return p.signal(unix.SIGKILL) }

func (p *Peer) signal(sig unix.Signal) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	if err := raw.Control(func(fd uintptr) { sendErr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if errors.Is(sendErr, unix.ESRCH) {
		return nil // it has ended
	}
	return sendErr
}

// Dup returns a duplicate of the pidfd.
func (p *Peer) Dup() (int, error) {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return -1, err
	}
	dup, dupErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	return dup, errors.Join(err, dupErr)
}

// Pager returns the process as the pager wants it, with a descriptor of its own.
func (p *Peer) Pager() (*pager.Peer, error) {
	fd, err := p.Dup()
	if err != nil {
		return nil, err
	}
	return pager.PeerFromFD(fd), nil
}

// Close gives the pidfd up.
func (p *Peer) Close() error { return p.file.Close() }

// fetch takes the descriptor that a claim names out of the peer, unless one was
// sent; -1 then.
func (p *Peer) fetch(c *Claim, sent int) (int, error) {
	if c.PID != p.PID {
		return -1, fmt.Errorf("%w: it says process %d and is %d", ErrPeer, c.PID, p.PID)
	}
	if sent > 0 {
		return -1, nil
	}
	raw, err := p.file.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("%w: %w", ErrPeer, err)
	}
	got, getErr := -1, error(nil)
	err = raw.Control(func(fd uintptr) { got, getErr = unix.PidfdGetfd(int(fd), c.FD, 0) })
	if err := errors.Join(err, getErr); err != nil {
		return -1, fmt.Errorf("%w: descriptor %d of process %d: %w", ErrDescriptor, c.FD, c.PID, err)
	}
	return got, nil
}

// maxOwnsChecked bounds how long a long list can keep Owns busy.
const maxOwnsChecked = 64

// Owns reports whether any of the mappings is memory of the process. A
// userfaultfd does not say whose it is; one of another process nearly always
// fails here, and where it does not, nobody is harmed but its owner, who gave it
// away. It says nil where this process may not look.
//
// Errors: ErrPeer; that of looking, where it is for want of descriptors or memory.
func (p *Peer) Owns(mappings []Mapping) error {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", p.PID))
	if Shortage(err) != "" {
		return fmt.Errorf("whose memory it is: %w", err)
	}
	if err != nil {
		return nil
	}
	defer f.Close()
	looked := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		from, rest, _ := strings.Cut(lines.Text(), "-")
		to, _, _ := strings.Cut(rest, " ")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 != nil || err2 != nil {
			return nil
		}
		looked = true
		for _, m := range mappings[:min(len(mappings), maxOwnsChecked)] {
			if m.Start < end && start < m.Start+m.Size {
				return nil
			}
		}
	}
	if !looked || p.HasEnded() {
		return nil // another process may have the number by now
	}
	return fmt.Errorf("%w: no region is memory of process %d", ErrPeer, p.PID)
}
