//go:build amd64 || arm64

package uffd

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// FD is a userfaultfd. Its methods are safe for concurrent use.
//
// It owns its descriptor, which is CLOEXEC and O_NONBLOCK.
type FD struct {
	h        handle
	features Features // immutable
	// userModeOnly is how it was opened; immutable, and false where somebody else
	// has opened it.
	userModeOnly bool

	cannotNowait atomic.Bool // see readMessages

	mu      sync.Mutex
	waiters map[*Waiter]struct{} // guarded by mu
}

// FromFD takes over fd: a negotiated userfaultfd that another process has sent,
// or that this one inherited. It makes it CLOEXEC, and O_NONBLOCK, which its
// sender sees too. The features are those that its maker asked for.
//
// Errors: ErrNotUserfaultfd, ErrNotNegotiated, the errno of fcntl. After an
// error fd is still the caller's.
func FromFD(fd int) (*FD, error) {
	f, err := fromFD(fd)
	return f, opError("take over descriptor "+strconv.Itoa(fd), err)
}

func fromFD(fd int) (*FD, error) {
	info, err := readInfo(fd)
	if err != nil {
		return nil, err
	}
	if err := setDescriptorFlags(fd); err != nil {
		return nil, err
	}
	// What is not negotiated polls as broken, and so does what is not
	// O_NONBLOCK, which has just been seen to.
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(ready, 0); err != nil {
		return nil, fmt.Errorf("poll: %w", err)
	}
	if ready[0].Revents&unix.POLLERR != 0 {
		return nil, ErrNotNegotiated
	}
	return newFD(fd, info.features), nil
}

func newFD(fd int, features Features) *FD {
	return &FD{h: handle{fd: fd}, features: features}
}

func setDescriptorFlags(fd int) error {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err == nil && flags&unix.O_NONBLOCK == 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_NONBLOCK)
	}
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC)
	}
	if err != nil {
		return fmt.Errorf("fcntl: %w", err)
	}
	return nil
}

// fdInfo is what /proc tells of a userfaultfd.
type fdInfo struct {
	features       Features
	pending, total int // faults not read yet; all that wait
}

// initializedBit is what the kernel keeps beside the features (since 5.16).
const initializedBit = 1 << 31

// readInfo reads /proc/self/fdinfo, which is the only place that tells the
// features of a descriptor that somebody else has negotiated.
func readInfo(fd int) (fdInfo, error) {
	target, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fdInfo{}, err
	}
	if target != "anon_inode:[userfaultfd]" {
		return fdInfo{}, fmt.Errorf("%w but %s", ErrNotUserfaultfd, target)
	}
	file, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return fdInfo{}, err
	}
	defer file.Close()
	var info fdInfo
	found := false
	for lines := bufio.NewScanner(file); lines.Scan(); {
		name, value, _ := strings.Cut(lines.Text(), ":\t")
		switch name {
		case "pending":
			info.pending, _ = strconv.Atoi(value)
		case "total":
			info.total, _ = strconv.Atoi(value)
		case "API":
			found = true
			_, value, _ = strings.Cut(value, ":")
			value, _, _ = strings.Cut(value, ":")
			set, err := strconv.ParseUint(value, 16, 64)
			if err != nil {
				return fdInfo{}, fmt.Errorf("fdinfo: API line %q", lines.Text())
			}
			info.features = Features(set &^ initializedBit)
		}
	}
	if !found {
		return fdInfo{}, fmt.Errorf("%w: its fdinfo has no API line", ErrNotUserfaultfd)
	}
	return info, nil
}

// Fd returns the descriptor, borrowed: it is open as long as f is. It returns -1
// once f was closed.
func (f *FD) Fd() int {
	if f.h.isClosed() {
		return -1
	}
	return f.h.fd
}

// Features returns what the descriptor was negotiated for.
func (f *FD) Features() Features { return f.features }

// UserModeOnly reports whether f was opened with Options.UserModeOnly, so that faults of
// vCPUs and of system calls are no events but fail with EFAULT. The kernel does not tell
// that of a descriptor from elsewhere, for which it is false.
func (f *FD) UserModeOnly() bool { return f.userModeOnly }

// Dup returns another FD of the same userfaultfd. While one is open the
// userfaultfd is, whoever else dies: see Close.
//
// Errors: ErrClosed, EMFILE.
func (f *FD) Dup() (*FD, error) {
	if !f.h.acquire() {
		return nil, opError("dup", ErrClosed)
	}
	defer f.h.release()
	fd, err := unix.FcntlInt(uintptr(f.h.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, opError("dup", err)
	}
	dup := newFD(fd, f.features)
	dup.userModeOnly = f.userModeOnly
	return dup, nil
}

// Pending returns how many faults wait in all, and how many of them nobody has
// read yet: the difference waits for an answer. Linux.
//
// Errors: ErrClosed, or that of reading /proc.
func (f *FD) Pending() (waiting, unread int, err error) {
	if !f.h.acquire() {
		return 0, 0, opError("read fdinfo", ErrClosed)
	}
	defer f.h.release()
	info, err := readInfo(f.h.fd)
	return info.total, info.pending, opError("read fdinfo", err)
}

// Close gives the descriptor up; a Wait on it returns ErrClosed. When it was the
// last one of its userfaultfd, in whatever process, the kernel takes the
// registration away and lets everybody who waits go on: into pages of zeroes
// where the data is missing, and into unguarded writes where they were armed.
// So keep a Dup for as long as the memory is in use, or end who uses it first.
//
// Close may be called again, and does nothing then.
func (f *FD) Close() error {
	was, err := f.h.close()
	if !was {
		return nil
	}
	// The bit is set: a Waiter made from now on is refused, and one in the map
	// sees it when it wakes.
	f.mu.Lock()
	for w := range f.waiters {
		w.signal()
	}
	f.mu.Unlock()
	return opError("close", err)
}
