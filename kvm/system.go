//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const devicePath = "/dev/kvm"

// System is the open KVM device of this host. It is safe for concurrent use.
type System struct {
	runSize int     // KVM_GET_VCPU_MMAP_SIZE; immutable after Open
	cpuid   *uCPUID // what a vCPU is shown; immutable after Open
	xcr0    uint64  // immutable after Open
	host    host    // what full VMs go by; immutable after Open

	mu     sync.Mutex
	fd     int    // -1 when closed; guarded by mu
	traits traits // what the probe found; guarded by mu
	probed bool   // guarded by mu
}

// Open opens /dev/kvm and checks what the package needs of it: API version 12,
// SYNC_REGS and IMMEDIATE_EXIT (Linux 4.17). errors.Is(err, unix.ENOENT) says
// that there is no device, unix.EACCES that this user may not open it.
// Close releases it; VMs made from it stay usable.
func Open() (*System, error) { return openAt(devicePath) }

func openAt(path string) (*System, error) {
	fd, err := openRetry(path)
	if err != nil {
		return nil, opError("open "+path, withCure(err))
	}
	s := &System{fd: fd}
	if err := s.init(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// openRetry retries EINTR: a preemption signal may arrive while the open waits.
func openRetry(path string) (int, error) {
	for {
		fd, err := openFile(path, unix.O_RDWR|unix.O_CLOEXEC)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// withCure adds what the user can do about it.
func withCure(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: this host offers no KVM; load kvm_intel or kvm_amd, enable virtualization in the firmware, or nested virtualization in a VM", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: add user %d to the group that owns %s (often kvm), or run as root", err, os.Getuid(), devicePath)
	}
	return err
}

func (s *System) init() error {
	version, err := ioctl(s.fd, reqGetAPIVersion, 0)
	if err != nil {
		return opError("KVM_GET_API_VERSION", err)
	}
	if version != 12 {
		return opError("KVM_GET_API_VERSION", fmt.Errorf("%w: version %d, want 12", ErrNotSupported, version))
	}
	for _, need := range []struct {
		name string
		ext  int
		bits int
	}{
		{"KVM_CAP_SYNC_REGS (Linux 4.17)", capSyncRegs, syncAll},
		{"KVM_CAP_IMMEDIATE_EXIT (Linux 4.11)", capImmediateExit, 1},
	} {
		got, err := ioctl(s.fd, reqCheckExtension, uintptr(need.ext)) // 0 for what the kernel does not know
		if err != nil {
			return opError("KVM_CHECK_EXTENSION "+need.name, err)
		}
		if got&need.bits != need.bits {
			return opError("KVM_CHECK_EXTENSION", fmt.Errorf("%w: %s: have %#x, want %#x", ErrNotSupported, need.name, got, need.bits))
		}
	}
	if s.runSize, err = ioctl(s.fd, reqGetVCPUMmapSize, 0); err != nil {
		return opError("KVM_GET_VCPU_MMAP_SIZE", err)
	}
	supported := &uCPUID{n: maxCPUID}
	if _, err := ioctlPtr(s.fd, reqGetSupportedCPU, supported); err != nil {
		return opError("KVM_GET_SUPPORTED_CPUID", err)
	}
	if s.cpuid, s.xcr0, err = guestCPUID(supported); err != nil {
		return err
	}
	s.host, err = s.askHost(supported)
	return err
}

// extension is KVM_CHECK_EXTENSION; 0 for what the kernel does not know.
func (s *System) extension(ext int) int {
	n, err := ioctl(s.fd, reqCheckExtension, uintptr(ext))
	if err != nil {
		return 0
	}
	return n
}

// Close closes the device. Closing twice is fine.
func (s *System) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	fd := s.fd
	s.fd = -1
	return opError("close "+devicePath, closeFD(fd))
}

// createVM is KVM_CREATE_VM. It retries EINTR, which the runtime's preemption
// signal causes while the kernel allocates.
func (s *System) createVM() (*vm, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil, opError("KVM_CREATE_VM", ErrClosed)
	}
	for {
		fd, err := ioctl(s.fd, reqCreateVM, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, opError("KVM_CREATE_VM", err)
		}
		return newVM(s, fd)
	}
}
