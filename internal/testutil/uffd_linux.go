package testutil

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// A UFFDFeature is something of userfaultfd(2) that a test may need.
type UFFDFeature struct {
	name string
	bits uint64 // of struct uffdio_api's features
	// Oldest kernel that has it on x86-64; used for the verdict "the host
	// should have it" and in messages, never to decide that it is there.
	major, minor int
}

func (f UFFDFeature) String() string { return f.name }

// The features, in the order in which Linux gained them.
var (
	UFFDMissing       = UFFDFeature{"missing faults, anonymous", 0, 4, 3}
	UFFDEvents        = UFFDFeature{"fork, remap, remove and unmap events", 1<<1 | 1<<2 | 1<<3 | 1<<6, 4, 11}
	UFFDMissingShmem  = UFFDFeature{"missing faults, shmem", 1 << 5, 4, 11}
	UFFDThreadID      = UFFDFeature{"thread ids", 1 << 8, 4, 14}
	UFFDWPAnon        = UFFDFeature{"write-protect faults, anonymous", 1 << 0, 5, 7}
	UFFDMinorShmem    = UFFDFeature{"minor faults, shmem", 1 << 10, 5, 14}
	UFFDWPShmem       = UFFDFeature{"write-protect faults, shmem", 1<<0 | 1<<12, 5, 19}
	UFFDWPUnpopulated = UFFDFeature{"write-protecting absent pages", 1<<0 | 1<<13, 6, 4}
	UFFDPoison        = UFFDFeature{"poison", 1 << 14, 6, 6}
	UFFDWPAsync       = UFFDFeature{"asynchronous write-protection", 1<<0 | 1<<13 | 1<<15, 6, 7}
	UFFDMove          = UFFDFeature{"move", 1 << 16, 6, 8}
)

// RequireUFFD skips t unless a userfaultfd with feature can be made that also
// hears of the kernel's own faults, which KVM needs. It fails t instead where
// GUESTMM_REQUIRE names uffd, or where this kernel should have the feature.
func RequireUFFD(t testing.TB, feature UFFDFeature) {
	t.Helper()
	require(t, needUFFD, uffdLack(feature))
}

func uffdLack(feature UFFDFeature) *lack {
	fd, err := openUFFD()
	if err != nil {
		return uffdOpenLack(err)
	}
	defer unix.Close(fd)
	have, err := uffdFeatures(fd)
	if err != nil {
		return &lack{fmt.Sprintf("UFFDIO_API: %v", err), "see the kernel's log", true}
	}
	if missing := feature.bits &^ have; missing != 0 {
		return &lack{
			reason: fmt.Sprintf("userfaultfd lacks %v (feature bits %#x of %#x)", feature, missing, have),
			cure:   fmt.Sprintf("use Linux %d.%d or later", feature.major, feature.minor),
			plain:  runtime.GOARCH == "amd64" && kernelAtLeast(feature.major, feature.minor),
		}
	}
	return nil
}

// openUFFD tries the device first, since it needs no privilege where its mode
// allows, then the system call.
func openUFFD() (int, error) {
	const (
		newUFFD = 0xaa00 // USERFAULTFD_IOC_NEW, _IO(0xAA, 0x00)
		flags   = unix.O_CLOEXEC | unix.O_NONBLOCK
	)
	if dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), newUFFD, flags)
		unix.Close(dev)
		if errno == 0 {
			return int(fd), nil
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

func uffdOpenLack(err error) *lack {
	reason := fmt.Sprintf("userfaultfd: %v", err)
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return &lack{reason, "grant access to /dev/userfaultfd, or run with CAP_SYS_PTRACE", false}
	case errors.Is(err, unix.ENOSYS):
		return &lack{reason, "use a kernel with CONFIG_USERFAULTFD", false}
	default:
		return &lack{reason, "see the kernel's log", true}
	}
}

func kernelAtLeast(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var gotMajor, gotMinor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &gotMajor, &gotMinor); n != 2 {
		return false
	}
	return gotMajor > major || gotMajor == major && gotMinor >= minor
}
