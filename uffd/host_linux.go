//go:build amd64 || arm64

package uffd

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

func thisHost() *host {
	return &host{read: readFile, release: kernelRelease, newMemfd: tryMemfd, kvmExtension: kvmExtension}
}

func readFile(path string) (string, error) {
	b, err := os.ReadFile(path)
	return strings.TrimSpace(string(b)), err
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]) + " " + unix.ByteSliceToString(u.Machine[:]), nil
}

func tryMemfd() error {
	fd, err := unix.MemfdCreate("guestmm-probe", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// kvmExtension opens the device for the question alone.
func kvmExtension(number int) (int, error) {
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: "/dev/kvm", Err: err}
	}
	defer unix.Close(fd)
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), reqKVMCheckExtension, uintptr(number))
	if errno != 0 {
		return 0, fmt.Errorf("KVM_CHECK_EXTENSION: %w", errno)
	}
	return int(n), nil
}
