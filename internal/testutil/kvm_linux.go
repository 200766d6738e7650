package testutil

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

const (
	kvmDevice        = "/dev/kvm"
	kvmGetAPIVersion = 0xae00 // _IO(0xAE, 0x00)
	kvmAPIVersion    = 12
)

// RequireKVM skips t unless /dev/kvm can be opened and answers. It fails t
// instead where GUESTMM_REQUIRE names kvm, or where the device may be opened
// and does not work.
func RequireKVM(t testing.TB) {
	t.Helper()
	require(t, needKVM, kvmLack(kvmDevice))
}

func kvmLack(path string) *lack {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return kvmOpenLack(path, err)
	}
	defer unix.Close(fd)
	version, err := unix.IoctlRetInt(fd, kvmGetAPIVersion)
	if err != nil {
		return &lack{fmt.Sprintf("%s does not answer KVM_GET_API_VERSION: %v", path, err), "load the host's kvm module", true}
	}
	if version != kvmAPIVersion {
		return &lack{fmt.Sprintf("%s has API version %d, not %d", path, version, kvmAPIVersion), "use Linux 2.6.22 or later", true}
	}
	return nil
}

func kvmOpenLack(path string, err error) *lack {
	reason := fmt.Sprintf("open %s: %v", path, err)
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return &lack{reason, "add this user to the group that owns " + path + " (usually kvm), or run as root", false}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return &lack{reason, "enable virtualization (nested, inside a virtual machine) and load kvm_intel or kvm_amd; in a container pass --device " + path, false}
	default:
		return &lack{reason, "see the kernel's log", true}
	}
}
