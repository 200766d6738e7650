//go:build linux && amd64

package kvm

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/inject"
)

// What this package asks of the kernel, each behind a point where tests let it
// fail: ioctls by their request, and the few other calls by the wrappers below.

// requestPoints are the points of the requests that a Platform makes. Others
// share one.
var requestPoints = map[uintptr]*inject.Point{
	reqGetAPIVersion:   inject.New("KVM_GET_API_VERSION"),
	reqCreateVM:        inject.New("KVM_CREATE_VM"),
	reqCheckExtension:  inject.New("KVM_CHECK_EXTENSION"),
	reqGetVCPUMmapSize: inject.New("KVM_GET_VCPU_MMAP_SIZE"),
	reqGetSupportedCPU: inject.New("KVM_GET_SUPPORTED_CPUID"),
	reqCreateVCPU:      inject.New("KVM_CREATE_VCPU"),
	reqSetMemoryRegion: inject.New("KVM_SET_USER_MEMORY_REGION"),
	reqSetTSSAddr:      inject.New("KVM_SET_TSS_ADDR"),
	reqRun:             inject.New("KVM_RUN"),
	reqSetRegs:         inject.New("KVM_SET_REGS"),
	reqGetSregs:        inject.New("KVM_GET_SREGS"),
	reqSetSregs:        inject.New("KVM_SET_SREGS"),
	reqSetMSRs:         inject.New("KVM_SET_MSRS"),
	reqSetCPUID2:       inject.New("KVM_SET_CPUID2"),
	reqSetMPState:      inject.New("KVM_SET_MP_STATE"),
	reqSetEvents:       inject.New("KVM_SET_VCPU_EVENTS"),
	reqSetDebugRegs:    inject.New("KVM_SET_DEBUGREGS"),
	reqGetXSave:        inject.New("KVM_GET_XSAVE"),
	reqSetXSave:        inject.New("KVM_SET_XSAVE"),
	reqSetXCRs:         inject.New("KVM_SET_XCRS"),
	reqGetXSave2:       inject.New("KVM_GET_XSAVE2"),
}

var (
	atOtherRequest = inject.New("kvm: another request")
	atOpen         = inject.New("kvm: open")
	atClose        = inject.New("kvm: close")
	atMmap         = inject.New("kvm: mmap")
	atMunmap       = inject.New("kvm: munmap")
	atDontNeed     = inject.New("kvm: madvise")
	atMprotect     = inject.New("kvm: mprotect")
)

// injected returns what a request is to fail with, 0 for not at all.
func injected(req uintptr) syscall.Errno {
	if !inject.Armed() {
		return 0
	}
	at := requestPoints[req]
	if at == nil {
		at = atOtherRequest
	}
	return at.Errno()
}

func openFile(path string, flags int) (int, error) {
	if err := atOpen.Err(); err != nil {
		return -1, err
	}
	return unix.Open(path, flags, 0)
}

// closeFD closes fd also where it is made to fail, as the kernel does.
func closeFD(fd int) error {
	err := unix.Close(fd)
	if injected := atClose.Err(); injected != nil {
		return injected
	}
	return err
}

func mapMemory(fd, length, flags int) ([]byte, error) {
	if err := atMmap.Err(); err != nil {
		return nil, err
	}
	return unix.Mmap(fd, 0, length, unix.PROT_READ|unix.PROT_WRITE, flags)
}

func unmapMemory(b []byte) error {
	if err := atMunmap.Err(); err != nil {
		return err
	}
	return unix.Munmap(b)
}
