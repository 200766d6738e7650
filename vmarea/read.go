package vmarea

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
)

// Status is what StartRead found.
type Status int

// What StartRead found.
const (
	Found   Status = iota // the area is the caller's to read until EndRead
	Hole                  // no area there
	Marked                // a change has the area, or the whole tree: wait for the change
	Foreign               // the area belongs to another tree: adopt a copy (Change.Adopt)
)

func (s Status) String() string {
	switch s {
	case Found:
		return "found"
	case Hole:
		return "hole"
	case Marked:
		return "marked"
	case Foreign:
		return "foreign"
	}
	return fmt.Sprintf("Status(%d)", int(s))
}

// readHooks are called by StartRead and EndRead where an interleaving is to be
// staged. Only tests set them, and only while no other goroutine reads.
var readHooks struct {
	afterState func(*Tree) // the sequence is loaded
	afterTree  func(*Tree) // the published tree is loaded
	afterArea  func(*Tree) // the area is found; its mark is not loaded yet
	afterEnd   func(*Tree) // EndRead has let go
}

// StartRead returns the area that contains gva for use within the current read
// section. The area comes with Found only; EndRead then ends its use.
//
// The guarantee: no StartRead whose section began after an area was marked
// (StartWrite, StartWriteAll) returns that area as Found before the change has
// ended or is downgraded. One whose section began before may, which is why the
// change waits for those sections.
//
// It neither blocks nor allocates, and is safe for concurrent use.
//
// Preconditions:
//   - the caller is in a read section of the space, and calls EndRead and
//     leaves before it waits for anything
func (t *Tree) StartRead(gva addr.GVA) (*Area, Status) {
	// The order of these three loads is R2. Go's atomics are sequentially
	// consistent: all of them, of all goroutines, fall into one order, in
	// which each goroutine's come as its program says. A change stores
	//
	//	lockSeq = s        the mark
	//	published = new    Publish
	//	state = s+1        EndWriteAll
	//
	// and the section began after the mark. If it loads s here, then it
	// sees the mark on whatever old area it finds, since it loads lockSeq
	// later still: refused. If it loads s+1, then it loads the tree after
	// the store of the new one, and does not find the old area at all. Had
	// it loaded the tree first, it could find the old area and then s+1,
	// and take the area for unlocked.
	//
	// The mark of the whole tree is in the word that is loaded first: were
	// it loaded after the tree, it could be cleared between the two.
	state := t.state.Load()
	if invariants.Enabled {
		invariants.MayYield()
	}
	if readHooks.afterState != nil {
		readHooks.afterState(t)
	}
	areas := t.published.Load()
	if invariants.Enabled {
		invariants.MayYield()
	}
	if readHooks.afterTree != nil {
		readHooks.afterTree(t)
	}
	if variant.SequenceAfterTree {
		state = t.state.Load()
	}
	if state&wholeMark != 0 {
		return nil, Marked
	}
	a := areas.find(gva)
	if a == nil {
		return nil, Hole
	}
	if readHooks.afterArea != nil {
		readHooks.afterArea(t)
	}
	if a.owner != t.id {
		// Its lock sequence belongs to another tree's sequence.
		return nil, Foreign
	}
	if a.lockSeq.Load() == state>>1 {
		return nil, Marked
	}
	a.readers.enter()
	return a, Found
}

// EndRead ends the use of an area that StartRead returned. It is the last
// touch (R3): the caller uses nothing of the area after it. It costs nothing,
// but under the invariants tag it counts: a change that marked the area and
// ends while a reader is still in it panics.
func (t *Tree) EndRead(a *Area) {
	a.readers.exit()
	// Nothing of a from here on.
	if readHooks.afterEnd != nil {
		readHooks.afterEnd(t)
	}
}
