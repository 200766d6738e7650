//go:build linux && amd64

package kvm

import (
	"runtime"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// The dirty log: a bitmap of each slot, in the kernel.
//
//	manual (Linux 5.0)   GET copies it; CLEAR clears the bits that it is given, a
//	                     run at a time, and protects those pages again
//	legacy               GET copies, clears and protects all of the slot
//
// A bit that is set after the GET is not among those that CLEAR is given, and a
// page that is written after its CLEAR is logged again: nothing is lost between
// the two, and who reads a page after the harvest reads what made it dirty.

// clearGap is how many clean words (of 64 pages) a run may have in it: to skip
// one costs the kernel a nanosecond, another ioctl 15 µs on a nested host.
const clearGap = 1024

// collectLog makes pending what the log has of the pages from first to first+n, and
// clears it there.
//
// Preconditions: d.mu is held.
func (d *dirtyTracker) collectLog(fd int, first, n uint64) error {
	for _, s := range d.slots {
		base, pages := uint64(s.Base.PFN()), s.Size/addr.PageSize
		from, to := max(base, first), min(base+pages, first+n)
		if !s.DirtyLog || from >= to {
			continue
		}
		if !d.manual {
			if err := d.fetchLog(fd, s); err != nil {
				return err
			}
			continue
		}
		words, err := d.log(fd, s)
		if err != nil {
			return err
		}
		// Neighbours in the slot that are not asked for stay in the log.
		for i := range words {
			words[i] &= maskOf(uint64(i)*64, from-base, to-base)
		}
		d.pending.addWords(base, words)
		if err := clearRuns(fd, s, words); err != nil {
			return err
		}
	}
	return nil
}

// fetchLog makes all that a slot's log has pending.
//
// Preconditions: d.mu is held.
func (d *dirtyTracker) fetchLog(fd int, s guestmem.Slot) error {
	words, err := d.log(fd, s)
	if err != nil {
		return err
	}
	d.pending.addWords(uint64(s.Base.PFN()), words)
	return nil
}

// log is KVM_GET_DIRTY_LOG. The result is the tracker's scratch.
func (d *dirtyTracker) log(fd int, s guestmem.Slot) ([]uint64, error) {
	n := int((s.Size/addr.PageSize + 63) / 64)
	if cap(d.scratch) < n {
		d.scratch = make([]uint64, n)
	}
	words := d.scratch[:n]
	// The kernel gets the address as a number: the bitmap must not move.
	var pin runtime.Pinner
	pin.Pin(&words[0])
	defer pin.Unpin()
	arg := uDirtyLog{slot: s.ID, bitmap: addressOfWord(&words[0])}
	err := retryEINTR(func() error {
		_, err := ioctlPtr(fd, reqGetDirtyLog, &arg)
		return err
	})
	return words, opError(slotOp("KVM_GET_DIRTY_LOG", s), err)
}

// clearRuns is KVM_CLEAR_DIRTY_LOG of each run of dirty words.
func clearRuns(fd int, s guestmem.Slot, words []uint64) error {
	if len(words) == 0 {
		return nil
	}
	var pin runtime.Pinner
	pin.Pin(&words[0])
	defer pin.Unpin()
	nPages := s.Size / addr.PageSize
	for from, to := nextRun(words, 0); from < to; from, to = nextRun(words, to) {
		first := uint64(from) * 64
		// Whole words, or to the end of the slot: so the kernel wants it.
		n := min(uint64(to)*64, nPages) - first
		arg := uClearDirtyLog{slot: s.ID, nPages: uint32(n), first: first, bitmap: addressOfWord(&words[from])}
		err := retryEINTR(func() error {
			_, err := ioctlPtr(fd, reqClearDirtyLog, &arg)
			return err
		})
		if err != nil {
			return opError(slotOp("KVM_CLEAR_DIRTY_LOG", s), err)
		}
	}
	return nil
}

// nextRun returns the next run of words with bits, from word i on, as a half-open
// range; an empty one if there is none.
func nextRun(words []uint64, i int) (from, to int) {
	for i < len(words) && words[i] == 0 {
		i++
	}
	from, to = i, i
	for i < len(words) && i-to <= clearGap {
		if words[i] != 0 {
			to = i + 1
		}
		i++
	}
	return from, to
}
