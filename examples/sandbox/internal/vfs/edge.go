//go:build linux && amd64

package vfs

import (
	"sync"

	"golang.org/x/sys/unix"
)

// EdgeSource counts what an edge-triggered epoll reports once each: every time
// that somebody made a file ready for more.
type EdgeSource interface {
	// Edges returns how often any of the wanted events may have come about so far.
	Edges(wanted Events) uint64
	// Watch is Waitable.Watch, except that what is ready already does not hide
	// what comes on top of it.
	Watch(ready chan<- struct{}) (stop func())
	Close()
}

// edges counts for a file whose Queue is woken at each change.
type edges struct {
	queue   *Queue
	in, out func() uint64
}

func (e edges) Edges(wanted Events) uint64 {
	in, out := wanted&(unix.POLLIN|pollRDNorm) != 0, wanted&(unix.POLLOUT|pollWRNorm) != 0
	switch {
	case in && !out:
		return e.in()
	case out && !in:
		return e.out()
	}
	return e.in() + e.out() // both, or nothing but the end of the other side
}

func (e edges) Watch(ready chan<- struct{}) (stop func()) { return e.queue.Watch(ready) }
func (e edges) Close()                                    {}

// What x/sys does not name.
const pollRDNorm, pollWRNorm = 0x40, 0x100

// hostEdges has the host's own epoll count for a descriptor of the host.
type hostEdges struct {
	epfd int // immutable

	mu    sync.Mutex
	count uint64 // guarded by mu
}

func newHostEdges(fd int) (*hostEdges, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&(1<<32-1), Fd: int32(fd)}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, fd, &ev); err != nil {
		unix.Close(epfd)
		return nil, err
	}
	return &hostEdges{epfd: epfd}, nil
}

// Edges takes what the host reports. It cannot tell one direction from the
// other: a report too many is what edge-triggered programs must bear anyway.
func (h *hostEdges) Edges(Events) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	var evs [1]unix.EpollEvent
	if n, _ := retry(func() (int, error) { return unix.EpollWait(h.epfd, evs[:], 0) }); n > 0 {
		h.count++
	}
	return h.count
}

func (h *hostEdges) Watch(ready chan<- struct{}) (stop func()) {
	return watchFD(h.epfd, unix.POLLIN, ready)
}

func (h *hostEdges) Close() { unix.Close(h.epfd) }
