//go:build amd64 || arm64

package uffd

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func tryUserfaultfd() error {
	_, err := available(Options{})
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	if errors.Is(err, ErrNotPermitted) {
		if _, e := available(Options{UserModeOnly: true}); e == nil {
			err = fmt.Errorf("%w; one of user mode alone is to be had, which no vCPU's faults reach", err)
		}
	}
	return err
}

func tryDevice() error {
	fd, err := openDevice(unix.O_CLOEXEC | unix.O_NONBLOCK)
	switch {
	case err == nil:
		return unix.Close(fd)
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	default:
		return err
	}
}

// A trial is some registered pages that a probe plays with.
type trial struct {
	*FD
	at      addr.HVA
	size    uint64
	backing int // memfd, or -1
}

// Kinds of memory that a trial may have.
type kind uint8

const (
	private kind = iota
	memfd
	hugetlb // a memfd of one 2 MiB page
)

const hugePage = 2 << 20

// try makes a trial and gives it to fn. What the kernel does not offer is
// conclusive; so is what it refuses though it has offered it (EINVAL, ENOTTY).
func try(k kind, features Features, m Mode, fn func(*trial) error) error {
	t := trial{size: 2 * hostPageSize, backing: -1}
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	if k != private {
		create := unix.MFD_CLOEXEC
		if k == hugetlb {
			create |= unix.MFD_HUGETLB | unix.MFD_HUGE_2MB
			t.size = hugePage
		}
		fd, err := unix.MemfdCreate("guestmm-probe", create)
		if err != nil {
			return fmt.Errorf("memfd_create: %w", err)
		}
		defer unix.Close(fd)
		if err := unix.Ftruncate(fd, int64(t.size)); err != nil {
			return fmt.Errorf("ftruncate: %w", err)
		}
		t.backing, flags = fd, unix.MAP_SHARED
	}
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(t.size), unix.PROT_READ|unix.PROT_WRITE, uintptr(flags), uintptr(t.backing), 0)
	if errno != 0 {
		return fmt.Errorf("mmap: %w", errno)
	}
	t.at = addr.HVA(at)
	// The descriptor goes first: while it is open, unmapping may wait for who
	// reads its events.
	defer func() { unix.Syscall(unix.SYS_MUNMAP, uintptr(t.at), uintptr(t.size), 0) }()
	f, err := open(Options{Required: features})
	if err != nil {
		return err
	}
	defer f.Close()
	t.FD = f
	if _, err = f.Register(t.at, t.size, m); err == nil {
		err = fn(&t)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("%w: %w", ErrNotSupported, err)
	}
	return err
}

// whileItRuns starts call, which this trial's events hold up, and returns the
// first event, or nil if the call has ended without one. answer lets it go on.
func (t *trial) whileItRuns(call func() unix.Errno, answer func(*Event) error) (*Event, error) {
	w, err := t.NewWaiter()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	ended := make(chan unix.Errno, 1)
	go func() {
		ended <- call()
		w.Nudge()
	}()
	// Whatever goes wrong: closing the descriptor lets the call go on, and it
	// is over before the memory is unmapped.
	defer func() {
		t.Close()
		<-ended
	}()
	var events [1]Event
	for {
		n, err := w.Wait(events[:], 10*time.Second)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			break
		}
		select {
		case errno := <-ended:
			ended <- errno
			if errno != 0 {
				return nil, errno
			}
			return nil, nil
		default:
			return nil, fmt.Errorf("nothing happens: %w", unix.ETIMEDOUT)
		}
	}
	return &events[0], answer(&events[0])
}

// store has the kernel write a byte into the second half of the trial's first
// page: zero bytes read from nowhere would not fault, so they come from a pipe.
func (t *trial) store() unix.Errno {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return errnoOf(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	if _, err := unix.Write(fds[1], []byte{1}); err != nil {
		return errnoOf(err)
	}
	_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(fds[0]), uintptr(t.at)+uintptr(hostPageSize/2), 1)
	return errno
}

func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}

func (t *trial) zero(e *Event) error {
	_, err := t.Zero(e.Page(hostPageSize), hostPageSize, 0)
	return err
}

func (t *trial) disarm(e *Event) error {
	return t.WriteProtect(e.Page(t.pageSize()), t.pageSize(), 0)
}

func (t *trial) pageSize() uint64 {
	if t.size == hugePage {
		return hugePage
	}
	return hostPageSize
}

// wants says that the kernel offers something and does something else.
func wants(ok bool, what string, e *Event) error {
	switch {
	case ok:
		return nil
	case e == nil:
		return fmt.Errorf("%w: the kernel offers it, but no %s came", ErrNotSupported, what)
	default:
		return fmt.Errorf("%w: the kernel offers it, but in place of a %s came a %v", ErrNotSupported, what, e)
	}
}

func tryMissingShmem() error {
	return try(memfd, FeatureMissingShmem, Missing, func(t *trial) error {
		_, err := t.Copy(t.at, zeroBytes[:t.size], 0)
		return err
	})
}

func tryMinorShmem() error {
	return try(memfd, FeatureMinorShmem, Minor, (*trial).minor)
}

func (t *trial) minor() error {
	if err := unix.Fallocate(t.backing, 0, 0, int64(t.size)); err != nil {
		return fmt.Errorf("fallocate: %w", err)
	}
	_, err := t.Continue(t.at, t.size, 0)
	return err
}

func tryWPAnonymous() error {
	return try(private, FeatureFaultWP, Missing|WP, func(t *trial) error {
		if _, err := t.Zero(t.at, t.size, 0); err != nil {
			return err
		}
		return t.trapped()
	})
}

func tryWPShmem() error {
	return try(memfd, FeatureFaultWP|FeatureWPHugetlbShmem, WP, func(t *trial) error {
		if errno := t.store(); errno != 0 {
			return errno
		}
		return t.trapped()
	})
}

func tryWPUnpopulated() error {
	return try(private, FeatureFaultWP|FeatureWPUnpopulated, WP, (*trial).trapped)
}

// trapped arms the trial and sees whether a write is told of.
func (t *trial) trapped() error {
	if err := t.WriteProtect(t.at, t.size, Armed); err != nil {
		return err
	}
	e, err := t.whileItRuns(t.store, t.disarm)
	if err != nil {
		return err
	}
	return wants(e != nil && e.Flags&FaultWP != 0, "write-protect fault", e)
}

func tryWPAsync() error {
	return try(private, FeatureFaultWP|FeatureWPUnpopulated|FeatureWPAsync, WP, func(t *trial) error {
		if err := t.WriteProtect(t.at, t.size, Armed); err != nil {
			return err
		}
		e, err := t.whileItRuns(t.storeAndScan, t.disarm)
		if err == nil && e != nil {
			err = fmt.Errorf("%w: the kernel offers it, but sends a %v", ErrNotSupported, e)
		}
		return err
	})
}

// storeAndScan writes to the first page, and wants it found written and the
// second one not.
func (t *trial) storeAndScan() unix.Errno {
	if errno := t.store(); errno != 0 {
		return errno
	}
	p, err := OpenPagemap(0)
	if err != nil {
		return errnoOf(err)
	}
	defer p.Close()
	var found addr.HVA
	err = p.Scan(t.at, t.at+addr.HVA(t.size), Written(), func(r Run) { found += r.End - r.Start })
	switch {
	case err != nil:
		return errnoOf(err)
	case found != addr.HVA(hostPageSize):
		return unix.EINVAL // offered, and not done
	}
	return 0
}

func tryPagemapScan() error {
	p, err := OpenPagemap(0)
	if err != nil {
		return err
	}
	return p.Close()
}

func tryMove() error {
	return try(private, FeatureMove, Missing, func(t *trial) error {
		// Out of the one page into the other: the source need not be registered,
		// and may be.
		if _, err := t.Copy(t.at, zeroBytes[:hostPageSize], 0); err != nil {
			return err
		}
		_, err := t.Move(t.at+addr.HVA(hostPageSize), t.at, hostPageSize, 0)
		return err
	})
}

func tryPoison() error {
	return try(private, FeaturePoison, Missing, func(t *trial) error {
		_, err := t.Poison(t.at, t.size, 0)
		return err
	})
}

func tryExactAddress() error {
	return try(private, FeatureExactAddress, Missing, func(t *trial) error {
		e, err := t.whileItRuns(t.store, t.zero)
		if err != nil {
			return err
		}
		return wants(e != nil && e.Addr == t.at+addr.HVA(hostPageSize/2), "fault at its very address", e)
	})
}

func tryThreadID() error {
	return try(private, FeatureThreadID, Missing, func(t *trial) error {
		e, err := t.whileItRuns(t.store, t.zero)
		if err != nil {
			return err
		}
		return wants(e != nil && e.ThreadID != 0, "fault with a thread id", e)
	})
}

func tryEventRemove() error {
	return tryLayout(FeatureEventRemove, EventRemove, func(t *trial) unix.Errno {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(t.at), uintptr(t.size), unix.MADV_DONTNEED)
		return errno
	})
}

func tryEventUnmap() error {
	return tryLayout(FeatureEventUnmap, EventUnmap, func(t *trial) unix.Errno {
		// Mapped again in the same call, so that nobody else gets the range.
		_, _, errno := unix.Syscall6(unix.SYS_MMAP, uintptr(t.at), uintptr(t.size), unix.PROT_NONE,
			unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED, ^uintptr(0), 0)
		return errno
	})
}

func tryEventRemap() error {
	return tryLayout(FeatureEventRemap, EventRemap, func(t *trial) unix.Errno {
		half := uintptr(hostPageSize)
		_, _, errno := unix.Syscall6(unix.SYS_MREMAP, uintptr(t.at), half, half, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, uintptr(t.at)+half, 0)
		if errno == 0 {
			// What it leaves may be somebody else's by now, and is not unmapped.
			t.at, t.size = t.at+addr.HVA(half), t.size-uint64(half)
		}
		return errno
	})
}

func tryLayout(feature Features, k EventKind, call func(*trial) unix.Errno) error {
	return try(private, feature, Missing, func(t *trial) error {
		e, err := t.whileItRuns(func() unix.Errno { return call(t) }, func(*Event) error { return nil })
		if err != nil {
			return err
		}
		return wants(e != nil && e.Kind == k, k.String()+" event", e)
	})
}

func tryEventFork() error {
	f, err := open(Options{Required: FeatureEventFork})
	if err != nil {
		return err
	}
	return f.Close()
}

func tryHugetlb() error {
	return try(hugetlb, FeatureMissingHugetlb, Missing, func(t *trial) error {
		_, err := t.Copy(t.at, zeroBytes[:hugePage], 0)
		return err
	})
}

func tryHugetlbMinor() error {
	return try(hugetlb, FeatureMinorHugetlb, Minor, (*trial).minor)
}

func tryHugetlbWP() error {
	return try(hugetlb, FeatureFaultWP|FeatureWPHugetlbShmem, WP, func(t *trial) error {
		if errno := t.store(); errno != 0 {
			return errno
		}
		return t.trapped()
	})
}
