//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

const (
	// epollSize is that of struct epoll_event, which x86-64 packs.
	epollSize = 12

	// maxEpollEvents is how many one wait returns at most; the rest stays for the next.
	maxEpollEvents = 4096
)

func sysEpollCreate(t *Task, a args) (uint64, error) {
	if int32(a[0]) <= 0 {
		return 0, unix.EINVAL
	}
	return sysEpollCreate1(t, args{})
}

func sysEpollCreate1(t *Task, a args) (uint64, error) {
	if a[0]&^unix.EPOLL_CLOEXEC != 0 {
		return 0, unix.EINVAL
	}
	return t.addFile(vfs.NewEpoll(), int(a[0]))
}

// addFile gives a new description a descriptor. It takes over o.
func (t *Task) addFile(o *vfs.Open, flags int) (uint64, error) {
	fd, err := t.files.add(o, 0, flags)
	return uint64(fd), err
}

// epoll returns the set behind a descriptor, with a reference of the caller's.
func (t *Task) epoll(fd uint64) (*vfs.Epoll, *vfs.Open, error) {
	o, err := t.files.get(int(int32(fd)))
	if err != nil {
		return nil, nil, err
	}
	e, ok := o.File.(*vfs.Epoll)
	if !ok {
		o.Unref()
		return nil, nil, unix.EINVAL
	}
	return e, o, nil
}

func sysEpollCtl(t *Task, a args) (uint64, error) {
	var ev vfs.EpollEvent
	if int32(a[1]) != unix.EPOLL_CTL_DEL {
		var raw [epollSize]byte
		if err := t.readGuest(raw[:], a[3]); err != nil {
			return 0, err
		}
		ev.Events, ev.Data = binary.LittleEndian.Uint32(raw[:]), binary.LittleEndian.Uint64(raw[4:])
	}
	target, err := t.files.get(int(int32(a[2])))
	if err != nil {
		return 0, err
	}
	defer target.Unref()
	e, o, err := t.epoll(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	return 0, e.Control(int(int32(a[1])), int(int32(a[2])), target, ev)
}

func sysEpollWait(t *Task, a args) (uint64, error) {
	var deadline time.Time
	if ms := int32(a[3]); ms >= 0 {
		deadline = time.Now().Add(time.Duration(ms) * time.Millisecond)
	}
	return t.epollWait(a, deadline)
}

func sysEpollPwait(t *Task, a args) (uint64, error) {
	if err := t.maskAt(a[4], a[5]); err != nil {
		return 0, err
	}
	n, err := sysEpollWait(t, a)
	return n, t.endMask(err)
}

func sysEpollPwait2(t *Task, a args) (uint64, error) {
	deadline, err := t.timeoutAt(a[3])
	if err != nil {
		return 0, err
	}
	if err := t.maskAt(a[4], a[5]); err != nil {
		return 0, err
	}
	n, err := t.epollWait(a, deadline)
	return n, t.endMask(err)
}

// epollWait waits until the set has something to report, or the deadline (zero: none).
func (t *Task) epollWait(a args, deadline time.Time) (uint64, error) {
	e, o, err := t.epoll(a[0])
	if err != nil {
		return 0, err
	}
	defer o.Unref()
	most := int32(a[2])
	if most <= 0 {
		return 0, unix.EINVAL
	}
	if err := accessible(a[1], uint64(most)*epollSize); err != nil {
		return 0, err
	}
	list, err := t.waitEpoll(e, min(int(most), maxEpollEvents), deadline)
	if err != nil {
		return 0, err
	}
	raw := make([]byte, len(list)*epollSize)
	for i, ev := range list {
		binary.LittleEndian.PutUint32(raw[i*epollSize:], ev.Events)
		binary.LittleEndian.PutUint64(raw[i*epollSize+4:], ev.Data)
	}
	if err := t.writeGuest(raw, a[1]); err == nil {
		return uint64(len(list)), nil
	}
	for i := range list {
		if err := t.writeGuest(raw[i*epollSize:(i+1)*epollSize], a[1]+uint64(i*epollSize)); err != nil {
			e.Return(list[i:])
			return partial(uint64(i), err)
		}
	}
	return uint64(len(list)), nil
}

func (t *Task) waitEpoll(e *vfs.Epoll, most int, deadline time.Time) (list []vfs.Collected, err error) {
	if list = e.Collect(most); len(list) > 0 || isPast(deadline) {
		return list, nil
	}
	timer, stopTimer := timerChannel(deadline)
	defer stopTimer()
	ready := make(chan struct{}, 1)
	for {
		stop := e.Watch(ready)
		if list = e.Collect(most); len(list) == 0 {
			err = t.sleep(ready, timer)
		}
		stop()
		switch {
		case len(list) > 0:
			return list, nil
		case err == errTimeout:
			return e.Collect(most), nil
		case err != nil:
			// EINTR even without a handler, unlike poll: programs expect it.
			return nil, unix.EINTR
		}
	}
}

// isPast reports whether there is a deadline and it is over.
func isPast(deadline time.Time) bool { return !deadline.IsZero() && !time.Now().Before(deadline) }
