package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/uffd"
)

// A waiter sleeps until a userfaultfd has something, its process has ended, or
// somebody pokes it. (uffd.Waiter reads as well; here the read has to be one
// step with what is done about it.)
type waiter struct {
	fd   int    // borrowed from the ledger
	peer int    // a pidfd, borrowed; -1: none
	id   fileID // of fd; immutable

	mu     sync.Mutex
	wakeFD int // an eventfd; -1 when closed; guarded by mu for pokes
	timer  *time.Timer
}

func newWaiter(fd int, peer *Peer) (*waiter, error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w := &waiter{fd: fd, peer: -1, wakeFD: wake, id: identify(fd, wake)}
	if peer != nil {
		w.peer = peer.fd
	}
	return w, nil
}

// identify returns the identity of a userfaultfd. Each has an inode of its own from
// Linux 5.12 on; before, they share that of all anonymous files, such as eventfd.
func identify(fd, eventfd int) fileID {
	var mine, all unix.Stat_t
	if unix.Fstat(fd, &mine) != nil || unix.Fstat(eventfd, &all) != nil || mine.Dev == all.Dev && mine.Ino == all.Ino {
		return fileID{}
	}
	return fileID{uint64(mine.Dev), mine.Ino}
}

// wait returns when there is something to read, after a poke, and after timeout
// unless it is negative. peer says that the process has ended and that nothing
// is left to read. It is called by one goroutine only.
func (w *waiter) wait(timeout time.Duration) (peer bool, err error) {
	set := [3]unix.PollFd{
		{Fd: int32(w.fd), Events: unix.POLLIN},
		{Fd: int32(w.wakeFD), Events: unix.POLLIN},
		{Fd: int32(w.peer), Events: unix.POLLIN}, // negative: ignored
	}
	var ts *unix.Timespec
	if timeout >= 0 {
		t := unix.NsecToTimespec(int64(timeout))
		ts = &t
	}
	n, err := unix.Ppoll(set[:], ts, nil)
	if errors.Is(err, unix.EINTR) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("poll: %w", err)
	}
	if n > 0 && set[1].Revents != 0 {
		var count [8]byte
		_, _ = unix.Read(w.wakeFD, count[:]) // EAGAIN: somebody else's poke
	}
	switch {
	case set[0].Revents&unix.POLLERR != 0 && w.unblock():
		return false, nil
	case set[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0:
		return false, fmt.Errorf("the userfaultfd polls as broken (%#x): %w", set[0].Revents, unix.EIO)
	case set[2].Revents&unix.POLLNVAL != 0:
		return false, fmt.Errorf("the pidfd: %w", unix.EBADF)
	}
	return set[2].Revents != 0 && set[0].Revents == 0, nil
}

// unblock puts O_NONBLOCK back, without which a userfaultfd polls as broken, and
// reports whether it was missing. Whoever shares the descriptor can take it off.
func (w *waiter) unblock() bool {
	flags, err := unix.FcntlInt(uintptr(w.fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK != 0 {
		return false
	}
	_, err = unix.FcntlInt(uintptr(w.fd), unix.F_SETFL, flags|unix.O_NONBLOCK)
	return err == nil
}

// poke has wait return soon, now or when it is called next.
func (w *waiter) poke() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wakeFD < 0 {
		return
	}
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(w.wakeFD, one[:]) // EAGAIN: it is readable as it is
}

// pokeIn pokes after d.
func (w *waiter) pokeIn(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.wakeFD < 0 {
		return
	}
	if w.timer != nil {
		w.timer.Stop()
	}
	w.timer = time.AfterFunc(d, w.poke)
}

// close gives the eventfd up. Nobody is in wait.
func (w *waiter) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.wakeFD >= 0 {
		unix.Close(w.wakeFD)
		w.wakeFD = -1
	}
}

// hearsRemovals reports whether the kernel tells when memory is given back.
func hearsRemovals(fd *uffd.FD) bool { return fd.Features().Has(uffd.FeatureEventRemove) }

// sleepShort sleeps for less than the millisecond that the runtime's timers
// come in while nothing else runs: a thread of its own does. (nanosleep(2))
func sleepShort(d time.Duration) {
	t := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&t, nil) // EINTR: early is as well
}
