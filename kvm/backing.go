//go:build linux && amd64

package kvm

import "github.com/guestmm/guestmm/guestmem/addr"

// backing is what a Platform needs of a guestmem.Memory. Tests of the layers
// below put a plain memfd in its place.
type backing interface {
	AllocSupervisor(n int) ([]addr.PFN, error)
	FreeSupervisor([]addr.PFN)
	SupervisorBytes(addr.PFN) []byte
	ReuseTables([]addr.PFN)
}

// region is where the memory lies: one slot.
type region struct {
	base addr.GPA
	size uint64
	slot addr.HVA
}

// hva returns the address of a frame in the mapping that the slot uses.
func (r region) hva(f addr.PFN) uint64 { return uint64(r.slot) + uint64(f.GPA()-r.base) }

// contains reports whether the frame lies in the region.
func (r region) contains(f addr.PFN) bool {
	return f.GPA() >= r.base && uint64(f.GPA()-r.base) < r.size
}

// rooted is what a Platform needs of a guestmem.AddressSpace: the frame of its
// root table, which changes only while the space is stopped, and its identity.
type rooted interface{ Root() addr.PFN }
