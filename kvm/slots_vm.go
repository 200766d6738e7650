//go:build linux && amd64

package kvm

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem"
	"golang.org/x/sys/unix"
)

// VMSlots returns a setter of the memory slots of a VM that the embedder owns,
// by its descriptor, which is neither duplicated nor closed.
//
// KVM_SET_USER_MEMORY_REGION.
func VMSlots(fd int) guestmem.SlotSetter { return fdSetter(fd) }

type fdSetter int

// SetSlot implements guestmem.SlotSetter.
func (fd fdSetter) SetSlot(s guestmem.Slot) error {
	return opError(slotOp("KVM_SET_USER_MEMORY_REGION", s), setRegion(int(fd), s))
}

func setRegion(fd int, s guestmem.Slot) error {
	r := regionOf(s)
	return retryEINTR(func() error {
		_, err := ioctlPtr(fd, reqSetMemoryRegion, &r)
		return err
	})
}

func regionOf(s guestmem.Slot) uMemoryRegion {
	r := uMemoryRegion{slot: s.ID, gpa: uint64(s.Base), size: s.Size, hva: uint64(s.HVA)}
	if s.ReadOnly {
		r.flags |= memReadOnly
	}
	if s.DirtyLog {
		r.flags |= memLogDirty
	}
	return r
}

func slotOp(ioctl string, s guestmem.Slot) string {
	if s.Size == 0 {
		return fmt.Sprintf("%s delete slot %d at %v", ioctl, s.ID, s.Base)
	}
	return fmt.Sprintf("%s slot %d [%v, %#x)", ioctl, s.ID, s.Base, uint64(s.Base)+s.Size)
}

// vmSetter sets slots of a VM of this package: what is dirty in a slot is not
// lost with it, and a slot over a guest_memfd says so to the kernel.
type vmSetter struct{ vm *VM }

// SetSlot implements guestmem.SlotSetter.
func (w vmSetter) SetSlot(s guestmem.Slot) error {
	vm := w.vm
	if s.ReadOnly && s.Size != 0 && !vm.sys.host.readOnlyMem {
		return opError(slotOp("KVM_SET_USER_MEMORY_REGION", s), fmt.Errorf("%w: this KVM has no read-only slots (KVM_CAP_READONLY_MEM)", ErrNotSupported))
	}
	return vm.useOpen(slotOp("KVM_SET_USER_MEMORY_REGION", s), func(fd int) error {
		if vm.dirty != nil {
			return vm.dirty.setSlot(fd, s)
		}
		return vm.setSlot(fd, s)
	})
}

// setSlot is KVM_SET_USER_MEMORY_REGION, or KVM_SET_USER_MEMORY_REGION2 for a
// slot over a guest_memfd.
func (vm *VM) setSlot(fd int, s guestmem.Slot) error {
	memfd, offset, ok := vm.memfds.find(s.HVA)
	if !ok || s.Size == 0 {
		return setRegion(fd, s)
	}
	r := uMemoryRegion2{uMemoryRegion: regionOf(s), memfd: uint32(memfd), memfdOffset: offset}
	r.flags |= memGuestMemfd
	err := retryEINTR(func() error {
		_, err := ioctlPtr(fd, reqSetMemoryRegion2, &r)
		return err
	})
	if err == unix.EINVAL && (s.DirtyLog || s.ReadOnly) {
		return fmt.Errorf("%w: KVM neither tracks what is written to a guest_memfd nor has it read-only: %w", ErrNotSupported, err)
	}
	return err
}

// vmListener is the VM as its Memory sees it.
type vmListener struct{ vm *VM }

// UpdateRegions implements guestmem.RegionListener. With dirty tracking, vCPUs are
// paused where a region goes: what they write between the look at what is dirty
// and the deletion of the slot would be missed if another listener then refuses,
// and the region comes back.
func (l vmListener) UpdateRegions(regions []*guestmem.Region) error {
	d := l.vm.dirty
	if d == nil {
		return l.vm.slots.UpdateRegions(regions)
	}
	if d.beforeUpdate(regions) {
		l.vm.Pause()
		defer l.vm.Resume()
	}
	if err := l.vm.slots.UpdateRegions(regions); err != nil {
		return err
	}
	d.afterUpdate(regions)
	return nil
}
