package cow

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/variant"
)

// Write is the question whether a present page may become writable now.
type Write struct {
	// AreaMayWrite says that the area's protection includes writing.
	AreaMayWrite bool
	// Watched says that somebody asked to be told of the next write (armed, or
	// dirty tracking), and has not been told.
	Watched bool
	// OwnPath says that every entry above the leaf is writable.
	OwnPath bool
	// SharedArea says that the page belongs to a shared area, whose writes all
	// owners are to see.
	SharedArea bool
	// Frame is the page's frame.
	Frame addr.PFN
}

// MayWrite is the one predicate for "may this become writable now?", asked by
// faults, protect, fork and pins alike (R5). The order is part of it: the
// area's permission before anything else, the wish to be told next, then
// whether the page is this space's alone, along the whole path; pins, which
// belong to one space, do not make it shared.
//
// It is exact where the count cannot rise meanwhile: on a path that is writable
// throughout, nobody else leads to the frame, and only a fork of this space,
// which is a change, could make somebody.
func (p *Pool) MayWrite(w Write) bool {
	return w.mayBe() && (w.SharedArea || p.Exclusive(w.Frame))
}

// MayWriteBlock is MayWrite for all pages of a 2 MiB leaf, whose first frame is
// w.Frame.
func (p *Pool) MayWriteBlock(w Write) bool {
	return w.mayBe() && !w.SharedArea && (variant.WriteSharedInPlace || p.ExclusiveBlock(w.Frame))
}

// mayBe is the part of the predicate that does not depend on who has the frame.
func (w *Write) mayBe() bool { return w.AreaMayWrite && !w.Watched && w.OwnPath }
