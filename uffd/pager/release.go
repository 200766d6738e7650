package pager

import (
	"errors"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// mayRelease reports whether the owner agrees that the memory is let go of, and has
// him asked until he does. The reader does not wait for the answer: it may take a
// page to be given.
func (g *Guest) mayRelease() bool {
	if g.o.beforeRelease == nil || g.released.Load() {
		return true
	}
	if g.releasing.CompareAndSwap(false, true) {
		go func() {
			defer func() { g.recovered(recover()) }()
			wait := firstAsked
			for !g.o.beforeRelease() {
				if !g.pause(wait) {
					return
				}
				wait = min(2*wait, mostAsked)
			}
			g.released.Store(true)
			g.w.poke()
		}()
	}
	return false
}

// How long an owner has who did not agree: at first, and at most.
const (
	firstAsked = time.Millisecond
	mostAsked  = 100 * time.Millisecond
)

// releaseRegion gives a region of which every page is there back to its Memory, and
// reports whether that is done: not while a snapshot lacks pages of it, or slices of it
// are held.
func (g *Guest) releaseRegion(of *guestmem.Region) bool {
	r, _, end, err := g.pagesOf(of, 0, of.Size()/addr.PageSize)
	if err != nil || r.released.Load() {
		return true
	}
	r.follow(0, end)
	err = of.LetGo(func() error {
		// First the part that can fail. No snapshot begins in here.
		if err := of.SetFaultServer(nil, guestmem.PagePresent); err != nil {
			return err
		}
		for _, s := range g.l.layout.Load().ofRegion[r.index] {
			// What has gone needs no unregistering: the error says only that.
			_ = g.l.k.Unregister(s.start, uint64(s.end()-s.start))
		}
		r.released.Store(true)
		return nil
	})
	return err == nil || errors.Is(err, guestmem.ErrClosed) // removed meanwhile
}
