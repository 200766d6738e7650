package vmarea

import "github.com/guestmm/guestmm/guestmem/addr"

// Snapshot is the areas as they were published at one instant. It is immutable
// and safe for concurrent use, anywhere and for as long as it is held: inside
// a read section or not, with the change lock or without. It says what the
// layout was; whether an area may be used for a page install only StartRead
// says.
type Snapshot struct{ v *view }

// Snapshot returns the published areas. It costs one atomic load.
func (t *Tree) Snapshot() Snapshot { return Snapshot{t.published.Load()} }

// Len returns the number of areas.
func (s Snapshot) Len() int { return s.v.length }

// Find returns the area that contains gva, or nil. It does not allocate.
func (s Snapshot) Find(gva addr.GVA) *Area { return s.v.find(gva) }

// Ascend calls fn for the areas that end above from, in address order, until
// fn returns false.
func (s Snapshot) Ascend(from addr.GVA, fn func(*Area) bool) { s.v.ascend(from, fn) }
