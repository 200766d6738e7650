package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Restore makes fresh the root, leading to what the root of from leads to, with
// write permission off on both sides, and returns the old root, which the caller
// drops with all that only it leads to. No leaf is visited: what was not written
// since from was shared is the same tables on both sides, and only loses a
// reference there.
//
// From's own entries lose write permission too: they have it where from owned a
// path meanwhile, which it does where pages are taken out of an object that it
// maps. Nobody walks from's table but under its own mutex, so clearing it there
// races with nothing.
//
// Preconditions:
//   - the caller holds the change lock and the tables mutex, and is in a read
//     section that passed the door
//   - the caller holds from's tables mutex; nobody looks up anything in from
//   - every view of the space is stopped
//   - fresh is a frame that nobody looks at; its bytes may be anything
func (t *Table) Restore(tok Token, from *Table, fresh addr.PFN) (old addr.PFN) {
	t.mustOwn(tok)
	old = t.Root()
	src := from.Root()
	below, n := t.frameList(), 0
	dst := t.arena.Table(fresh)
	for i := range dst {
		e := t.load(src, uint64(i))
		if i < firstSupervisor && e.Has(Present) {
			below[n] = e.Frame()
			n++
			if e.Has(Writable) {
				e &^= Writable
				atomic.StoreUint64(t.arena.Entry(src, uint64(i)), uint64(e))
			}
		}
		dst[i] = uint64(e)
	}
	t.frames.Share(below[:n])
	t.root.Store(uint64(fresh))
	return old
}
