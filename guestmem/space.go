package guestmem

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// Prot is what an area allows, numerically PROT_*.
type Prot = vmarea.Prot

// What an area can allow.
const (
	ProtNone  Prot = vmarea.None
	ProtRead  Prot = vmarea.Read
	ProtWrite Prot = vmarea.Write
	ProtExec  Prot = vmarea.Exec
	protAll        = ProtRead | ProtWrite | ProtExec
)

// Access is what an access wants to do: one of Read, Write and Execute.
type Access = vmarea.Prot

// Kinds of access.
const (
	Read    Access = vmarea.Read
	Write   Access = vmarea.Write
	Execute Access = vmarea.Exec
)

// Placement is from which end of the address space holes are used.
type Placement = vmarea.Direction

// Placements.
const (
	TopDown  = vmarea.TopDown
	BottomUp = vmarea.BottomUp
)

// Defaults of SpaceOptions.
const (
	DefaultLowest   addr.GVA = 0x10000
	DefaultHighest  addr.GVA = pagetable.Limit - addr.PageSize
	DefaultMaxAreas          = 65530
)

// SpaceOptions say where areas may lie and how many there may be.
type SpaceOptions struct {
	// Lowest and Highest bound the addresses, [Lowest, Highest), page-aligned.
	// [0x10000, 0x7ffffffff000) if both are 0.
	Lowest, Highest addr.GVA
	// Placement of areas without a fixed address.
	Placement Placement
	// MaxAreas limits the number of areas; 65530 if 0, as Linux does.
	MaxAreas int
	// HugeLeaves says which private anonymous memory is mapped 2 MiB at a time.
	HugeLeaves HugeLeafPolicy
	// MaxStack limits how large a stack (MapGrowsDown) grows, in bytes; 8 MiB if 0.
	MaxStack uint64
	// MaxLocked limits how many bytes are locked, as RLIMIT_MEMLOCK does; any
	// number if 0, none at all if negative.
	MaxLocked int64
	// MaxPinned limits how many bytes are pinned (Pin), each page once for every
	// pin of it; any number if 0, none at all if negative. A child has the same
	// limit, and none of its parent's pins.
	MaxPinned int64
	// MaxSpace and MaxData limit how many bytes are mapped, and of these as data
	// (Limits), likewise.
	MaxSpace, MaxData int64
}

// AddressSpace is the memory of one guest process: areas over frames of a
// Memory. All methods are safe for concurrent use. Lookups (Fault, copies, loads
// and stores, Pin) never wait for one another, and for a change (Map over
// something, Unmap, Protect, Remap, Discard, Fork) only where it has their area; one
// change runs at a time.
//
// Close ends it; no other call may be in progress then.
type AddressSpace struct {
	mem *Memory     // immutable
	id  epoch.Space // immutable
	// overlays says that there is, or was, a private area of an object whose pages
	// others may store to; atomic, stored in changes. It is here for every read asks.
	overlays atomic.Bool
	pt       *pagetable.Table // immutable; its change lock is the space's
	tree     *vmarea.Tree     // immutable
	bounds   addr.Range       // immutable
	opts     SpaceOptions     // immutable
	frozen   bool             // a snapshot's: nobody looks anything up in it; immutable

	// rollbacks counts rollbacks; atomic, stored in changes.
	rollbacks atomic.Uint64
	// spareRoot, of a frozen one, is a table frame for a rollback that finds no
	// memory, 0 if there is none; guarded by the change lock of the space that it
	// is a snapshot of.
	spareRoot addr.PFN

	// The change lock guards:
	closed     bool
	brk        breakRange
	guarded    bool               // there has been a guard page in it, or in a parent
	lockFuture vmarea.Flags       // of areas to come: Locked, LockOnFault
	objects    map[*Object]uint64 // pages mapped of each object; a reference each

	pins pinSet
	mon  spaceMonitors

	limits atomic.Pointer[Limits] // SetLimits

	// stacks says that there is, or was, an area that grows down; atomic, stored
	// in changes.
	stacks atomic.Bool
	// tracks says that there is, or was, an area of an object that notes stores;
	// atomic, stored in changes.
	tracks atomic.Bool
	// devices says that there is, or was, an area of a device's memory; atomic, stored
	// in changes.
	devices atomic.Bool
}

// breakRange is the heap that Brk moves the end of.
type breakRange struct{ start, end addr.GVA }

// check refuses options that mean nothing.
//
// Errors: ErrInvalid.
func (o *SpaceOptions) check(bounds addr.Range) error {
	var wrong string
	switch {
	case bounds.IsEmpty() || !bounds.IsAligned() || bounds.End > pagetable.Limit:
		wrong = fmt.Sprintf("bounds must be whole pages below %v", pagetable.Limit)
	case o.MaxAreas < 0:
		wrong = fmt.Sprintf("at most %d areas", o.MaxAreas)
	case o.Placement != TopDown && o.Placement != BottomUp:
		wrong = fmt.Sprintf("no placement has number %d", o.Placement)
	case o.HugeLeaves < HugeLeavesAdvised || o.HugeLeaves > HugeLeavesNever:
		wrong = fmt.Sprintf("no policy for huge leaves has number %d", o.HugeLeaves)
	default:
		return nil
	}
	return fmt.Errorf("%s: %w", wrong, ErrInvalid)
}

// NewAddressSpace returns an empty address space.
//
// Errors: ErrInvalid; ErrNoMemory; ErrClosed; ErrNotSupported for a memory
// without a frame pool.
func (m *Memory) NewAddressSpace(o SpaceOptions) (*AddressSpace, error) {
	const op = "new address space"
	if o.Lowest == 0 && o.Highest == 0 {
		o.Lowest, o.Highest = DefaultLowest, DefaultHighest
	}
	if o.MaxAreas == 0 {
		o.MaxAreas = DefaultMaxAreas
	}
	if o.MaxStack == 0 {
		o.MaxStack = DefaultMaxStack
	}
	bounds := addr.Range{Start: o.Lowest, End: o.Highest}
	if err := o.check(bounds); err != nil {
		return nil, opError(op, bounds, err)
	}
	if m.isClosed() {
		return nil, opError(op, addr.Range{}, ErrClosed)
	}
	var root [1]addr.PFN
	if err := m.allocateTables(root[:]); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	as := &AddressSpace{mem: m, tree: vmarea.New(bounds), bounds: bounds, opts: o}
	as.SetLimits(Limits{MaxStack: o.MaxStack, MaxLocked: o.MaxLocked, MaxSpace: o.MaxSpace, MaxData: o.MaxData})
	m.pastDoor(func() { m.arena.Zero(root[0]) })
	if err := m.addSpace(as, root[0]); err != nil {
		m.returnTables(root[0])
		return nil, opError(op, addr.Range{}, err)
	}
	return as, nil
}

// Memory returns the memory whose frames the address space is made of.
func (as *AddressSpace) Memory() *Memory { return as.mem }

// Root returns the frame of the current root table: CR3 is Root().GPA(). Where
// there is a view, it changes only between its Stop and Resume, and ends with
// Close.
func (as *AddressSpace) Root() addr.PFN { return as.pt.Root() }

// Bounds returns where areas may lie.
func (as *AddressSpace) Bounds() addr.Range { return as.bounds }

// lockChange begins a change.
//
// Errors: ErrClosed.
func (as *AddressSpace) lockChange() (pagetable.Token, error) {
	epoch.AssertOutside("a change")
	tok := as.pt.LockChange()
	if as.closed {
		as.pt.UnlockChange(tok)
		return nil, ErrClosed
	}
	return tok, nil
}

// Close gives back every frame that only this address space uses. Closing twice
// does nothing. The error is always nil.
//
// Preconditions: no other call is in progress, and no vCPU is in the address
// space.
func (as *AddressSpace) Close() error {
	as.mon.close()
	tok, err := as.lockChange()
	if err != nil {
		return nil
	}
	as.closed = true
	c := as.tree.StartChange()
	c.StartWriteAll()
	if v := as.mem.view; v != nil {
		v.Stop(as)
		v.Resume(as)
	}
	root := as.pt.End(tok)
	as.mem.domain.Barrier(as.id)
	objects := as.objects
	as.objects = nil
	as.pt.DropRoot(root)
	if as.spareRoot != 0 {
		as.mem.returnTables(as.spareRoot)
		as.spareRoot = 0
	}
	c.EndWriteAll()
	// Marked for good: a lookup that comes after all waits for the change lock,
	// and is told there that the space is closed.
	as.tree.StartChange().StartWriteAll()
	as.pt.UnlockChange(tok)
	for o := range objects {
		o.unref()
	}
	as.pins.outlive(as.mem)
	as.mem.removeSpace(as)
	as.mem.domain.FlushAll()
	return nil
}
