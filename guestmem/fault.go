package guestmem

import (
	"context"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/variant"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// A fault is resolved in attempts. Each is one read section: it finds out what
// is to be done and does it, or finds out what it lacks, leaves, gets that, and
// the next attempt starts over. Nothing is carried from one section to the next
// but what was got outside of both, and what was lacking: who provides that asks
// StartRead again.

// outcome is how an attempt has ended.
type outcome int

const (
	resolved   outcome = iota // done, or failed with attempt.err
	again                     // somebody else was faster
	lackFrames                // the cache of frames is empty
	lackRoom                  // the batch of retired frames is full
	lackPath                  // the tables on the way are absent or shared
	lackPage                  // attempt.object does not have the page yet
	lackStop                  // views must be stopped to replace a frame
	inChange                  // a change has the area
	foreign                   // the area is still the parent's
	doorShut                  // a window is opening
	inHole                    // no area there, but a stack may grow
	onWatch                   // attempt.monitor is to be told
	lackData                  // an install has no more of what pages are to hold
	lackBlock                 // 2 MiB of nothing, which are to come at once
	lackHuge                  // a 2 MiB leaf is to allow more, or to be split
)

// attempt is a fault under way.
type attempt struct {
	gva    addr.GVA // page-aligned
	access Access

	stopped   bool // the views are stopped
	installed bool // a page was installed where there was none
	noBlock   bool // there is no block of 2 MiB to be had

	filled  bool            // it has brought the object's page itself
	exact   addr.GVA        // of the access; 0 where that is not known
	monitor *Monitor        // with onWatch, and
	flags   uffd.FaultFlags // what it is told

	err    error    // with resolved
	object *Object  // with lackPage: a reference to it, and
	index  uint64   // which of its pages
	stale  addr.PFN // the frame that was replaced, 0 if none
}

func (at *attempt) fail(err error) outcome {
	at.err = err
	return resolved
}

// refused is the outcome where StartRead did not pass.
func (at *attempt) refused(as *AddressSpace, status vmarea.Status) outcome {
	switch status {
	case vmarea.Marked:
		return inChange
	case vmarea.Foreign:
		return foreign
	}
	if as.stacks.Load() {
		return inHole
	}
	return at.fail(ErrNotMapped)
}

// fault resolves a fault; see AddressSpace.Fault.
func (a Accessor) fault(ctx context.Context, gva addr.GVA, access Access) error {
	at := attempt{gva: gva.RoundDown(), exact: gva, access: access}
	for {
		a.h.Enter(a.as.id)
		o := a.as.tryFault(a.h.Local().(*cow.Cache), a, &at)
		switch o {
		case lackFrames, lackRoom:
			a.h.Leave()
		default:
			a.h.Exit()
		}
		if err := a.provide(ctx, &at, o); err != nil {
			return err
		}
		if o == resolved {
			if access == Execute && at.err == ErrAccess {
				return a.refuseFetch(ctx, gva)
			}
			return at.err
		}
	}
}

// refuseFetch is what a fetch is told from an area that it is not permitted to
// execute. The CPU says of a page that is not there only that it is not there; so Linux
// brings it as for a read, with the errors of that, and refuses what then comes back
// (access_error in arch/x86/mm/fault.c).
func (a Accessor) refuseFetch(ctx context.Context, gva addr.GVA) error {
	if err := a.fault(ctx, gva, Read); err != nil {
		return err
	}
	return ErrAccess
}

// provide gets what an attempt lacked. No section is open.
func (a Accessor) provide(ctx context.Context, at *attempt, o outcome) (err error) {
	as := a.as
	if at.stopped {
		if at.stale != 0 {
			as.mem.view.Invalidate(as, []addr.PFN{at.stale})
			at.stale = 0
		}
		as.mem.view.Resume(as)
		at.stopped = false
	}
	switch o {
	case resolved, again:
	case lackFrames:
		err = as.mem.refill(a.h)
		a.h.Free()
	case lackRoom:
		a.h.Flush()
		a.h.Free()
	case lackPath:
		err = a.ownPath(at.gva)
	case lackPage:
		err = at.object.fill(ctx, at.index)
		at.filled = true
		at.object.unref()
		at.object = nil
	case lackStop:
		as.mem.view.Stop(as)
		at.stopped = true
	case inChange:
		err = as.waitForChange()
	case foreign:
		err = as.adopt(at.gva)
	case doorShut:
		as.mem.door.wait()
	case onWatch:
		err = a.park(ctx, at)
	case inHole:
		err = as.growStack(at.gva)
	case lackBlock:
		a.installBlock(at)
	case lackHuge:
		err = a.editHuge(at.gva, at.access)
	}
	return err
}

// waitForChange returns once the change under way, if any, has ended.
func (as *AddressSpace) waitForChange() error {
	tok, err := as.lockChange()
	if err == nil {
		as.pt.UnlockChange(tok)
	}
	return err
}

// adopt makes the space's own copy of an area that it shares with the parent it
// was forked from (R2). It only adds, so it waits for nobody but other changes.
func (as *AddressSpace) adopt(gva addr.GVA) error {
	tok, err := as.lockChange()
	if err != nil {
		return err
	}
	defer as.pt.UnlockChange(tok)
	c := as.tree.StartChange()
	if c.Adopt(gva) {
		c.Publish()
	}
	c.EndWriteAll()
	return nil
}

// tryFault makes one attempt.
//
// Preconditions: the caller is in a read section of the space and holds c.
func (as *AddressSpace) tryFault(c *cow.Cache, a Accessor, at *attempt) outcome {
	if !as.mem.door.passes() {
		return doorShut
	}
	area, status := as.tree.StartRead(at.gva)
	if status != vmarea.Found {
		return at.refused(as, status)
	}
	if invariants.Enabled {
		invariants.MayYield()
	}
	o := as.faultIn(area, c, a, at)
	if at.installed && as.mem.around > 1 && area.Watch == nil {
		as.faultAround(area, c, at)
	}
	as.tree.EndRead(area)
	return o
}

// allows reports whether an area permits an access. Whatever is mapped with any
// permission can be read, as on x86 without protection keys.
func allows(area *vmarea.Area, access Access) bool {
	switch access {
	case Read:
		return area.Prot != ProtNone
	case Write:
		return area.Prot&ProtWrite != 0
	case Execute:
		return area.Prot&ProtExec != 0
	}
	return false
}

// permOf returns what leaves of an area may allow at most.
func permOf(prot Prot) pagetable.Entry {
	if prot == ProtNone {
		return pagetable.NoExec
	}
	e := pagetable.User
	if prot&ProtWrite != 0 {
		e |= pagetable.Writable
	}
	if prot&ProtExec == 0 {
		e |= pagetable.NoExec
	}
	return e
}

// faultIn attempts a fault in an area whose read has been started.
func (as *AddressSpace) faultIn(area *vmarea.Area, c *cow.Cache, a Accessor, at *attempt) outcome {
	if !allows(area, at.access) {
		return at.fail(ErrAccess)
	}
	l := as.pt.Find(at.gva)
	if area.Watch != nil {
		if at.monitor, at.flags = as.watched(area, l, at); at.monitor != nil {
			return onWatch
		}
	}
	switch {
	case l.Huge:
		return as.faultHuge(area, l, at)
	case l.Poisoned():
		return at.fail(ErrPoison)
	case l.Guarded:
		return at.fail(errGuard)
	case l.Entry.Has(pagetable.Present):
		return as.faultPresent(area, l, c, a, at)
	case l.Bare && !at.noBlock && as.wantsHuge(area, at.gva):
		return lackBlock
	case !l.Owned:
		return lackPath
	case area.Backing != nil:
		return as.faultObject(area, l, c, at)
	}
	return as.faultZero(area, l, c, at)
}

// faultZero installs an empty page in a private anonymous area.
func (as *AddressSpace) faultZero(area *vmarea.Area, l pagetable.Leaf, c *cow.Cache, at *attempt) outcome {
	p := as.mem.pool
	f, zero, ok := p.Take(c)
	if !ok {
		return lackFrames
	}
	if !zero && !variant.NoZeroing {
		as.mem.stored(f)
		as.mem.arena.Zero(f)
	}
	if !l.Install(as.privateLeaf(area, f, at.access, armed(area, l))) {
		p.Return(c, f, true)
		c.Count.Raced.Inc()
		return again
	}
	c.Count.Zeroed.Inc()
	at.installed = true
	return at.unlessArmed(area, l)
}

// privateLeaf is the leaf of a page of a private area whose frame nobody else
// has: the predicate says whether it may be written at once.
func (as *AddressSpace) privateLeaf(area *vmarea.Area, f addr.PFN, access Access, mark pagetable.Entry) pagetable.Entry {
	as.mem.assertData(f)
	perm := permOf(area.Prot)
	if !as.mem.pool.MayWrite(cow.Write{
		AreaMayWrite: area.Prot&ProtWrite != 0,
		Watched:      mark != 0,
		OwnPath:      true,
		Frame:        f,
	}) {
		perm &^= pagetable.Writable
	}
	perm |= mark
	if access == Write {
		perm |= pagetable.Dirty
	}
	return pagetable.LeafEntry(f, perm)
}

// faultObject installs a page of an object: the object's own frame, or, for a
// write to a private area, a copy of it.
func (as *AddressSpace) faultObject(area *vmarea.Area, l pagetable.Leaf, c *cow.Cache, at *attempt) outcome {
	o := area.Backing.(*Object)
	if o.device != nil {
		return as.faultDevice(area, l, at)
	}
	index := area.OffsetOf(at.gva) / addr.PageSize
	if index >= o.pages() && o.host == nil {
		return at.fail(ErrBus)
	}
	f, ok := o.page(index)
	if !ok {
		return at.lacksPage(o, index)
	}
	if at.access == Write && area.Flags&vmarea.Shared == 0 {
		return as.copyIn(area, l, f, c, at)
	}
	p := as.mem.pool
	perm := permOf(area.Prot)
	switch {
	case area.Flags&vmarea.Shared == 0:
		perm &^= pagetable.Writable
	case !o.tracks():
		perm |= pagetable.Shared
	case at.access != Write:
		perm = perm&^pagetable.Writable | pagetable.Shared // to be told of the first store
	case o.noteStore(index):
		perm |= pagetable.Shared
	default:
		return at.lacksPage(o, index)
	}
	if mark := armed(area, l); mark != 0 {
		perm = perm&^pagetable.Writable | mark
	}
	if at.access == Write {
		perm |= pagetable.Dirty
	}
	as.mem.assertData(f)
	p.Share([]addr.PFN{f})
	if !l.Install(pagetable.LeafEntry(f, perm)) {
		p.Drop(f) // never the last: the object has one
		c.Count.Raced.Inc()
		return again
	}
	c.Count.Filled.Inc()
	at.installed = true
	return at.unlessArmed(area, l)
}

// lacksPage is the outcome where an object does not have a page, or is losing it.
//
// Preconditions: the area is being read: its own reference keeps o alive.
func (at *attempt) lacksPage(o *Object, index uint64) outcome {
	o.ref()
	at.object, at.index = o, index
	return lackPage
}

// noteStore has an object that is written back know of a store to its page, before
// the leaf becomes writable; it reports false if the object is losing the page, with
// the attempt saying so.
func (as *AddressSpace) noteStore(area *vmarea.Area, at *attempt) bool {
	o, ok := area.Backing.(*Object)
	if !ok || !o.tracks() {
		return true
	}
	index := area.OffsetOf(at.gva) / addr.PageSize
	if o.noteStore(index) {
		return true
	}
	at.lacksPage(o, index)
	return false
}

// copyIn installs a private copy of an object's page in an absent leaf.
func (as *AddressSpace) copyIn(area *vmarea.Area, l pagetable.Leaf, src addr.PFN, c *cow.Cache, at *attempt) outcome {
	p := as.mem.pool
	f, _, ok := p.Take(c)
	if !ok {
		return lackFrames
	}
	as.mem.stored(f)
	if !as.mem.copyFrame(f, src) {
		p.Return(c, f, false)
		return at.fail(errLost)
	}
	if !l.Install(as.privateLeaf(area, f, at.access, armed(area, l))) {
		p.Return(c, f, false)
		c.Count.Raced.Inc()
		return again
	}
	c.Count.Copied.Inc()
	return at.unlessArmed(area, l)
}

// faultPresent attempts a fault on a page that is there: somebody else
// installed it, or it is to become writable, usable or executable.
func (as *AddressSpace) faultPresent(area *vmarea.Area, l pagetable.Leaf, c *cow.Cache, a Accessor, at *attempt) outcome {
	perm := permOf(area.Prot)
	e := l.Entry
	missing := perm &^ e & pagetable.User
	if at.access == Execute && e.Has(pagetable.NoExec) {
		missing |= pagetable.NoExec
	}
	write := at.access == Write && !(e.Has(pagetable.Writable) && l.Owned)
	if missing == 0 && !write {
		return resolved
	}
	if !l.Owned {
		return lackPath
	}
	if !write {
		return allow(l, missing)
	}
	if e.Has(pagetable.Shared) && !as.noteStore(area, at) {
		return lackPage
	}
	if as.mem.pool.MayWrite(cow.Write{
		AreaMayWrite: area.Prot&ProtWrite != 0,
		Watched:      armed(area, l) != 0,
		OwnPath:      l.Owned,
		SharedArea:   e.Has(pagetable.Shared),
		Frame:        e.Frame(),
	}) {
		if o := allow(l, missing|pagetable.Writable|pagetable.Dirty); o != resolved {
			return o
		}
		c.Count.Reused.Inc()
		return resolved
	}
	return as.breakCOW(area, l, c, a, at)
}

func allow(l pagetable.Leaf, grant pagetable.Entry) outcome {
	if !l.Allow(grant) {
		return again
	}
	return resolved
}

// breakCOW replaces a frame that others have too by a copy. The reference to it
// is retired, not dropped: a reader that has walked to the old frame may go on
// reading what was there before, and if the count fell at once, a relative
// could take the frame over and write it under that reader's eyes
// (R4; TestR4DropIsRetired).
//
// Views are stopped meanwhile: otherwise somebody could write to the copy and
// tell a vCPU about it that still reads the old frame.
func (as *AddressSpace) breakCOW(area *vmarea.Area, l pagetable.Leaf, c *cow.Cache, a Accessor, at *attempt) outcome {
	if as.mem.view != nil && !at.stopped {
		return lackStop
	}
	if !a.h.HasRoom(1) {
		return lackRoom
	}
	p := as.mem.pool
	f, _, ok := p.Take(c)
	if !ok {
		return lackFrames
	}
	old := l.Entry.Frame()
	as.mem.stored(f)
	if !as.mem.copyFrame(f, old) {
		p.Return(c, f, false)
		return at.fail(errLost)
	}
	if variant.ShortCopy {
		as.mem.arena.Bytes(f)[addr.PageSize-1] = 0
	}
	if breakHook != nil {
		breakHook()
	}
	if !l.Replace(as.privateLeaf(area, f, at.access, armed(area, l))) {
		p.Return(c, f, false)
		c.Count.Raced.Inc()
		return again
	}
	if variant.DropAtOnce {
		p.DropData([]addr.PFN{old})
	} else {
		a.h.Retire(itemOf(pagetable.Dropped{Frame: old}))
	}
	at.stale = old
	c.Count.Copied.Inc()
	return resolved
}

// breakHook is called before a copy takes a frame's place. Only tests set it.
var breakHook func()
