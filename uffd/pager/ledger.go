package pager

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// A ledger is what must outlive a server: the descriptor, which pages are
// where, and what is known of each. Guests that serve it come and go.
//
// # The gate
//
// The kernel orders layout events and installs only as long as an event has not
// been read: until then an install answers EAGAIN. The read itself lets the
// thread that removes memory go on. So between read(2) returning a REMOVE and
// its pages being marked, an install of what was read from the image before
// would succeed, and the guest would see the image where it must see zeroes:
//
//	reader                     worker                     guest
//	read → REMOVE of p
//	                                                      zaps p
//	                           p is filling: Copy(p)
//	marks p removed                                       reads the image's bytes
//
// Hence the gate. An install and the record of it are one step under the
// shared side; taking events out of the kernel and marking what they changed
// is one step under the exclusive side. Read never blocks, and no system call
// made under the gate waits for an event to be read (the kernel drops mmap_lock
// before it waits for one), so nobody waits for the gate longer than for one
// copy of 64 KiB or one huge page.
//
// A REMOVE that has been read while its thread has not zapped yet needs nothing
// more: what is installed between is zapped with the rest, the page is removed
// here, and its next fault is answered by zeroes.
//
// # Dying
//
// The goroutine that serves may die at any point. What it had taken from the
// kernel is in batch, from marked to taken; whoever takes over marks it before
// it installs anything (events are written down ahead of all else). A page
// installed and not recorded answers EEXIST to the next. Claims of the dead are
// given back, and everybody who waits is woken: their faults come again.
type ledger struct {
	name    string
	k       kernel
	regions []*region // immutable
	layout  atomic.Pointer[layout]
	shared  *shared // the states are in a file; immutable once served
	// removals: the kernel tells when memory is given back.
	removals bool // immutable

	gate sync.RWMutex
	// The rest is guarded by gate, exclusively held for writing.
	owner  *Guest // who may install; nil: nobody does
	batch  [eventBatch]uffd.Event
	taken  int // events in batch
	marked int // of them, dealt with
	wakes  []addrRange
	forks  []*ledger
	vacant []addrRange // left by moves, of which the kernel is to tell as unmapped
	closed bool
	served bool // by somebody, before or now
}

// eventBatch is how many events are read at a time. Faults are read one system
// call each by the kernel's queue anyway; this only saves entries.
const eventBatch = 32

type addrRange struct{ start, end addr.HVA }

func newLedger(name string, k kernel, regions []Region) *ledger {
	l := &ledger{name: name, k: k}
	var spans []span
	for i, r := range regions {
		nr := newRegion(r, i)
		l.regions = append(l.regions, nr)
		spans = append(spans, span{r.Start, nr, 0, nr.pages.n})
	}
	l.layout.Store(newLayout(spans, len(regions)))
	return l
}

// forked returns a ledger for a child that has just been forked: the same
// pages at the same places, each as it is now.
func (l *ledger) forked(k kernel) *ledger {
	c := &ledger{name: l.name + " (forked)", k: k, removals: l.removals}
	for _, r := range l.regions {
		nr := &region{Region: r.Region, index: r.index, shift: r.shift, pages: r.pages.clone()}
		if nr.Of = nil; nr.Arming == ArmForSnapshots {
			nr.Arming = NotArmed // nobody takes snapshots of the child
		}
		c.regions = append(c.regions, nr)
	}
	var spans []span
	for _, s := range l.layout.Load().spans {
		s.r = c.regions[s.r.index]
		spans = append(spans, s)
	}
	c.layout.Store(newLayout(spans, len(c.regions)))
	return c
}

// unsettled returns how many pages are neither there nor given back.
func (l *ledger) unsettled() (n int64) {
	for _, r := range l.regions {
		n += r.pages.unsettled.Load()
	}
	return n
}

// close gives the descriptor up. The guest cannot run any more, or has all of
// its pages.
func (l *ledger) close() {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.closed {
		return
	}
	l.closed, l.owner = true, nil
	for _, c := range l.forks {
		// Children that nobody serves. Where pages cannot be poisoned (before
		// Linux 6.6) their descriptors stay open for good: who waits, waits.
		if c.poison() {
			c.close()
		}
	}
	l.k.Close()
}

// mark records what the events taken from the kernel changed. st counts them.
//
// Preconditions:
//   - the gate is held exclusively.
func (l *ledger) mark(st *Stats) (problem error) {
	for ; l.marked < l.taken; l.marked++ {
		ev := &l.batch[l.marked]
		if err := l.markOne(ev, st); err != nil && problem == nil {
			problem = err
		}
	}
	return problem
}

func (l *ledger) markOne(ev *uffd.Event, st *Stats) error {
	switch ev.Kind {
	case uffd.EventFault:
	case uffd.EventRemove:
		st.Removes.Inc()
		if l.forget(ev.Start, ev.End, st) == 0 {
			st.Strays.Inc()
			return &Error{Op: ev.String(), Guest: l.name, Err: ErrStrayEvent}
		}
	case uffd.EventUnmap:
		// What has moved away is unmapped afterwards at its old place: that is
		// for nothing of ours, and no fault of anybody's. Another thread may have
		// moved something there by then, which stays.
		st.Unmaps.Inc()
		if i := slices.Index(l.vacant, addrRange{ev.Start, ev.End}); i >= 0 {
			l.vacant = slices.Delete(l.vacant, i, i+1)
			return nil
		}
		l.forget(ev.Start, ev.End, st)
		l.layout.Store(l.layout.Load().without(ev.Start, ev.End))
		l.wakes = append(l.wakes, addrRange{ev.Start, ev.End})
	case uffd.EventRemap:
		l.shared.cannotFollow()
		st.Remaps.Inc()
		old, length := l.layout.Load(), ev.Len
		if l.isOutOfOrder(old, ev) {
			st.Strays.Inc()
			return &Error{Op: ev.String(), Guest: l.name, Err: fmt.Errorf("%w: it is not known yet that what was there has gone", ErrStrayEvent)}
		}
		if l.hearsUnmaps() && len(l.vacant) < maxVacant {
			l.vacant = append(l.vacant, addrRange{ev.From, ev.From + addr.HVA(length)})
		}
		l.forgetReplaced(ev, st)
		l.layout.Store(old.moved(ev.From, ev.To, length))
		l.wakes = append(l.wakes, addrRange{ev.From, ev.From + addr.HVA(length)})
		if len(old.within(ev.From, ev.From+addr.HVA(length))) == 0 {
			st.Strays.Inc()
			return &Error{Op: ev.String(), Guest: l.name, Err: ErrStrayEvent}
		}
	case uffd.EventFork:
		l.shared.cannotFollow()
		st.Forks.Inc()
		l.forks = append(l.forks, l.forked(ev.Child))
		ev.Child = nil
	default:
		st.Strays.Inc()
		return &Error{Op: ev.String(), Guest: l.name, Err: ErrUnknownEvent}
	}
	return nil
}

// isOutOfOrder reports whether something moves to where other memory is served that
// must have left before. The kernel tells of a change after it has let others at the
// address space, so that threads that unmap and move memory at once are told of in
// any order:
//
//	one thread                    another               told
//	mremap(b → c)
//	                              mremap(a → b)         remap a → b
//	                                                    remap b → c
//
// Taken as they come, c would get what was at a; and were the first munmap(b), what
// is at b now would be forgotten, and serving could end as complete without it. What
// is where cannot be told any more. Without unmap events a move onto other memory
// just replaces it.
//
// Preconditions:
//   - as for mark.
func (l *ledger) isOutOfOrder(old *layout, ev *uffd.Event) bool {
	end := addr.HVA(ev.Len)
	return l.hearsUnmaps() && len(old.without(ev.From, ev.From+end).within(ev.To, ev.To+end)) > 0
}

func (l *ledger) hearsUnmaps() bool {
	k, ok := l.k.(interface{ Features() uffd.Features })
	return ok && k.Features().Has(uffd.FeatureEventUnmap)
}

// maxVacant bounds what a guest can have us remember: more threads do not move memory
// at once. MREMAP_DONTUNMAP leaves entries that nothing takes away.
const maxVacant = 1024

// forget makes the pages of [from, to) removed, and returns how many there were.
func (l *ledger) forget(from, to addr.HVA, st *Stats) (n int) {
	for _, s := range l.layout.Load().within(from, to) {
		s.r.pages.remove(s.first, s.first+s.n)
		n += s.n
	}
	st.Removed.Add(uint64(n))
	return n
}

// forgetReplaced makes removed what was where something moves to. What moves
// within itself is not replaced.
func (l *ledger) forgetReplaced(ev *uffd.Event, st *Stats) {
	from, to, end := ev.From, ev.To, ev.To+addr.HVA(ev.Len)
	if to < from+addr.HVA(ev.Len) && from < end {
		return // the kernel moves between disjoint ranges only
	}
	l.forget(to, end, st)
}
