package pager

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A Peer is a process whose memory is served, held by a pidfd: it cannot be
// mistaken for another one that has got its number.
type Peer struct {
	fd    int
	close sync.Once
}

// OpenPeer finds a process by its number. Whoever calls makes sure that it is
// still the same one: it is a child not waited for, or one whose socket, with
// that number as SO_PEERCRED, is still open. pidfd_open(2), Linux 5.3.
func OpenPeer(pid int) (*Peer, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, &Error{Op: fmt.Sprintf("open process %d", pid), Err: err}
	}
	return &Peer{fd: fd}, nil
}

// PeerFromFD takes a pidfd over, such as one by SO_PEERPIDFD.
func PeerFromFD(pidfd int) *Peer { return &Peer{fd: pidfd} }

// killWait bounds the wait for a killed process to be gone. It can be held up
// by a system call that cannot be interrupted.
const killWait = 30 * time.Second

// Kill kills the process and waits until it runs no more. It returns nil also
// if it had ended already.
//
// Errors: EPERM; ErrLivelock if it does not end.
func (p *Peer) Kill() error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return &Error{Op: "kill the guest's process", Err: err}
	}
	ended, err := p.wait(killWait)
	if err == nil && !ended {
		err = fmt.Errorf("%w: it was killed and does not end", ErrLivelock)
	}
	if err != nil {
		return &Error{Op: "wait for the guest's process to end", Err: err}
	}
	return nil
}

// wait reports whether the process has ended, or ends within d.
func (p *Peer) wait(d time.Duration) (bool, error) {
	for end := time.Now().Add(d); ; {
		set := [1]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
		t := unix.NsecToTimespec(int64(max(0, time.Until(end))))
		n, err := unix.Ppoll(set[:], &t, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n > 0, err
	}
}

// Close gives the pidfd up. Guests that were given the Peer have ended before.
func (p *Peer) Close() error {
	var err error
	p.close.Do(func() { err = unix.Close(p.fd) })
	return err
}
