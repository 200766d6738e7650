//go:build linux && amd64

package vfs

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Epoll is a set of files to wait for. It asks each file when it is asked
// itself: O(files) for each wait, and nothing in between.
//
// A file leaves the set when its description is closed, as under Linux: the
// set holds no reference, but a hook of the description (Open.onClose), which
// takes mu before the file is closed. So a file in the set may be used under mu.
type Epoll struct {
	mu    sync.Mutex
	items []*epollItem // guarded by mu; who was reported last is last

	queue Queue // woken when the set changes

	// How many sets are in this one, and in how many it is; guarded by epollTie.
	// Only one of them is ever above 0: where Linux allows five storeys and
	// counts paths, two keep a look at the set from taking for ever.
	inner, outer int
}

type epollItem struct {
	key    epollKey
	events uint32 // as epoll_ctl got them
	data   uint64
	armed  bool // false: EPOLLONESHOT has reported

	source EdgeSource // nil unless EPOLLET
	fresh  bool       // added or changed since it was last looked at
	seen   uint64     // source's edges then
	unhook func()
}

// epollKey is what Linux tells files in a set apart by.
type epollKey struct {
	fd   int
	open *Open
}

// EpollEvent is what epoll_ctl sets, and what is told of a file.
type EpollEvent struct {
	Events uint32
	Data   uint64
}

// Collected is what Collect reports of a file.
type Collected struct {
	EpollEvent
	item *epollItem
}

const (
	epollAlways = unix.EPOLLERR | unix.EPOLLHUP
	epollET     = 1 << 31

	// maxWatched bounds what all sets together hold: ENOSPC, as
	// /proc/sys/fs/epoll/max_user_watches.
	maxWatched = 1 << 16
)

var (
	watched  atomic.Int64
	epollTie sync.Mutex // outside of Epoll.mu
)

// NewEpoll returns a description of an empty set.
func NewEpoll() *Open { return NewOpen(new(Epoll), "anon_inode:[eventpoll]", unix.O_RDWR) }

// Control is epoll_ctl(2) on a descriptor fd that o lies behind. EEXIST,
// ENOENT, EPERM for a file that is always ready, EINVAL, ELOOP, ENOSPC.
func (e *Epoll) Control(op, fd int, o *Open, ev EpollEvent) error {
	if o.File == File(e) {
		return unix.EINVAL
	}
	if _, ok := o.File.(Waitable); !ok {
		return unix.EPERM
	}
	if s, ok := o.File.(*stream); ok && s.regular {
		return unix.EPERM
	}
	switch op {
	case unix.EPOLL_CTL_ADD:
		return e.add(epollKey{fd, o}, ev)
	case unix.EPOLL_CTL_MOD:
		return e.modify(epollKey{fd, o}, ev)
	case unix.EPOLL_CTL_DEL:
		if !e.remove(epollKey{fd, o}) {
			return unix.ENOENT
		}
		return nil
	}
	return unix.EINVAL
}

func (e *Epoll) add(key epollKey, ev EpollEvent) error {
	inner, isSet := key.open.File.(*Epoll)
	if isSet {
		epollTie.Lock()
		defer epollTie.Unlock()
		if inner.inner > 0 || e.outer > 0 {
			return unix.ELOOP
		}
	}
	if watched.Add(1) > maxWatched {
		watched.Add(-1)
		return unix.ENOSPC
	}
	item := &epollItem{key: key}
	err := item.set(ev)
	if err == nil {
		err = e.insert(item)
	}
	if err != nil {
		item.close()
		return err
	}
	if isSet {
		e.inner++
		inner.outer++
	}
	e.queue.Wake()
	return nil
}

func (e *Epoll) insert(item *epollItem) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.indexLocked(item.key) >= 0 {
		return unix.EEXIST
	}
	item.unhook = item.key.open.onClose(func() { e.remove(item.key) })
	e.items = append(e.items, item)
	return nil
}

func (e *Epoll) modify(key epollKey, ev EpollEvent) error {
	defer e.queue.Wake()
	e.mu.Lock()
	defer e.mu.Unlock()
	i := e.indexLocked(key)
	if i < 0 {
		return unix.ENOENT
	}
	return e.items[i].set(ev)
}

// remove takes a file out of the set and reports whether it was in it.
func (e *Epoll) remove(key epollKey) bool {
	e.mu.Lock()
	i := e.indexLocked(key)
	if i < 0 {
		e.mu.Unlock()
		return false
	}
	item := e.items[i]
	e.items = slices.Delete(e.items, i, i+1)
	e.mu.Unlock()
	e.untie(item)
	item.close()
	e.queue.Wake()
	return true
}

// untie counts a set that has been taken out of another.
func (e *Epoll) untie(i *epollItem) {
	if inner, ok := i.key.open.File.(*Epoll); ok {
		epollTie.Lock()
		defer epollTie.Unlock()
		e.inner--
		inner.outer--
	}
}

func (e *Epoll) indexLocked(key epollKey) int {
	return slices.IndexFunc(e.items, func(i *epollItem) bool { return i.key == key })
}

// set takes over what epoll_ctl says.
func (i *epollItem) set(ev EpollEvent) error {
	if ev.Events&epollET != 0 && i.source == nil {
		edged, ok := i.key.open.File.(interface{ EdgeSource() (EdgeSource, error) })
		if !ok {
			return unix.EPERM
		}
		source, err := edged.EdgeSource()
		if err != nil {
			return err
		}
		i.source = source
	}
	i.events, i.data, i.armed, i.fresh = ev.Events|epollAlways, ev.Data, true, true
	return nil
}

// close gives back what an item holds that is in no set any more.
func (i *epollItem) close() {
	if i.unhook != nil {
		i.unhook()
	}
	if i.source != nil {
		i.source.Close()
	}
	watched.Add(-1)
}

func (e *Epoll) ReadAt([]byte, int64) (int, error)  { return 0, unix.EINVAL }
func (e *Epoll) WriteAt([]byte, int64) (int, error) { return 0, unix.EINVAL }
func (e *Epoll) Stat() (unix.Stat_t, error)         { return anonymousStat, nil }

// Close empties the set.
func (e *Epoll) Close() error {
	e.mu.Lock()
	items := e.items
	e.items = nil
	e.mu.Unlock()
	for _, i := range items {
		e.untie(i)
		i.close()
	}
	return nil
}
