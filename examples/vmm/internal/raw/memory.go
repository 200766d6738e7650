//go:build linux && amd64

package raw

import (
	"errors"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/kvm"
)

// Added is a region that was added by hand.
type Added struct {
	m    *Machine
	slot int
	gpa  uint64
	fd   int
	mem  []byte
	view []byte // the second mapping
}

// AddRegion makes a memfd, maps it twice, as the library does, and sets a slot.
func (m *Machine) AddRegion(gpa, size uint64) (_ *Added, err error) {
	a := &Added{m: m, slot: len(m.regions), gpa: gpa}
	if a.fd, err = unix.MemfdCreate("raw", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err != nil {
		return nil, err
	}
	err = unix.Ftruncate(a.fd, int64(size))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(a.fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW)
	}
	if err == nil {
		a.mem, err = unix.Mmap(a.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		a.view, err = unix.Mmap(a.fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err == nil {
		err = m.SetSlot(a.slot, gpa, a.mem, false)
	}
	if err != nil {
		return nil, errors.Join(err, a.unmap())
	}
	return a, nil
}

// Remove deletes the slot and the memory.
func (a *Added) Remove() error {
	return errors.Join(a.m.SetSlot(a.slot, a.gpa, nil, false), a.unmap())
}

func (a *Added) unmap() (err error) {
	for _, b := range [][]byte{a.mem, a.view} {
		if b != nil {
			err = errors.Join(err, unix.Munmap(b))
		}
	}
	a.mem, a.view = nil, nil
	return errors.Join(err, a.CloseFile())
}

// Seal takes the region from the guest, and seals its memfd against writing.
func (a *Added) Seal() error {
	err := a.m.SetSlot(a.slot, a.gpa, nil, false)
	for _, b := range [][]byte{a.mem, a.view} {
		err = errors.Join(err, unix.Munmap(b))
	}
	a.mem, a.view = nil, nil
	_, seal := unix.FcntlInt(uintptr(a.fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SEAL)
	return errors.Join(err, seal)
}

// CloseFile closes the memfd.
func (a *Added) CloseFile() error { return unix.Close(a.fd) }

// Touch has the host back size bytes.
func (a *Added) Touch(size uint64) error {
	return unix.Madvise(a.mem[:size], unix.MADV_POPULATE_WRITE)
}

// Punch gives the first size bytes back to the host.
func (a *Added) Punch(size uint64) error {
	return unix.Fallocate(a.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(size))
}

// HarvestLog gets and clears the dirty log of a slot, and returns the number of
// dirty pages. bitmap has a bit for each page.
func (m *Machine) HarvestLog(slot int, bitmap []uint64) (n int, err error) {
	var pin runtime.Pinner
	pin.Pin(&bitmap[0])
	defer pin.Unpin()
	if err := ioctlPtr(m.fd, getDirtyLog, &dirtyLog{slot: uint32(slot), bitmap: addressOf(bitmap)}); err != nil {
		return 0, err
	}
	first, last := -1, 0
	for i, w := range bitmap {
		if w != 0 {
			if first < 0 {
				first = i
			}
			last = i
			for ; w != 0; w &= w - 1 {
				n++
			}
		}
	}
	if n == 0 {
		return 0, nil
	}
	pages := min(uint64(last+1)*64, m.regions[slot].Size/4096) - uint64(first)*64
	return n, ioctlPtr(m.fd, clearDirtyLog, &clearLog{
		slot: uint32(slot), nPages: uint32(pages), first: uint64(first) * 64, bitmap: addressOf(bitmap[first:]),
	})
}

// HarvestRing takes what the rings have, and returns the number of pages of the
// slot among them.
func (m *Machine) HarvestRing(slot int, bitmap []uint64) (n int, err error) {
	for _, v := range m.vcpus {
		ring := ringOf(v.ring)
		for {
			e := &ring[v.next%ringEntries]
			if atomic.LoadUint32(&e.flags)&1 == 0 {
				break
			}
			if int(e.slot) == slot {
				bitmap[e.offset/64] |= 1 << (e.offset % 64)
				n++
			}
			atomic.StoreUint32(&e.flags, 2)
			v.next++
		}
	}
	// A signal that is pending ends the reset early, with pages that are not armed again;
	// what cannot be blocked is left out of account here.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, former unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &former); err != nil {
		return n, err
	}
	_, err = ioctl(m.fd, resetRings, 0)
	return n, errors.Join(err, unix.PthreadSigmask(unix.SIG_SETMASK, &former, nil))
}

// Mode returns how the machine tracks dirty pages.
func (m *Machine) Mode() kvm.DirtyMode { return m.dirty }
