//go:build linux && amd64

package kernel

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// maxFiles is the most that RLIMIT_NOFILE can be.
const maxFiles = 1024

// fdTable maps descriptors to descriptions. CLONE_FILES shares it.
type fdTable struct {
	mu    sync.Mutex
	users int          // guarded by mu
	slots map[int]slot // guarded by mu
	most  int          // RLIMIT_NOFILE, of whoever set it last; guarded by mu

	locks      *fileLocks // immutable
	holdsLocks atomic.Bool
}

type slot struct {
	open    *vfs.Open
	cloexec bool
}

func newFDTable(locks *fileLocks) *fdTable {
	return &fdTable{users: 1, slots: make(map[int]slot), most: maxFiles, locks: locks}
}

// closed lets go of a description that the table has had, and, as Linux does, of every
// lock of the table's on its file.
func (f *fdTable) closed(o *vfs.Open) {
	if f.holdsLocks.Load() {
		if key, err := keyOf(o, false); err == nil {
			f.locks.drop(f, func(k fileKey) bool { return k == key })
		}
	}
	o.Unref()
}

func (f *fdTable) ref() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.users++
}

// release drops a user; the last one closes everything.
func (f *fdTable) release() {
	f.mu.Lock()
	f.users--
	var slots map[int]slot
	if f.users == 0 {
		slots, f.slots = f.slots, nil
	}
	f.mu.Unlock()
	for _, s := range slots {
		f.closed(s.open)
	}
}

// clone is fork's: other descriptors of the same descriptions.
func (f *fdTable) clone() *fdTable {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := newFDTable(f.locks)
	c.most = f.most
	for fd, s := range f.slots {
		s.open.Ref()
		c.slots[fd] = s
	}
	return c
}

// afterExec returns a table of the caller's own without what closes on exec.
func (f *fdTable) afterExec() *fdTable {
	f.mu.Lock()
	shared := f.users > 1
	f.mu.Unlock()
	if shared {
		own := f.clone()
		f.release()
		f = own
	}
	var closing []*vfs.Open
	f.mu.Lock()
	for fd, s := range f.slots {
		if s.cloexec {
			closing = append(closing, s.open)
			delete(f.slots, fd)
		}
	}
	f.mu.Unlock()
	for _, o := range closing {
		f.closed(o)
	}
	return f
}

// get returns the description with a reference of the caller's. EBADF.
func (f *fdTable) get(fd int) (*vfs.Open, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.slots[fd]
	if !ok {
		return nil, unix.EBADF
	}
	return s.open.Ref(), nil
}

// add takes over a reference and puts it at the lowest free descriptor from
// min on. EMFILE, and the reference is dropped, if there is none.
func (f *fdTable) add(o *vfs.Open, min, flags int) (int, error) {
	f.mu.Lock()
	for fd := min; fd < f.most; fd++ {
		if _, taken := f.slots[fd]; !taken {
			f.slots[fd] = slot{o, flags&unix.O_CLOEXEC != 0}
			f.mu.Unlock()
			return fd, nil
		}
	}
	f.mu.Unlock()
	o.Unref()
	return 0, unix.EMFILE
}

// limit sets how many descriptors there may be. Those that are open stay.
func (f *fdTable) limit(most int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.most = most
}

// allows reports whether a descriptor may be opened.
func (f *fdTable) allows(fd uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fd < uint64(f.most)
}

// set is dup2: it takes over a reference and closes what was there.
func (f *fdTable) set(fd int, o *vfs.Open, flags int) {
	f.mu.Lock()
	old, taken := f.slots[fd]
	f.slots[fd] = slot{o, flags&unix.O_CLOEXEC != 0}
	f.mu.Unlock()
	if taken {
		f.closed(old.open)
	}
}

func (f *fdTable) close(fd int) error {
	f.mu.Lock()
	s, ok := f.slots[fd]
	delete(f.slots, fd)
	f.mu.Unlock()
	if !ok {
		return unix.EBADF
	}
	f.closed(s.open)
	return nil
}

// takeBack undoes add, unless another thread has closed or replaced the
// descriptor meanwhile.
func (f *fdTable) takeBack(fd int, o *vfs.Open) {
	f.mu.Lock()
	mine := f.slots[fd].open == o
	if mine {
		delete(f.slots, fd)
	}
	f.mu.Unlock()
	if mine {
		o.Unref()
	}
}

// cloexec returns and, by change, sets the close-on-exec flag.
func (f *fdTable) cloexec(fd int, change func(bool) bool) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s, ok := f.slots[fd]
	if !ok {
		return false, unix.EBADF
	}
	was := s.cloexec
	s.cloexec = change(was)
	f.slots[fd] = s
	return was, nil
}

// names lists the open descriptors in no order.
func (f *fdTable) names() (fds []int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for fd := range f.slots {
		fds = append(fds, fd)
	}
	return fds
}
