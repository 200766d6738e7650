//go:build linux && amd64

package vfs

import (
	"slices"

	"golang.org/x/sys/unix"
)

// Collect returns up to most of the files that have something to report, and
// notes that they have.
func (e *Epoll) Collect(most int) (list []Collected) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var reported []*epollItem
	rest := make([]*epollItem, 0, len(e.items))
	for _, i := range e.items {
		ready := uint32(0)
		if len(list) < most {
			ready = i.take()
		}
		if ready == 0 {
			rest = append(rest, i)
			continue
		}
		list = append(list, Collected{EpollEvent{ready, i.data}, i})
		reported = append(reported, i)
	}
	// The next call begins with the others: with more ready files than room for
	// them none is forgotten.
	e.items = append(rest, reported...)
	return list
}

// Return takes back what was collected and could not be told: it is said again, and
// first.
func (e *Epoll) Return(list []Collected) {
	e.mu.Lock()
	first := 0
	for _, ev := range list {
		if at := slices.Index(e.items, ev.item); at >= 0 {
			ev.item.armed, ev.item.fresh = true, true
			e.items = slices.Insert(slices.Delete(e.items, at, at+1), first, ev.item)
			first++
		}
	}
	e.mu.Unlock()
	e.queue.Wake()
}

// look returns what the item would report.
func (i *epollItem) look() (ready uint32, seen uint64) {
	if !i.armed {
		return 0, 0
	}
	wanted := Events(i.events)
	if i.events&epollET != 0 {
		// The count comes first: what happens between the two is seen again.
		if seen = i.source.Edges(wanted); !i.fresh && seen == i.seen {
			return 0, seen
		}
	}
	return uint32(withNorm(i.key.open.Ready()) & wanted), seen
}

// take is look, and what it says is not said again where it should not be.
func (i *epollItem) take() uint32 {
	ready, seen := i.look()
	if !i.armed {
		return 0
	}
	i.seen, i.fresh = seen, false
	if ready != 0 && i.events&unix.EPOLLONESHOT != 0 {
		i.armed = false
	}
	return ready
}

// withNorm adds POLLRDNORM and POLLWRNORM, which say the same as the others.
func withNorm(ev Events) Events {
	if ev&unix.POLLIN != 0 {
		ev |= pollRDNorm
	}
	if ev&unix.POLLOUT != 0 {
		ev |= pollWRNorm
	}
	return ev
}

// Ready makes a set of sets possible, and poll on one.
func (e *Epoll) Ready() Events {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, i := range e.items {
		if ready, _ := i.look(); ready != 0 {
			return unix.POLLIN
		}
	}
	return 0
}

// Watch watches every file that is in the set now, and the set.
func (e *Epoll) Watch(ready chan<- struct{}) (stop func()) {
	stops := []func(){e.queue.Watch(ready)}
	e.mu.Lock()
	for _, i := range e.items {
		switch {
		case !i.armed:
		case i.events&epollET != 0:
			stops = append(stops, i.source.Watch(ready))
		default:
			stops = append(stops, i.key.open.Watch(ready))
		}
	}
	e.mu.Unlock()
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// EdgeSource has no count of its own: a set in a set is looked at each time.
func (e *Epoll) EdgeSource() (EdgeSource, error) {
	n := uint64(0)
	return edges{&e.queue, func() uint64 { n++; return n }, never}, nil
}
