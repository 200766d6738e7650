//go:build linux && amd64

package kernel

import (
	"encoding/binary"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
)

// polled is one descriptor that a call asks about.
type polled struct {
	fd     int
	events vfs.Events // wanted; POLLERR, POLLHUP and POLLNVAL come unasked
	ready  vfs.Events
}

// What x/sys does not name.
const pollRDNorm, pollWRNorm = 0x40, 0x100

const alwaysPolled = unix.POLLERR | unix.POLLHUP | unix.POLLNVAL

func sysPoll(t *Task, a args) (uint64, error) {
	var deadline time.Time
	if ms := int32(a[2]); ms >= 0 {
		deadline = t.deadlineIn(time.Duration(ms) * time.Millisecond)
	}
	return t.poll(a[0], a[1], deadline)
}

func sysPpoll(t *Task, a args) (uint64, error) {
	deadline, err := t.timeoutAt(a[2])
	if err != nil {
		return 0, err
	}
	if err := t.maskAt(a[3], a[4]); err != nil {
		return 0, err
	}
	n, err := t.poll(a[0], a[1], deadline)
	return n, t.endMask(err)
}

// endMask brings the mask of before back at once, unless a signal has ended the
// wait: that one is to be delivered under the mask that let it through. (EINTR is
// epoll's, which does not start over.)
func (t *Task) endMask(err error) error {
	if err != errInterruptedNoHandler && err != unix.EINTR && t.suspended.active {
		t.suspended.active = false
		t.setMask(t.suspended.mask)
	}
	return err
}

// maskAt sets the mask of a call that waits with one of its own; at 0 none.
func (t *Task) maskAt(at, size uint64) error {
	if at == 0 {
		return nil
	}
	if size != 8 {
		return unix.EINVAL
	}
	s, err := get[uint64](t, at)
	if err != nil {
		return err
	}
	t.waitWithMask(s)
	return nil
}

func (t *Task) poll(at, n uint64, deadline time.Time) (uint64, error) {
	if n > maxFiles {
		return 0, unix.EINVAL
	}
	raw := make([]byte, n*8)
	if err := t.readGuest(raw, at); err != nil {
		return 0, err
	}
	list := make([]polled, n)
	for i := range list {
		list[i].fd = int(int32(binary.LittleEndian.Uint32(raw[i*8:])))
		list[i].events = vfs.Events(binary.LittleEndian.Uint16(raw[i*8+4:])) | alwaysPolled
	}
	count, err := t.waitPolled(list, deadline)
	if err != nil {
		return 0, err
	}
	for i := range list {
		binary.LittleEndian.PutUint16(raw[i*8+6:], uint16(list[i].ready))
	}
	return uint64(count), t.writeGuest(raw, at)
}

func sysSelect(t *Task, a args) (uint64, error) {
	var deadline time.Time
	if a[4] != 0 {
		tv, err := get[unix.Timeval](t, a[4])
		if err != nil {
			return 0, err
		}
		if tv.Sec < 0 || tv.Usec < 0 {
			return 0, unix.EINVAL
		}
		deadline = t.deadlineIn(clampDuration(tv.Sec, tv.Usec*1000))
	}
	return t.selectFDs(a, deadline)
}

func sysPselect6(t *Task, a args) (uint64, error) {
	deadline, err := t.timeoutAt(a[4])
	if err != nil {
		return 0, err
	}
	if a[5] != 0 {
		mask, err := get[[2]uint64](t, a[5])
		if err != nil {
			return 0, err
		}
		if err := t.maskAt(mask[0], mask[1]); err != nil {
			return 0, err
		}
	}
	n, err := t.selectFDs(a, deadline)
	return n, t.endMask(err)
}

// selectFDs is select over the three sets of a[1] to a[3].
func (t *Task) selectFDs(a args, deadline time.Time) (uint64, error) {
	if int32(a[0]) < 0 {
		return 0, unix.EINVAL
	}
	n := min(int(int32(a[0])), maxFiles)
	kinds := [3]vfs.Events{unix.POLLIN | unix.POLLHUP | unix.POLLERR, unix.POLLOUT | unix.POLLERR, unix.POLLPRI}
	var sets [3][]byte
	var list []polled
	var origin [][2]int // set and descriptor of each in list
	for i := range sets {
		if a[1+i] == 0 {
			continue
		}
		sets[i] = make([]byte, (n+63)/64*8)
		if err := t.readGuest(sets[i], a[1+i]); err != nil {
			return 0, err
		}
		for fd := range n {
			if sets[i][fd/8]&(1<<(fd%8)) != 0 {
				list = append(list, polled{fd: fd, events: kinds[i]})
				origin = append(origin, [2]int{i, fd})
			}
		}
		clear(sets[i])
	}
	for _, p := range list {
		o, err := t.files.get(p.fd)
		if err != nil {
			return 0, err
		}
		o.Unref()
	}
	count, err := t.waitPolled(list, deadline)
	if err != nil {
		return 0, err
	}
	for i, p := range list {
		if p.ready != 0 {
			sets[origin[i][0]][origin[i][1]/8] |= 1 << (origin[i][1] % 8)
		}
	}
	for i := range sets {
		if sets[i] != nil {
			if err := t.writeGuest(sets[i], a[1+i]); err != nil {
				return 0, err
			}
		}
	}
	return uint64(count), nil
}

// waitPolled waits until one of list is ready, or the deadline (zero: none).
// EINTR on a signal, whatever SA_RESTART says.
func (t *Task) waitPolled(list []polled, deadline time.Time) (count int, err error) {
	opens := make([]*vfs.Open, len(list))
	for i := range list {
		if list[i].fd >= 0 {
			opens[i], _ = t.files.get(list[i].fd)
		}
	}
	defer func() {
		for _, o := range opens {
			if o != nil {
				o.Unref()
			}
		}
	}()
	if count = checkPolled(list, opens); count > 0 {
		return count, nil
	}
	timer, stopTimer := timerChannel(deadline)
	defer stopTimer()
	ready := make(chan struct{}, 1)
	for {
		var stops []func()
		for _, o := range opens {
			if o != nil {
				stops = append(stops, o.Watch(ready))
			}
		}
		count = checkPolled(list, opens)
		if count == 0 {
			err = t.sleep(ready, timer)
		}
		for _, stop := range stops {
			stop()
		}
		switch {
		case count > 0:
			return count, nil
		case err == errTimeout:
			return checkPolled(list, opens), nil
		case err != nil:
			return 0, errInterruptedNoHandler
		}
	}
}

// checkPolled fills in what is ready and counts.
func checkPolled(list []polled, opens []*vfs.Open) (count int) {
	for i := range list {
		p := &list[i]
		switch {
		case p.fd < 0:
			continue
		case opens[i] == nil:
			p.ready = unix.POLLNVAL
		default:
			p.ready = opens[i].Ready()
			if p.ready&unix.POLLIN != 0 {
				p.ready |= pollRDNorm
			}
			if p.ready&unix.POLLOUT != 0 {
				p.ready |= pollWRNorm
			}
		}
		if p.ready &= p.events; p.ready != 0 {
			count++
		}
	}
	return count
}
