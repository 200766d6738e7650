//go:build linux && amd64

package kvm

import (
	"fmt"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// vm is one virtual machine: its descriptor and its memory slots.
type vm struct {
	sys      *System
	xsaveLen int // bytes of a vCPU's XSAVE image; immutable

	mu sync.Mutex
	fd int // -1 when closed; guarded by mu
}

func newVM(s *System, fd int) *vm {
	v := &vm{sys: s, fd: fd, xsaveLen: 4096}
	// KVM_CAP_XSAVE2 (Linux 5.17) asked of the VM gives the size; older kernels
	// have images of 4096 bytes only.
	if n, err := ioctl(fd, reqCheckExtension, capXSave2); err == nil && n > v.xsaveLen {
		v.xsaveLen = n
	}
	return v
}

// setSlot is KVM_SET_USER_MEMORY_REGION: size 0 deletes the slot.
func (v *vm) setSlot(id uint32, gpa addr.GPA, size uint64, hva addr.HVA) error {
	r := uMemoryRegion{slot: id, gpa: uint64(gpa), size: size, hva: uint64(hva)}
	if _, err := ioctlPtr(v.fd, reqSetMemoryRegion, &r); err != nil {
		return opError(fmt.Sprintf("KVM_SET_USER_MEMORY_REGION slot %d [%v, %#x)", id, gpa, uint64(gpa)+size), err)
	}
	return nil
}

// The pages that KVM takes for itself on an Intel host without unrestricted
// guests: a TSS of three pages, below 4 GiB.
const (
	tssAddr addr.GPA = 0xfffbd000
	tssEnd  addr.GPA = tssAddr + 3*addr.PageSize
)

// setTSS is KVM_SET_TSS_ADDR. Hosts since 2010 do not need it, since a vCPU
// starts in long mode here and never sees real mode, so its failure is not one.
func (v *vm) setTSS() { ioctl(v.fd, reqSetTSSAddr, uintptr(tssAddr)) }

// createVCPU is KVM_CREATE_VCPU, and maps the kvm_run structure. A vCPU cannot
// be destroyed before its VM.
func (v *vm) createVCPU(id int) (fd int, run []byte, err error) {
	for {
		fd, err = ioctl(v.fd, reqCreateVCPU, uintptr(id))
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return -1, nil, opError(fmt.Sprintf("KVM_CREATE_VCPU %d", id), err)
	}
	run, err = unix.Mmap(fd, 0, v.sys.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return -1, nil, opError("mmap kvm_run", err)
	}
	return fd, run, nil
}

// close is idempotent. The kernel frees the VM when the last vCPU descriptor
// and mapping are gone too.
func (v *vm) close() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.fd < 0 {
		return nil
	}
	fd := v.fd
	v.fd = -1
	return opError("close VM", unix.Close(fd))
}
