package cow

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// Stamp says how often a frame has been reclaimed. A lookup that walks to a frame
// takes the stamp, and at the end of what it does there, still in its section,
// shows it to MustHold: a frame that went back to the pool meanwhile was dropped
// without waiting for that section, even if it is in use again (R4).
type Stamp uint32

// Stamp returns the stamp of f. Without the invariants tag all are the same.
//
// Preconditions: f is a frame of the pool.
func (p *Pool) Stamp(f addr.PFN) Stamp {
	if !invariants.Enabled {
		return 0
	}
	return Stamp(p.reclaimed[p.index(f)].Load())
}

// MustHold panics, under invariants, if f was reclaimed since s was taken.
//
// Preconditions: the caller is in the section in which it took s.
func (p *Pool) MustHold(f addr.PFN, s Stamp) {
	if invariants.Enabled && p.Stamp(f) != s {
		panic(fmt.Sprintf("cow: frame %v was reclaimed under a lookup that had walked to it", f))
	}
}
