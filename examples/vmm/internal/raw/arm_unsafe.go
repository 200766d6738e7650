//go:build linux && amd64

package raw

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	uffdNew          = 0xaa00 // of /dev/userfaultfd
	uffdAPI          = 0xc018aa3f
	uffdRegister     = 0xc020aa00
	uffdWriteProtect = 0xc018aa06

	uffdVersion     = 0xaa
	uffdWPShmem     = 1 << 12
	uffdPagefaultWP = 1 << 0
	registerWP      = 2
	protect         = 1
)

// Armed is a further mapping of a memfd that is there to be armed: what it costs to
// write-protect memory, by the ioctl alone.
type Armed struct {
	fd  int
	mem []byte
}

// NewArmed maps size bytes of a memfd, all of them present, and registers them.
// No Go code touches the mapping.
func NewArmed(memfd int, offset, size uint64) (_ *Armed, err error) {
	a := &Armed{fd: -1}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	if a.mem, err = unix.Mmap(memfd, int64(offset), int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	if err = unix.Madvise(a.mem, unix.MADV_POPULATE_WRITE); err != nil {
		return nil, os.NewSyscallError("madvise", err)
	}
	if a.fd, err = openUserfaultfd(); err != nil {
		return nil, err
	}
	api := struct{ api, features, ioctls uint64 }{api: uffdVersion, features: uffdPagefaultWP | uffdWPShmem}
	// SAFETY: api is a struct uffdio_api.
	if err = a.ioctl(uffdAPI, unsafe.Pointer(&api)); err != nil {
		return nil, fmt.Errorf("UFFDIO_API: %w", err)
	}
	register := struct{ start, len, mode, ioctls uint64 }{start: a.start(), len: size, mode: registerWP}
	// SAFETY: register is a struct uffdio_register.
	if err = a.ioctl(uffdRegister, unsafe.Pointer(&register)); err != nil {
		return nil, fmt.Errorf("UFFDIO_REGISTER: %w", err)
	}
	return a, nil
}

func openUserfaultfd() (int, error) {
	dev, err := unix.Open("/dev/userfaultfd", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(dev)
		fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(dev), uffdNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
		if errno == 0 {
			return int(fd), nil
		}
	}
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return -1, fmt.Errorf("userfaultfd: %w", errno)
	}
	return int(fd), nil
}

// SAFETY: only the address is used.
func (a *Armed) start() uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(a.mem)))) }

// SAFETY: arg is the structure that the number tells the size of, and lives
// through the call.
func (a *Armed) ioctl(nr uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(a.fd), nr, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

func (a *Armed) writeProtect(at, n, mode uint64) error {
	wp := struct{ start, len, mode uint64 }{a.start() + at, n, mode}
	// SAFETY: wp is a struct uffdio_writeprotect.
	return a.ioctl(uffdWriteProtect, unsafe.Pointer(&wp))
}

// Whole arms all of it, none of it armed before and all of it written, and tells
// how long that took.
func (a *Armed) Whole() (time.Duration, error) {
	if err := a.writeProtect(0, uint64(len(a.mem)), 0); err != nil {
		return 0, err
	}
	if err := unix.Madvise(a.mem, unix.MADV_POPULATE_WRITE); err != nil {
		return 0, os.NewSyscallError("madvise", err)
	}
	begin := time.Now()
	err := a.writeProtect(0, uint64(len(a.mem)), protect)
	return time.Since(begin), err
}

// Runs arms pages in so many runs, spread evenly, as few pages each as it takes, and tells
// how long that took. All are armed before.
func (a *Armed) Runs(runs, pages uint64) (time.Duration, error) {
	const page = 4096
	all := uint64(len(a.mem)) / page
	runs = min(runs, pages, all)
	if runs == 0 {
		return 0, nil
	}
	stride, n := all/runs, max(1, min(pages/runs, all/runs))
	each := func(mode uint64) error {
		for i := range runs {
			if err := a.writeProtect(i*stride*page, n*page, mode); err != nil {
				return err
			}
		}
		return nil
	}
	if err := each(0); err != nil {
		return 0, err
	}
	// Only what was written since has to be armed again: its entries are writable.
	for i := range runs {
		if err := unix.Madvise(a.mem[i*stride*page:(i*stride+n)*page], unix.MADV_POPULATE_WRITE); err != nil {
			return 0, os.NewSyscallError("madvise", err)
		}
	}
	begin := time.Now()
	err := each(protect)
	return time.Since(begin), err
}

// Close ends it.
func (a *Armed) Close() error {
	var err error
	if a.fd >= 0 {
		err = unix.Close(a.fd)
	}
	if a.mem != nil {
		err = errors.Join(err, unix.Munmap(a.mem))
	}
	return err
}
