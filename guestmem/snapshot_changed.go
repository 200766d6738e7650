package guestmem

import (
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// interval is what was written between two instants of a memory, and leads to the
// one after. A snapshot holds the interval that ends with it, so that those after a
// snapshot are there for as long as somebody has it, and no longer.
type interval struct {
	written map[*Region]writtenUnits // regions that are not there: everything
	next    atomic.Pointer[interval]
}

// writtenUnits has a bit for each unit of a region, in words as an armMap's.
type writtenUnits struct {
	unit uint64
	bits []uint32
}

// Changed calls yield, in order, with the runs of 4 KiB pages of the region at base
// that may have been written between the instants of since and of s; yield returns
// false to end it. Pages that slices held for writing are among them, and of huge
// pages all parts. If the region was not the same one then, or everything was
// disarmed in between, these are all pages of it. since may be closed.
//
// Errors: ErrInvalid where since is not an older snapshot of the same memory, or
// there is no region at base.
func (s *Snapshot) Changed(since *Snapshot, base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	const op = "changes between snapshots"
	l := s.at(base)
	switch {
	case l == nil:
		return regionError(op, base, 0, ErrNoRegion)
	case since == nil || since.mem != s.mem || since == s:
		return regionError(op, base, l.Size, fmt.Errorf("not an older snapshot of the same memory: %w", ErrInvalid))
	}
	all := make([]uint32, 0)
	unit, everything := uint64(1), since.byHome[l.region] == nil
	for age := since.age; age != s.age; {
		if age = age.next.Load(); age == nil {
			return regionError(op, base, l.Size, fmt.Errorf("not an older snapshot of the same memory: %w", ErrInvalid))
		}
		w, ok := age.written[l.region]
		if !ok {
			everything = everything || l.arms != nil
			continue
		}
		unit = w.unit
		if len(all) == 0 {
			all = make([]uint32, len(w.bits))
		}
		for i, v := range w.bits {
			all[i] |= v
		}
	}
	stopped := false
	runs := pageRuns{yield: func(first, n uint64) {
		if !stopped {
			stopped = !yield(l.Base+addr.GPA(first*addr.PageSize), n)
		}
	}}
	if everything {
		runs.add(0, l.nPages)
	} else {
		a := armMap{unit: unit}
		for word, v := range all {
			a.eachUnitRun(uint64(word), v, runs.add)
		}
	}
	runs.flush()
	return nil
}

// at returns the layer of the region at base.
func (s *Snapshot) at(base addr.GPA) *layer {
	for _, l := range s.layers {
		if l.Base == base {
			return l
		}
	}
	return nil
}
