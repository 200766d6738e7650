//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// GuestMemfd is memory whose file belongs to one VM: the kernel maps it to the
// guest by the file and not by a host mapping. It is shared with the host, by a mapping
// that makes it a region:
//
//	g, err := vm.NewGuestMemfd(size)
//	r, err := m.AddRegion(guestmem.RegionOptions{Base: base, Size: size,
//		Backing: guestmem.BackingForeign, Mapping: g.Mapping()})
//
// The slots of such a region are over the file. KVM tracks no writes to them and has
// none that is read-only (up to Linux 6.18): where the VM has dirty tracking, or the region
// is read-only, AddRegion answers ErrNotSupported.
type GuestMemfd struct {
	vm   *VM
	file *os.File
	mem  []byte // nil when closed; the table's mu
}

// memfdTable finds the guest_memfd behind a mapping.
type memfdTable struct {
	mu   sync.Mutex
	open []*GuestMemfd // mu
}

// NewGuestMemfd creates a guest_memfd of sizeBytes, whole pages, and maps it.
//
// Errors: ErrNotSupported before Linux 6.18, or where this KVM has none that can
// be mapped; the errno of the calls.
//
// KVM_CREATE_GUEST_MEMFD.
func (vm *VM) NewGuestMemfd(sizeBytes uint64) (*GuestMemfd, error) {
	const op = "KVM_CREATE_GUEST_MEMFD"
	if sizeBytes == 0 || sizeBytes%addr.PageSize != 0 {
		return nil, opError(op, fmt.Errorf("%#x is not whole pages: %w", sizeBytes, guestmem.ErrInvalid))
	}
	const flags = guestMemfdMmap | guestMemfdInitShared
	var have int
	var fd int
	err := vm.use(op, func(vmfd int) (err error) {
		if have, _ = ioctl(vmfd, reqCheckExtension, capGuestMemfdFlags); have&flags != flags {
			return fmt.Errorf("%w: a guest_memfd that can be mapped needs Linux 6.18; flags are %#x, want %#x", ErrNotSupported, have, flags)
		}
		fd, err = ioctlPtr(vmfd, reqCreateGuestMemfd, &uGuestMemfd{size: sizeBytes, flags: flags})
		return err
	})
	if err != nil {
		return nil, err
	}
	g := &GuestMemfd{vm: vm, file: os.NewFile(uintptr(fd), "guest_memfd")}
	if g.mem, err = unix.Mmap(fd, 0, int(sizeBytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, opError("mmap guest_memfd", errors.Join(err, g.file.Close()))
	}
	vm.memfds.mu.Lock()
	defer vm.memfds.mu.Unlock()
	vm.memfds.open = append(vm.memfds.open, g)
	return g, nil
}

// Mapping returns where the memory is mapped.
func (g *GuestMemfd) Mapping() addr.HVA { return addr.HVA(addressOf(g.mem)) }

// Close unmaps and closes it. Remove its regions first. Closing twice is fine.
func (g *GuestMemfd) Close() error {
	t := &g.vm.memfds
	t.mu.Lock()
	defer t.mu.Unlock()
	if g.mem == nil {
		return nil
	}
	for i, x := range t.open {
		if x == g {
			t.open = append(t.open[:i:i], t.open[i+1:]...)
			break
		}
	}
	mem := g.mem
	g.mem = nil
	return opError("close guest_memfd", errors.Join(unix.Munmap(mem), g.file.Close()))
}

// find returns the descriptor and the offset in it of what is mapped at hva.
func (t *memfdTable) find(hva addr.HVA) (fd int, offset uint64, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, g := range t.open {
		if off := uint64(hva) - addressOf(g.mem); off < uint64(len(g.mem)) {
			return int(g.file.Fd()), off, true
		}
	}
	return -1, 0, false
}

// kindOf tells mappings of different files, and of none, apart.
func (t *memfdTable) kindOf(hva addr.HVA) int {
	fd, _, _ := t.find(hva)
	return fd
}
