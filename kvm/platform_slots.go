//go:build linux && amd64

package kvm

import (
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// A Platform has slots for the memory's other regions too, so that guests reach what
// objects over devices' memory show (Memory.NewDeviceObject). They come and go with the
// regions.

// firstDeviceSlot is after the pool's slot and the spare one.
const firstDeviceSlot = spareSlotID + 1

// platformSlots is the Platform as its Memory's listener, and as the setter of its
// slots.
type platformSlots struct{ p *Platform }

// UpdateRegions implements guestmem.RegionListener. The spare slot makes way: it goes
// behind all regions.
func (l platformSlots) UpdateRegions(regions []*guestmem.Region) error {
	p := l.p
	var others []*guestmem.Region
	end := p.region.base + addr.GPA(p.region.size)
	for _, r := range regions {
		if end = max(end, r.End()); r.Base() != p.region.base {
			others = append(others, r)
		}
	}
	for _, r := range others {
		if r.Contains(p.spare.at()) {
			if err := p.spare.move(end); err != nil {
				return err
			}
		}
	}
	return p.slots.UpdateRegions(others)
}

// SetSlot implements guestmem.SlotSetter.
func (l platformSlots) SetSlot(s guestmem.Slot) error {
	return opError(slotOp("KVM_SET_USER_MEMORY_REGION", s), setRegion(l.p.vm.fd, s))
}

// listen has slots follow the memory's regions.
func (p *Platform) listen() error {
	p.slots = NewSlotTable(platformSlots{p}, 0, SlotTableOptions{FirstID: firstDeviceSlot, Coalesce: CoalesceNever})
	return p.memory.AttachListener(platformSlots{p})
}

func (s *spareSlot) at() addr.GPA {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gpa
}

// move takes the slot elsewhere. If it cannot be there, it is nowhere, until the next
// zap tries again.
func (s *spareSlot) move(to addr.GPA) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in {
		if err := s.vm.setSlot(spareSlotID, s.gpa, 0, addr.HVA(addressOf(s.page))); err != nil {
			return err
		}
		s.in = false
	}
	s.place(to)
	return s.putLocked()
}

// place says where the slot goes, past KVM's own pages.
func (s *spareSlot) place(gpa addr.GPA) {
	if s.gpa = gpa; s.gpa < tssEnd && s.gpa+addr.PageSize > tssAddr {
		s.gpa = tssEnd
	}
}
