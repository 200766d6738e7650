//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// dirtyTracker knows which slots a VM has and which of their pages the kernel
// has reported dirty. What was reported and nobody has asked for yet is pending, by
// guest-physical page, so that it outlives a slot that is replaced.
type dirtyTracker struct {
	vm     *VM
	mode   DirtyMode // immutable
	manual bool      // the log is cleared by hand; immutable

	mu       sync.Mutex // outside of it: life; inside: nothing
	slots    map[uint32]guestmem.Slot
	pending  dirtySet
	scratch  []uint64           // for the bitmap of a slot
	rings    []*dirtyRingBuffer // of DirtyRing
	resetDue int                // entries that were taken and not given back to KVM
	doubtful dirtySet           // pages that KVM may not have armed: see rearm

	reset func(fd int) (done int, err error) // resetRings; immutable but for tests

	known []*guestmem.Region // that slots were set for last; mu
	gone  []*guestmem.Region // that the last update took away; mu
}

// newDirtyTracker enables the mode: the ring before there is any vCPU.
func newDirtyTracker(vm *VM) (*dirtyTracker, error) {
	d := &dirtyTracker{vm: vm, mode: vm.o.Dirty, slots: make(map[uint32]guestmem.Slot), pending: make(dirtySet), doubtful: make(dirtySet), reset: resetRings}
	if d.mode == DirtyLog {
		d.manual = vm.sys.host.manualDirtyLog&manualProtectEnable != 0 && vm.EnableCap(capManualDirtyLog, manualProtectEnable) == nil
		return d, nil
	}
	sizeBytes := vm.o.RingEntries * ringEntrySize
	if most := vm.sys.host.dirtyRing; sizeBytes > most || sizeBytes < unix.Getpagesize() {
		return nil, opError("NewVM", fmt.Errorf("%w: a dirty ring of %d entries, this KVM has %d to %d (Linux 5.11)",
			ErrNotSupported, vm.o.RingEntries, min(most, unix.Getpagesize())/ringEntrySize, most/ringEntrySize))
	}
	return d, vm.EnableCap(capDirtyRing, uint64(sizeBytes))
}

// setSlot sets a slot, and before or after it takes what is dirty in the one
// that goes.
//
// Preconditions:
//   - fd is the VM's, and stays open.
//   - If the memory stays and another slot takes over, vCPUs are out of the guest.
func (d *dirtyTracker) setSlot(fd int, s guestmem.Slot) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.slots[s.ID]
	if s.Size == 0 && old.DirtyLog && d.mode == DirtyLog {
		if err := d.fetchLog(fd, old); err != nil {
			return err
		}
	}
	if err := d.vm.setSlot(fd, s); err != nil {
		return err
	}
	if s.Size != 0 {
		d.slots[s.ID] = s
		return nil
	}
	if d.mode == DirtyRing {
		// No entry of the slot comes any more; those there are still have its name.
		// If that fails, they are named when the rings are drained next, by whatever
		// the slot is then: pages too many, of memory that is dirty or gone.
		d.drain(fd)
	}
	// The next slot there begins with all of it armed.
	d.doubtful.extract(uint64(old.Base.PFN()), old.Size/addr.PageSize, d.pending.add)
	delete(d.slots, s.ID)
	return nil
}

// CollectDirty implements guestmem.DirtySource: it sets the bit of each page of
// r that a vCPU has written since the last call, and has KVM tell of the next
// write. By log it costs a copy of the slot's bitmap, and a clearing for each run of dirty
// pages; by ring what is dirty, and a kick of each vCPU that is in the guest, so that no
// processor keeps entries to itself.
//
// Writes by a vCPU that has returned from Run, or been paused, are all there.
//
// KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG; KVM_RESET_DIRTY_RINGS.
func (vm *VM) CollectDirty(r *guestmem.Region, bitmap []uint64) error {
	return vm.CollectDirtyPages(r, func(first, n uint64) {
		for page := first; page < first+n; page++ {
			bitmap[page/64] |= 1 << (page % 64)
		}
	})
}

// CollectDirtyPages implements guestmem.SparseDirtySource: CollectDirty with a call
// for each page.
func (vm *VM) CollectDirtyPages(r *guestmem.Region, add func(first, n uint64)) error {
	d := vm.dirty
	if d == nil {
		return opError("CollectDirty", fmt.Errorf("%w: the VM was made without dirty tracking", ErrNotSupported))
	}
	if d.mode == DirtyRing {
		vm.Pause()
		vm.Resume()
	}
	return vm.use("CollectDirty", func(fd int) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if !slices.Contains(d.known, r) {
			return nil // it went, and what is dirty at its place is another one's
		}
		first, n := uint64(r.Base().PFN()), r.Size()/addr.PageSize
		if d.mode == DirtyRing {
			if err := d.drain(fd); err != nil {
				return err
			}
			d.pending.addFrom(d.doubtful, first, n)
		} else if err := d.collectLog(fd, first, n); err != nil {
			return err
		}
		d.pending.extract(first, n, func(page uint64) { add(page-first, 1) })
		return nil
	})
}

// beforeUpdate is told the regions that slots are about to be set for, and reports
// whether one goes. What is pending of a region that went is forgotten one update
// late: the next one may bring it back, if another listener has refused its removal.
// No other region can have taken its place before that.
func (d *dirtyTracker) beforeUpdate(regions []*guestmem.Region) (goes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, r := range missingFrom(regions, d.gone) {
		for _, s := range [...]dirtySet{d.pending, d.doubtful} {
			s.extract(uint64(r.Base().PFN()), r.Size()/addr.PageSize, func(uint64) {})
		}
	}
	d.gone = nil
	return len(missingFrom(regions, d.known)) > 0
}

// afterUpdate is told the regions that slots have been set for.
func (d *dirtyTracker) afterUpdate(regions []*guestmem.Region) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.gone = missingFrom(regions, d.known)
	d.known = slices.Clone(regions)
}

// missingFrom returns those of old that are not among now.
func missingFrom(now, old []*guestmem.Region) (missing []*guestmem.Region) {
	if len(old) == 0 {
		return nil
	}
	is := make(map[*guestmem.Region]bool, len(now))
	for _, r := range now {
		is[r] = true
	}
	for _, r := range old {
		if !is[r] {
			missing = append(missing, r)
		}
	}
	return missing
}

func (d *dirtyTracker) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for _, r := range d.rings {
		errs = append(errs, unmapMemory(r.mem))
	}
	d.rings = nil
	return opError("munmap dirty ring", errors.Join(errs...))
}
