package guestmem

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// poolStore is the region of the frame pool as the pool knows it: it backs
// frames before they are handed out, and gives back those that are free.
type poolStore struct {
	region *Region
	// populateSlot: vCPUs will use the memory, so its slot mapping is filled
	// ahead as well; set before the first frame is handed out to a guest.
	populateSlot atomic.Bool // frames may be on their way ahead meanwhile
}

func (s *poolStore) pages(f addr.PFN, n uint64) (first uint64, alias, slot []byte) {
	r := s.region
	first = r.pageOf(f.GPA())
	return first, hostPages(r.host.alias, first, n), hostPages(r.host.slot, first, n)
}

// Populate implements cow.FrameStore.
func (s *poolStore) Populate(f addr.PFN, n uint64) error {
	first, alias, slot := s.pages(f, n)
	err := sys.Populate(alias)
	if errors.Is(err, sys.ErrNotSupported) {
		err = sys.Allocate(s.region.host.file, first*addr.PageSize, n*addr.PageSize)
	}
	if err != nil {
		return fmt.Errorf("populate %#x bytes: %w", len(alias), err)
	}
	if s.populateSlot.Load() {
		// Only a head start for vCPUs: the pages exist, KVM maps them itself.
		_ = sys.Populate(slot)
	}
	return nil
}

// GiveBack implements cow.FrameStore. Frames that somebody accessed by
// guest-physical address are waited for: the pool's own users have let go of
// them long ago.
func (s *poolStore) GiveBack(f addr.PFN, n uint64) error {
	r := s.region
	first, _, _ := s.pages(f, n)
	r.pop.Lock()
	defer r.pop.Unlock()
	r.hidePages(first, n)
	if r.mem.tracking.Load() {
		r.dirty.add(first, n) // it reads as zero from now on
	}
	return sys.PunchHole(r.host.file, first*addr.PageSize, n*addr.PageSize)
}
