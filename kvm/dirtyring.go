//go:build linux && amd64

package kvm

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// dirtyRingBuffer is the dirty ring of one vCPU, shared with the kernel. Each
// entry goes round three states, told by its flags:
//
//	0 ──kernel: a page was written──► DIRTY ──we: taken──► RESET ──kernel: armed again──► 0
type dirtyRingBuffer struct {
	mem     []byte
	entries []uDirtyGFN
	next    uint32 // the entry that is filled next; the tracker's mu
}

// addVCPU maps the ring of a vCPU.
//
// Preconditions: the VM's descriptor stays open.
func (d *dirtyTracker) addVCPU(fd int) (*dirtyRingBuffer, error) {
	if d.mode != DirtyRing {
		return nil, nil
	}
	mem, err := unix.Mmap(fd, int64(dirtyRingPageOffset*unix.Getpagesize()), d.vm.o.RingEntries*ringEntrySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, opError("mmap dirty ring", err)
	}
	r := &dirtyRingBuffer{mem: mem, entries: dirtyRingOf(mem)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.rings = append(d.rings, r)
	return r, nil
}

// drain makes what every ring has pending, and has KVM arm those pages again
// before anyone is told of them: a write that comes between an entry and the arming is
// in the page when it is read.
//
// Errors: as long as the arming fails, pages that were taken stay pending.
//
// Preconditions: d.mu is held.
func (d *dirtyTracker) drain(fd int) error {
	for _, r := range d.rings {
		for range r.entries {
			e := &r.entries[r.next&uint32(len(r.entries)-1)]
			if atomic.LoadUint32(&e.flags)&dirtyGFNDirty == 0 {
				break
			}
			d.take(e)
			atomic.StoreUint32(&e.flags, dirtyGFNReset)
			r.next++
			d.resetDue++
		}
	}
	return d.rearm(fd)
}

// take makes the page of an entry pending. The upper half of its slot is an
// address space (of SMM); one that names no slot is of memory that is gone.
func (d *dirtyTracker) take(e *uDirtyGFN) {
	s, ok := d.slots[e.slot&0xffff]
	if ok && e.offset < s.Size/addr.PageSize {
		page := uint64(s.Base.PFN()) + e.offset
		d.pending.add(page)
		d.doubtful.remove(page) // it was armed, or KVM would not tell
	}
}

// makeRoom drains the rings since the one of v is full.
//
// Preconditions: v is out of the guest; no lock but v.mu is held.
func (d *dirtyTracker) makeRoom(v *VCPU) error {
	if d == nil {
		return opError("KVM_RUN", fmt.Errorf("%w: a dirty ring that nobody has asked for", ErrNotSupported))
	}
	return d.vm.use("drain dirty rings", func(fd int) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.drain(fd)
	})
}
