package pager

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/uffd"
)

// retryEvery paces what answered EAGAIN. It clears when the thread that changes
// the layout has run again, of which no event tells.
const retryEvery = 250 * time.Microsecond

// isTransient says whether an install may work a moment later: a layout change
// is under way, or there is no memory for now.
func isTransient(err error) bool {
	return isAny(err, syscall.EAGAIN, syscall.ENOMEM)
}

// isShort says whether there is no room for a descriptor, or no memory, for now: a
// forked child has a userfaultfd of its own, which comes with the event, and
// whoever serves it needs another descriptor.
func isShort(err error) bool {
	return isAny(err, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM)
}

// shortAgain is the pace at which memory and descriptors are looked for again.
const shortAgain = 10 * time.Millisecond

// install puts n claimed pages in place, from data or, in ModeContinue, from
// the cache. It returns how many have been dealt with; those after that are
// still claimed. With a transient error it may be called again for the rest.
func (g *Guest) install(r *region, first, n int, data []byte) (done int, err error) {
	defer g.fetchers.tell()
	limit := n
	for done < n {
		var from []byte
		if data != nil {
			from = data[r.bytes(done):r.bytes(n)]
		}
		k, err := g.installRun(r, first+done, min(limit, n-done), from)
		done += k
		switch {
		case err == nil:
			limit = n
		case isTransient(err) || isAny(err, ErrClosed, ErrPeerGone):
			return done, err
		case limit > 1 && n-done > 1:
			// The kernel refuses a run that is in two mappings as a whole. One
			// page at a time tells which one is to blame.
			limit = 1
		default:
			return done, err
		}
	}
	return done, nil
}

// installRun installs up to n pages that are still being filled. What has been
// removed meanwhile is left alone, and its waiters are told to fault again.
func (g *Guest) installRun(r *region, i, n int, data []byte) (int, error) {
	l := g.l
	l.gate.RLock()
	defer l.gate.RUnlock()
	if l.owner != g {
		return 0, ErrClosed
	}
	// What is armed and what is not goes by itself. No page of the run changes its
	// mind meanwhile but to be disarmed, which is done again for who then writes:
	// arming takes the gate exclusively.
	m, wish := 0, r.pages.at(i)&armed
	for m < n && r.pages.at(i+m)&(stateMask|armed) == filling|wish {
		m++
	}
	at, m, ok := l.layout.Load().locate(r, i, m)
	if m == 0 || !ok {
		g.wakePages(r, i, 1)
		return 1, nil
	}
	g.hook(pointInstall)
	var bytes uint64
	var err error
	var mark state
	var flags uffd.Flags
	switch {
	case r.Arming == ArmInstalled:
		mark, flags = armed, uffd.Armed
	case wish != 0:
		flags = uffd.Armed
	}
	if r.Mode == ModeContinue {
		bytes, err = l.k.Continue(at, r.bytes(m), flags)
	} else {
		bytes, err = l.k.Copy(at, data[:r.bytes(m)], flags)
	}
	g.hook(pointInstalled)
	done := min(int(bytes>>r.shift), m)
	for k := range done {
		r.pages.settle(i+k, mark)
	}
	r.follow(i, done)
	g.progress.came(r, i, done)
	if r.Mode == ModeContinue {
		g.stats.Continued.Add(uint64(done))
	} else {
		g.stats.Copied.Add(uint64(done))
	}
	if done == m {
		return m, nil
	}
	switch {
	case errors.Is(err, syscall.EEXIST):
		// Somebody else installed it. Whoever faulted may have gone to sleep
		// after the winner had woken everybody. The rest is yet to be done.
		if r.PageSize == smallPage {
			r.pages.settle(i+done, 0)
			r.follow(i+done, 1)
		} else {
			// The kernel says the same when it has no huge page to give. Taken
			// for present, the page would be answered by zeroes once it has.
			r.pages.giveBack(i + done)
		}
		g.wakePages(r, i+done, 1)
		g.stats.Already.Inc()
		g.noProgress(r, i+done)
		return done + 1, nil
	case errors.Is(err, syscall.ENOENT) && m-done == 1:
		g.unmapped(r, i+done)
		return done + 1, nil
	case errors.Is(err, syscall.ESRCH):
		return done, because(ErrPeerGone, err)
	case err == nil:
		err = fmt.Errorf("%w: %d of %d bytes done", ErrKernel, bytes, r.bytes(m))
	}
	return done, err
}

// unmapped deals with a page whose memory is no longer mapped, or no longer
// registered. It is not installed, and not lost: the claim is given back, and
// whoever may wait finds what the kernel has to say.
//
// Preconditions:
//   - the gate is held.
func (g *Guest) unmapped(r *region, i int) {
	r.pages.giveBack(i)
	g.wakePages(r, i, 1)
	g.stats.Gone.Inc()
	g.noProgress(r, i)
}

// zero answers a fault on a page whose content is zero: it was given back, or
// was there and has gone since, which can be nobody's doing but the guest's.
//
// What is to be armed is copied from zeroes: the kernel's own page of zeroes
// would be write-protected in a second step, and writes between the two lost.
// Hugetlb memory has no page of zeroes at all.
func (g *Guest) zero(r *region, i int, why uffd.FaultFlags) error {
	l := g.l
	l.gate.RLock()
	defer l.gate.RUnlock()
	if l.owner != g {
		return ErrClosed
	}
	at, _, ok := l.layout.Load().locate(r, i, 1)
	if s := r.pages.at(i) & stateMask; !ok || s == absent || s == filling {
		g.wakePages(r, i, 1)
		return nil
	}
	g.hook(pointInstall)
	var err error
	switch {
	case r.Arming == ArmInstalled, r.pages.at(i)&armed != 0 && r.Arming == ArmForSnapshots:
		_, err = l.k.Copy(at, zeroes(r.PageSize), uffd.Armed)
	case r.PageSize != smallPage:
		_, err = l.k.Copy(at, zeroes(r.PageSize), 0)
	default:
		_, err = l.k.Zero(at, r.PageSize, 0)
	}
	g.hook(pointInstalled)
	switch {
	case err == nil:
		if r.Arming == ArmInstalled {
			r.pages.edit(i, func(s state) state { return s | armed })
		}
		g.stats.Zeroed.Inc()
		g.progress.came(r, i, 1)
		return nil
	case errors.Is(err, syscall.EEXIST):
		g.stats.Already.Inc()
		g.noProgress(r, i)
		if r.Mode == ModeContinue && why&uffd.FaultMinor != 0 {
			// The memory is shared after all, and what is in the file is what
			// everybody sees.
			if _, err := l.k.Continue(at, r.PageSize, 0); err != nil && isTransient(err) {
				return err
			}
		}
		g.wakePages(r, i, 1)
		return nil
	case errors.Is(err, syscall.ENOENT):
		g.stats.Gone.Inc()
		g.wakePages(r, i, 1)
		g.noProgress(r, i)
		return nil
	case errors.Is(err, syscall.ESRCH):
		return because(ErrPeerGone, err)
	}
	return err
}

var (
	smallZeroes [smallPage]byte
	hugeZeroes  = sync.OnceValue(func() []byte { return make([]byte, hugePage) })
)

// zeroes returns a page of zeroes, which nobody writes.
func zeroes(pageSize uint64) []byte {
	if pageSize == smallPage {
		return smallZeroes[:]
	}
	return hugeZeroes()
}

// disarm makes a page writable whose write faulted.
func (g *Guest) disarm(r *region, i int) error {
	l := g.l
	l.gate.RLock()
	defer l.gate.RUnlock()
	if l.owner != g {
		return ErrClosed
	}
	at, _, ok := l.layout.Load().locate(r, i, 1)
	if !ok {
		return nil
	}
	err := l.k.WriteProtect(at, r.PageSize, 0)
	switch {
	case err == nil:
		r.pages.disarm(i)
		return nil
	case errors.Is(err, syscall.ENOENT):
		g.stats.Gone.Inc()
		g.wakePages(r, i, 1)
		return nil
	case errors.Is(err, syscall.ESRCH):
		return because(ErrPeerGone, err)
	}
	return err
}

// claim claims pages for this guest, from first on, until one is taken already
// or n are claimed.
func (g *Guest) claim(r *region, first, n int) (claimed int) {
	g.l.gate.RLock()
	defer g.l.gate.RUnlock()
	if g.l.owner != g {
		return 0
	}
	for claimed < n && r.pages.claim(first+claimed) == absent {
		claimed++
	}
	return claimed
}
