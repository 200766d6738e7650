//go:build linux && amd64

package vfs

import (
	"encoding/binary"
	"math"
	"sync"

	"golang.org/x/sys/unix"
)

// eventFD is a counter that is read and written 8 bytes at a time.
type eventFD struct {
	semaphore bool // immutable: a read takes one, not all

	mu            sync.Mutex
	count         uint64 // guarded by mu
	reads, writes uint64 // guarded by mu

	queue Queue
}

// maxEventCount is one less than a write may add: reads and polls tell 2^64-1 apart.
const maxEventCount = math.MaxUint64 - 1

// NewEventFD is eventfd2(2). EINVAL for unknown flags.
func NewEventFD(initial uint32, flags int) (*Open, error) {
	if flags&^(unix.EFD_SEMAPHORE|unix.EFD_CLOEXEC|unix.EFD_NONBLOCK) != 0 {
		return nil, unix.EINVAL
	}
	e := &eventFD{semaphore: flags&unix.EFD_SEMAPHORE != 0, count: uint64(initial)}
	return NewOpen(e, "anon_inode:[eventfd]", unix.O_RDWR|flags&unix.EFD_NONBLOCK), nil
}

func (e *eventFD) ReadAt(p []byte, _ int64) (int, error) {
	if len(p) < 8 {
		return 0, unix.EINVAL
	}
	e.mu.Lock()
	n := e.count
	if n == 0 {
		e.mu.Unlock()
		return 0, unix.EAGAIN
	}
	if e.semaphore {
		n = 1
	}
	e.count -= n
	e.reads++
	e.mu.Unlock()
	binary.LittleEndian.PutUint64(p, n)
	e.queue.Wake()
	return 8, nil
}

func (e *eventFD) WriteAt(p []byte, _ int64) (int, error) {
	if len(p) < 8 {
		return 0, unix.EINVAL
	}
	n := binary.LittleEndian.Uint64(p)
	if n > maxEventCount {
		return 0, unix.EINVAL
	}
	e.mu.Lock()
	if n > maxEventCount-e.count {
		e.mu.Unlock()
		return 0, unix.EAGAIN
	}
	e.count += n
	e.writes++
	e.mu.Unlock()
	e.queue.Wake()
	return 8, nil
}

func (e *eventFD) Ready() (ev Events) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.count > 0 {
		ev |= unix.POLLIN
	}
	if e.count < maxEventCount {
		ev |= unix.POLLOUT
	}
	return ev
}

func (e *eventFD) Watch(ready chan<- struct{}) (stop func()) { return e.queue.Watch(ready) }

func (e *eventFD) EdgeSource() (EdgeSource, error) {
	of := func(n *uint64) func() uint64 {
		return func() uint64 {
			e.mu.Lock()
			defer e.mu.Unlock()
			return *n
		}
	}
	return edges{&e.queue, of(&e.writes), of(&e.reads)}, nil
}

func (e *eventFD) Stat() (unix.Stat_t, error) { return anonymousStat, nil }
func (e *eventFD) Close() error               { return nil }

// anonymousStat is what fstat says of a file without a type.
var anonymousStat = unix.Stat_t{Ino: 1, Mode: 0o600, Nlink: 1, Blksize: 4096}
