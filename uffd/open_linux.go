//go:build amd64 || arm64

package uffd

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"
)

// Via says how a userfaultfd is opened.
type Via uint8

const (
	// ViaAny tries the device, which a file mode guards, then the system call,
	// which vm.unprivileged_userfaultfd and CAP_SYS_PTRACE do.
	ViaAny Via = iota
	ViaDevice
	ViaSyscall
)

// Options are what a userfaultfd is opened with.
type Options struct {
	// Required features: Open fails where one is lacking.
	Required Features
	// Optional features are taken where they are to be had.
	Optional Features
	Via      Via
	// UserModeOnly leaves faults of the kernel alone (they fail with EFAULT),
	// system calls and vCPUs among them. It needs no privilege (5.11).
	UserModeOnly bool
}

// Open makes a userfaultfd of this process's memory and negotiates it.
//
// Errors: those of both ways that were tried, joined, so that errors.Is finds
// each errno (EPERM, EACCES, ENOENT, EMFILE, ENOSYS), with ErrNotPermitted where the last
// of them is one of rights; ErrNotSupported where a
// required feature is lacking, naming it and the oldest kernel; EPERM where
// FeatureEventFork is required and CAP_SYS_PTRACE is not there. Linux 4.3; the
// device 6.1. userfaultfd(2), ioctl_userfaultfd(2)
func Open(o Options) (*FD, error) {
	f, err := open(o)
	return f, opError("open", err)
}

func open(o Options) (*FD, error) {
	available, err := available(o)
	if err != nil {
		return nil, err
	}
	if lacking := o.Required &^ available; lacking != 0 {
		return nil, lackOf(lacking)
	}
	fd, err := openDescriptor(o)
	if err != nil {
		return nil, err
	}
	features := o.Required | o.Optional&available
	err = handshake(fd, &features)
	if errors.Is(err, unix.EPERM) && features&^o.Required&FeatureEventFork != 0 {
		// The one feature that is offered to those who may not have it.
		features &^= FeatureEventFork
		err = handshake(fd, &features)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if features.Has(FeatureWPAsync) {
		features |= FeatureWPUnpopulated // which comes with it, asked for or not
	}
	f := newFD(fd, features)
	f.userModeOnly = o.UserModeOnly
	return f, nil
}

// Available returns every feature that this kernel offers to who opens a
// userfaultfd by o, whose features do not matter.
//
// Errors: as Open's, of both ways.
func Available(o Options) (Features, error) {
	features, err := available(o)
	return features, opError("ask for features", err)
}

// available does the handshake on a descriptor of its own: it can be done once
// only, and asking for nothing is what tells everything.
func available(o Options) (Features, error) {
	fd, err := openDescriptor(o)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	arg := uffdioAPI{api: apiVersion}
	if err := ioctl(fd, reqAPI, &arg); err != nil {
		return 0, fmt.Errorf("UFFDIO_API: %w", err)
	}
	return Features(arg.features), nil
}

// handshake asks for exactly features.
func handshake(fd int, features *Features) error {
	arg := uffdioAPI{api: apiVersion, features: uint64(*features)}
	if err := ioctl(fd, reqAPI, &arg); err != nil {
		return fmt.Errorf("UFFDIO_API with %v: %w", *features, err)
	}
	return nil
}

func lackOf(features Features) error {
	return fmt.Errorf("%w: this kernel lacks %v, which needs Linux %s", ErrNotSupported, features, features.oldest())
}

// openDescriptor opens without a handshake.
func openDescriptor(o Options) (int, error) {
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	if o.UserModeOnly {
		flags |= userModeOnly
	}
	var viaDevice error
	if o.Via != ViaSyscall {
		fd, err := openDevice(flags)
		if err == nil {
			return fd, nil
		}
		viaDevice = err
	}
	if o.Via == ViaDevice {
		return -1, rights(viaDevice, viaDevice)
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, uintptr(flags), 0, 0)
	if errno != 0 {
		return -1, rights(errors.Join(viaDevice, fmt.Errorf("userfaultfd(2): %w", errno)), errno)
	}
	return int(fd), nil
}

// rights says so where last, of what err has, is an error of rights.
func rights(err, last error) error {
	if errors.Is(last, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrNotPermitted, err)
	}
	return err
}

// devicePath is changed by tests alone.
var devicePath = "/dev/userfaultfd"

func openDevice(flags int) (int, error) {
	dev, err := unix.Open(devicePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", devicePath, err)
	}
	defer unix.Close(dev)
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), reqNew, uintptr(flags))
	if errno != 0 {
		return -1, fmt.Errorf("%s: USERFAULTFD_IOC_NEW: %w", devicePath, errno)
	}
	return int(fd), nil
}
