package guestmem

import "github.com/guestmm/guestmm/guestmem/addr"

// Slot is a memory slot of a virtual machine: a range of guest-physical
// addresses and the host memory behind it.
type Slot struct {
	ID   uint32
	Base addr.GPA
	// Size is the length in bytes; 0 deletes the slot ID.
	Size     uint64
	HVA      addr.HVA
	ReadOnly bool // guest writes exit as MMIO
	DirtyLog bool // guest writes are logged
}

// SlotSetter sets memory slots: a virtual machine of package kvm, or whatever
// an embedder has that does. After an error the slot is as before the call.
type SlotSetter interface {
	SetSlot(Slot) error
}
