package cow

import "github.com/guestmm/guestmm/guestmem/addr"

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
	switch {
	case !w.AreaMayWrite:
		return false
	case w.Watched:
		return false
	case !w.OwnPath:
		return false
	case w.SharedArea:
		return true
	}
	return p.Exclusive(w.Frame)
}
