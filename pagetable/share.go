package pagetable

import (
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/arena"
)

// Upper entries of a root: the supervisor half, which belongs to the platform
// and is the same in every root. It is not counted.
const firstSupervisor = arena.EntriesPerTable / 2

// Share makes, for a fork, two roots that lead to what the current one leads
// to, with write permission off, and makes the first of them current. It
// returns the old root, which is left with its entries and is to be freed,
// alone, once nobody can be walking it. No leaf is visited.
//
// The caller holds the tables mutex for the whole of it, so that no path is
// copied or moved under the old root meanwhile (models/fork.pml, BREAK_8, 9);
// writers that walked the old root are waited for by the change.
//
// Preconditions:
//   - the caller holds the change lock and the tables mutex, and is in a read
//     section that passed the door
//   - every view of the space is stopped
//   - parent and child are frames that nobody looks at; their bytes may be
//     anything
func (t *Table) Share(tok Token, parent, child addr.PFN) (old addr.PFN) {
	t.mustOwn(tok)
	old = t.Root()
	t.mustBeLive(old)
	below, n := t.frameList(), 0
	src, p, c := t.arena.Table(old), t.arena.Table(parent), t.arena.Table(child)
	clear(p[:])
	clear(c[:])
	for i := range src {
		// Nearly all of a root is empty: not looking further at what is takes a
		// third off a fork.
		held := Entry(atomic.LoadUint64(&src[i]))
		if held == 0 {
			continue
		}
		e := bounded(&t.arena, held)
		if i < firstSupervisor && e.Has(Present) {
			below[n] = e.Frame()
			n++
			e &^= Writable
		}
		p[i], c[i] = uint64(e), uint64(e)
	}
	t.frames.Share(below[:n])
	t.root.Store(uint64(parent))
	return old
}
