//go:build linux && amd64

package vfs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

// UserFault is a userfaultfd. What is read of it is up to the kernel, since a
// message can bring a descriptor.
type UserFault struct {
	Space    *guestmem.AddressSpace // immutable
	UserOnly bool                   // immutable
	Flags    int                    // O_CLOEXEC, O_NONBLOCK, as it was made with; immutable

	open    *Open // immutable
	mu      sync.Mutex
	monitor atomic.Pointer[guestmem.Monitor] // nil before the handshake; stored under mu
	told    atomic.Uint64
	queue   Queue
}

// NewUserFault returns a description. The monitor is nil before the handshake.
func NewUserFault(as *guestmem.AddressSpace, m *guestmem.Monitor, flags int, userOnly bool) *Open {
	u := &UserFault{Space: as, UserOnly: userOnly, Flags: flags & (unix.O_CLOEXEC | unix.O_NONBLOCK)}
	u.open = NewOpen(u, "anon_inode:[userfaultfd]", unix.O_RDONLY|flags&unix.O_NONBLOCK)
	if m != nil {
		u.use(m)
	}
	return u.open
}

func (u *UserFault) use(m *guestmem.Monitor) {
	u.monitor.Store(m)
	m.Notify(func() {
		u.told.Add(1)
		u.queue.Wake()
	})
}

// Negotiate makes the monitor. EINVAL if there is one.
func (u *UserFault) Negotiate(o guestmem.MonitorOptions) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.monitor.Load() != nil {
		return unix.EINVAL
	}
	m, err := u.Space.NewMonitor(o)
	if err != nil {
		return unix.EINVAL
	}
	u.use(m)
	return nil
}

// Monitor returns the monitor, nil before the handshake.
func (u *UserFault) Monitor() *guestmem.Monitor { return u.monitor.Load() }

func (u *UserFault) ReadAt([]byte, int64) (int, error)  { return 0, unix.EINVAL }
func (u *UserFault) WriteAt([]byte, int64) (int, error) { return 0, unix.EINVAL }

// Ready is POLLERR before the handshake, and for who could block.
func (u *UserFault) Ready() Events {
	m := u.monitor.Load()
	switch {
	case m == nil, u.open.Flags()&unix.O_NONBLOCK == 0:
		return unix.POLLERR
	case m.Readable():
		return unix.POLLIN
	}
	return 0
}

func (u *UserFault) Watch(ready chan<- struct{}) (stop func()) { return u.queue.Watch(ready) }

func (u *UserFault) EdgeSource() (EdgeSource, error) {
	return edges{&u.queue, u.told.Load, func() uint64 { return 0 }}, nil
}

func (u *UserFault) Stat() (unix.Stat_t, error) { return anonymousStat, nil }

func (u *UserFault) Close() error {
	if m := u.monitor.Load(); m != nil {
		m.Close()
	}
	u.queue.Wake()
	return nil
}
