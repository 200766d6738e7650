//go:build linux && amd64

package kvm

import (
	"errors"
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

// newVM takes fd over.
func newVM(s *System, fd int) (*vm, error) {
	v := &vm{sys: s, fd: fd, xsaveLen: 4096}
	// KVM_CAP_XSAVE2 (Linux 5.17) asked of the VM gives the size; older kernels
	// have images of 4096 bytes only.
	n, err := ioctl(fd, reqCheckExtension, capXSave2)
	if err != nil {
		return nil, errors.Join(opError("KVM_CHECK_EXTENSION KVM_CAP_XSAVE2", err), v.close())
	}
	v.xsaveLen = max(v.xsaveLen, n)
	return v, nil
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

// createVCPUFD is KVM_CREATE_VCPU. A vCPU cannot be destroyed before its VM: the
// id is taken for good.
func (v *vm) createVCPUFD(id int) (int, error) {
	for {
		fd, err := ioctl(v.fd, reqCreateVCPU, uintptr(id))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, opError(fmt.Sprintf("KVM_CREATE_VCPU %d", id), err)
		}
		return fd, nil
	}
}

// mapRun maps the kvm_run structure of a vCPU.
func (v *vm) mapRun(fd int) ([]byte, error) {
	run, err := mapMemory(fd, v.sys.runSize, unix.MAP_SHARED)
	if err != nil {
		return nil, opError("mmap kvm_run", err)
	}
	return run, nil
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
	return opError("close VM", closeFD(fd))
}
