package guestmem

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/vmarea"
)

// pinSet is the pinned pages of an address space: what fork has to copy for the
// child, found without a scan.
type pinSet struct {
	mu     sync.Mutex
	frames map[addr.PFN]*pinned // mu
	pages  uint64               // of all pins, a page for each pin of it; mu
	orphan bool                 // the space is closed; mu
}

// outlive notes that the space was closed, so that pins still held are known.
func (s *pinSet) outlive(m *Memory) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.frames) == 0 {
		return
	}
	s.orphan = true
	m.mu.Lock()
	m.orphans[s] = struct{}{}
	m.mu.Unlock()
}

// releasedLocked notes that a pin has gone.
func (s *pinSet) releasedLocked(m *Memory) {
	if !s.orphan || len(s.frames) > 0 {
		return
	}
	m.mu.Lock()
	delete(m.orphans, s)
	m.mu.Unlock()
}

// each calls fn for every frame that is pinned.
func (s *pinSet) each(fn func(addr.PFN)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for f := range s.frames {
		fn(f)
	}
}

// pinned is one frame that is pinned.
type pinned struct {
	gva   addr.GVA // where it was when it was pinned first
	count int      // pins of it
}

// Pin holds the frames of a range still for a device. The zero Pin is not used.
type Pin struct {
	as     *AddressSpace
	r      addr.Range
	frames []addr.PFN
	held   []heldPage  // of each frame; empty if it is not for writing
	gone   atomic.Bool // released
}

// Range returns the pinned range, in whole pages.
func (p *Pin) Range() addr.Range { return p.r }

// Frames returns the frames, one a page, in the order of the range. They are
// valid until Release, whatever becomes of the areas.
func (p *Pin) Frames() []addr.PFN { return p.frames }

// Pin pins the pages of r, rounded out to whole pages: their frames stay what
// they are, this address space's alone, until Release, across fork, unmap,
// protect, remap, discard and rollback (R7); of pages of shared areas, they stay
// the object's. A device may read them, and write them if access is Write, whatever
// becomes of the area's protection. It unshares first even for reading, so that what
// the device sees is what the guest writes later.
//
// What is stored through a pin for writing into a page of an object that is written
// back reaches the sink with the next Sync that begins after the store, or when the
// object ends, which it does not before Release; the page counts as changed all the
// while. A page that Truncate or AdviceRemove has taken out meanwhile is the device's
// alone. Who stores through a pin that is not for writing breaks this contract: those
// bytes may never be written back.
//
// What is pinned counts against SpaceOptions.MaxPinned, once for each pin of a
// page, as with Linux's RLIMIT_MEMLOCK and FOLL_LONGTERM.
//
// Errors, with nothing pinned: ErrLimit (ENOMEM); as Fault, such as ErrNotMapped
// for a hole in r; ErrInvalid if r is empty.
func (as *AddressSpace) Pin(ctx context.Context, r addr.Range, access Access) (*Pin, error) {
	end, ok := r.End.RoundUp()
	if r.IsEmpty() || !ok {
		return nil, opError("pin", r, ErrInvalid)
	}
	p := &Pin{as: as, r: addr.Range{Start: r.Start.RoundDown(), End: end}}
	if err := as.pins.charge(p.r.Len()/addr.PageSize, as.opts.MaxPinned); err != nil {
		return nil, opError("pin", r, err)
	}
	a := as.borrow()
	defer a.giveBack()
	for gva := p.r.Start; gva < p.r.End; gva += addr.PageSize {
		f, held, err := a.pinPage(ctx, gva, access)
		if err != nil {
			_ = p.Release()
			return nil, opError("pin", r, err)
		}
		p.frames = append(p.frames, f)
		if access == Write {
			p.held = append(p.held, held)
		}
	}
	return p, nil
}

// Release lets the frames go: those that nobody else has are free. The device stores
// to them no more. If that was the last reference to an object, it is written back
// first, as by Object.Close.
//
// Errors: ErrReleased, and nothing is done, if it was released before.
func (p *Pin) Release() error {
	if p.gone.Swap(true) {
		return opError("release pin", p.r, ErrReleased)
	}
	for i, f := range p.frames {
		if p.held == nil {
			p.as.unpinPage(f)
			continue
		}
		p.held[i].noteStores(f)
		p.as.unpinPage(f)
		p.held[i].letGo()
	}
	p.as.pins.uncharge(p.r.Len() / addr.PageSize)
	return nil
}

// charge counts pages that are to be pinned; limit is a MaxPinned.
//
// Errors: ErrLimit.
func (s *pinSet) charge(pages uint64, limit int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if most := uint64(max(limit, 0)) / addr.PageSize; limit != 0 && (pages > most || s.pages > most-pages) {
		return fmt.Errorf("%d pages beside %d, of %d: %w", pages, s.pages, most, ErrLimit)
	}
	s.pages += pages
	return nil
}

func (s *pinSet) uncharge(pages uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages -= pages
}

// pinPage faults one page in, unshared, and pins its frame.
//
// The pin is raised before the entry is read again, in the section that walked
// to it: a change that takes the page away, or a fork that shares it, waits for
// this section and looks at pins only after; and if the page was replaced
// meanwhile, the pin is undone and all starts over (interleaving 9).
func (a Accessor) pinPage(ctx context.Context, gva addr.GVA, access Access) (addr.PFN, heldPage, error) {
	for {
		if a.as.isDevice(gva) {
			return 0, heldPage{}, fmt.Errorf("%v is a device's: %w", gva, ErrNotMapped) // as FOLL_PIN of VM_PFNMAP
		}
		if err := a.unshare(ctx, gva, access); err != nil {
			return 0, heldPage{}, err
		}
		held := a.pageToHold(gva, access)
		held.hold()
		a.as.pins.mu.Lock()
		f, ok := a.tryPin(gva, access, held)
		a.as.pins.mu.Unlock()
		if ok {
			return f, held, nil
		}
		a.as.mem.door.wait()
		if held.object != nil {
			held.object.awaitPunching() // it may be taking the page out
		}
		held.letGo()
	}
}

// pageToHold returns what a pin of gva holds, with a reference. tryPin asks again.
func (a Accessor) pageToHold(gva addr.GVA, access Access) heldPage {
	if access != Write || !a.as.tracks.Load() {
		return heldPage{}
	}
	a.h.Enter(a.as.id)
	defer a.h.Exit()
	area, status := a.as.tree.StartRead(gva)
	if status != vmarea.Found {
		return heldPage{}
	}
	defer a.as.tree.EndRead(area)
	held := heldAt(area, gva)
	if held.object != nil {
		held.object.ref() // the space has one while the area is being read
	}
	return held
}

// heldAt is the page of an object at gva that a pin for writing holds.
func heldAt(area *vmarea.Area, gva addr.GVA) heldPage {
	o, ok := area.Backing.(*Object)
	if !ok || area.Flags&vmarea.Shared == 0 || !o.tracks() {
		return heldPage{}
	}
	return heldPage{object: o, index: area.OffsetOf(gva) / addr.PageSize}
}

// tryPin pins what gva leads to, if it is this space's alone, or held's.
//
// Preconditions: pins.mu is held, and no section is open; the pin of held is counted.
func (a Accessor) tryPin(gva addr.GVA, access Access, held heldPage) (addr.PFN, bool) {
	s, p := &a.as.pins, a.as.mem.pool
	if s.frames == nil {
		s.frames = make(map[addr.PFN]*pinned)
	}
	a.h.Enter(a.as.id)
	l, ok := a.findPinnable(gva, access, held)
	if !ok {
		a.h.Exit()
		return 0, false
	}
	f := l.Entry.Frame()
	first := s.frames[f] == nil
	if first {
		p.Pin(f)
	}
	if invariants.Enabled {
		invariants.MayYield()
	}
	if pinHook != nil {
		pinHook()
	}
	// From the root: a change that cuts a whole table off leaves its leaves alone.
	e := a.as.pt.Find(gva).Entry
	stays := e.Has(pagetable.Present) && e.Frame() == f && held.noteStores(f)
	a.h.Exit()
	if !stays {
		if first && p.Unpin(f) {
			p.FreeData(f)
		}
		return 0, false
	}
	if first {
		s.frames[f] = &pinned{gva: gva}
	}
	s.frames[f].count++
	return f, true
}

// findPinnable walks to a page that may be pinned as it is.
//
// Preconditions: a section is open.
func (a Accessor) findPinnable(gva addr.GVA, access Access, held heldPage) (pagetable.Leaf, bool) {
	if !a.as.mem.door.passes() {
		return pagetable.Leaf{}, false
	}
	area, status := a.as.tree.StartRead(gva)
	if status != vmarea.Found {
		return pagetable.Leaf{}, false
	}
	defer a.as.tree.EndRead(area)
	if access == Write && heldAt(area, gva) != held {
		return pagetable.Leaf{}, false // another area by now
	}
	l := a.as.pt.Find(gva)
	return l, l.Owned && !l.Huge && l.Entry.Has(pagetable.Present) && a.as.pinnable(l.Entry)
}

// pinHook is called between raising a pin and reading the entry again. Only
// tests set it.
var pinHook func()

// pinnable reports whether a leaf's frame may be pinned: it is the space's own,
// or of a shared area, where everybody is to see the device's writes.
func (as *AddressSpace) pinnable(e pagetable.Entry) bool {
	return variant.PinTakesShared || e.Has(pagetable.Shared) || as.mem.pool.Exclusive(e.Frame())
}

// unshare makes sure that gva leads to a frame of its own, even for reading.
func (a Accessor) unshare(ctx context.Context, gva addr.GVA, access Access) error {
	as := a.as
	if err := a.fault(ctx, gva, access); err != nil {
		return err
	}
	if err := a.splitHuge(gva); err != nil {
		return err
	}
	info, ok := as.FindArea(gva)
	if !ok {
		return ErrNotMapped
	}
	if access == Write {
		return a.fault(ctx, gva, Write)
	}
	// A monitor is not to be told of a write that there is not.
	if info.Prot&ProtWrite != 0 && !as.isMonitored() {
		if unshareHook != nil {
			unshareHook()
		}
		if err := a.fault(ctx, gva, Write); !errors.Is(err, ErrAccess) {
			return err
		}
		// It is read-only by now, and may be pinned for reading all the same.
	}
	return a.unshareReadOnly(gva)
}

// unshareHook is called once an area was seen to be writable that is pinned for
// reading. Only tests set it.
var unshareHook func()

// unshareReadOnly gives a read-only page of a private area a frame of its own.
func (a Accessor) unshareReadOnly(gva addr.GVA) error {
	at := attempt{gva: gva.RoundDown(), access: Read}
	for {
		a.h.Enter(a.as.id)
		o := a.as.tryUnshare(a, &at)
		switch o {
		case lackFrames, lackRoom:
			a.h.Leave()
		default:
			a.h.Exit()
		}
		if err := a.provide(context.Background(), &at, o); err != nil || o == resolved {
			return err
		}
	}
}

func (as *AddressSpace) tryUnshare(a Accessor, at *attempt) outcome {
	if !as.mem.door.passes() {
		return doorShut
	}
	area, status := as.tree.StartRead(at.gva)
	if status != vmarea.Found {
		return at.refused(as, status)
	}
	defer as.tree.EndRead(area)
	l := as.pt.Find(at.gva)
	switch {
	case l.Huge: // once more: whoever pins splits it again
		return resolved
	case !l.Owned:
		return lackPath
	case !l.Entry.Has(pagetable.Present), as.pinnable(l.Entry):
		return resolved
	}
	return as.breakCOW(area, l, a.h.Local().(*cow.Cache), a, at)
}

func (as *AddressSpace) unpinPage(f addr.PFN) {
	s := &as.pins
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.frames[f]
	if e.count--; e.count > 0 {
		return
	}
	as.mem.stored(f) // before it leaves the set: see regionPins.release
	delete(s.frames, f)
	if as.mem.pool.Unpin(f) {
		as.mem.pool.FreeData(f)
	}
	s.releasedLocked(as.mem)
}

// reserveForPinned takes as many frames as copying the pinned pages will need at
// most, so that a fork without memory fails before it has changed anything.
// They are given back just before they are needed.
func (as *AddressSpace) reserveForPinned() ([]addr.PFN, error) {
	as.pins.mu.Lock()
	n := len(as.pins.frames)
	as.pins.mu.Unlock()
	if n == 0 {
		return nil, nil
	}
	reserve := make([]addr.PFN, n*(1+pagetable.MaxPathTables))
	if err := as.mem.allocate(reserve); err != nil {
		return nil, err
	}
	return reserve, nil
}

// copyPinned gives the child of a fork its own copies of what the parent has
// pinned. The parent's lookups are refused and those before have ended, so the
// set stands still; nobody uses the child yet.
//
// Errors: ErrNoMemory; the caller closes the child.
func (as *AddressSpace) copyPinned(child *AddressSpace) error {
	epoch.AssertOutside("fork")
	as.pins.mu.Lock()
	defer as.pins.mu.Unlock()
	for f, pin := range as.pins.frames {
		if variant.ForkSharesPinned {
			break
		}
		if err := child.copyPage(pin.gva, f); err != nil {
			return err
		}
	}
	return nil
}

// copyPage replaces f at gva by a copy, if it is there. Nobody uses the address
// space yet, so what it no longer refers to is dropped at once: left to the
// reclaimer, the parent's pinned frame would look shared until then.
func (as *AddressSpace) copyPage(gva addr.GVA, f addr.PFN) error {
	a := as.borrow()
	defer a.giveBack()
	a.private = true
	if !a.leadsTo(gva, f) {
		return nil
	}
	if err := a.ownPath(gva); err != nil {
		return err
	}
	var dst [1]addr.PFN
	if err := as.mem.allocate(dst[:]); err != nil {
		return err
	}
	for !a.replacePinned(gva, f, dst[0]) {
		as.mem.door.wait()
	}
	as.mem.drop(pagetable.Dropped{Frame: f})
	return nil
}

// leadsTo reports whether a private page at gva is frame f.
func (a Accessor) leadsTo(gva addr.GVA, f addr.PFN) bool {
	a.h.Enter(a.as.id)
	defer a.h.Exit()
	e := a.as.pt.Find(gva).Entry
	return e.Has(pagetable.Present) && e.Frame() == f && e&(pagetable.Shared|pagetable.Huge) == 0
}

// replacePinned puts a copy of f in its place, not writable; it reports false
// if the door is shut.
func (a Accessor) replacePinned(gva addr.GVA, f, dst addr.PFN) bool {
	a.h.Enter(a.as.id)
	defer a.h.Exit()
	if !a.as.mem.door.passes() {
		return false
	}
	a.as.mem.stored(dst)
	a.as.mem.arena.Copy(dst, f)
	l := a.as.pt.Find(gva)
	if !l.Replace(pagetable.LeafEntry(dst, l.Entry&(pagetable.User|pagetable.NoExec|pagetable.Armed))) {
		panic("guestmem: the page table of a child was edited while it was being forked")
	}
	return true
}
