package sys

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Memfd is guest memory that the host can map more than once. It owns its
// descriptor.
type Memfd struct {
	file *os.File
	size uint64
}

// NewMemfd makes a memfd of size bytes, sealed against shrinking: a mapping of
// it never faults for being past the end. (memfd_create, ftruncate, fcntl;
// Linux 3.17)
func NewMemfd(name string, size uint64) (*Memfd, error) { return makeMemfd(name, size, 0) }

func makeMemfd(name string, size uint64, flags int) (*Memfd, error) {
	fd, err := memfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := ftruncate(fd, int64(size)); err != nil {
		f.Close()
		return nil, fmt.Errorf("ftruncate to %#x bytes: %w", size, err)
	}
	if err := addSeals(uintptr(fd), unix.F_SEAL_SHRINK); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal against shrinking: %w", err)
	}
	return &Memfd{f, size}, nil
}

// Close closes the descriptor; mappings stay.
func (m *Memfd) Close() error { return closeFile(m.file) }

// Map maps the whole memfd shared, readable and writable, left out of core
// dumps and of children that the host process forks. (mmap, madvise)
func (m *Memfd) Map() ([]byte, error) {
	b, err := mmap(int(m.file.Fd()), 0, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mmap %#x bytes: %w", m.size, err)
	}
	for _, advice := range []int{unix.MADV_DONTFORK, unix.MADV_DONTDUMP} {
		if err := madvise(b, advice); err != nil {
			Unmap(b)
			return nil, fmt.Errorf("madvise %d: %w", advice, err)
		}
	}
	return b, nil
}

// Unmap takes a mapping away. (munmap)
func Unmap(b []byte) error { return munmap(b) }

// Allocate has the host allocate n bytes at off. (fallocate)
func (m *Memfd) Allocate(off, n uint64) error { return m.fallocate(0, off, n) }

// PunchHole gives n bytes at off back to the host; they read as zero after.
// (fallocate)
func (m *Memfd) PunchHole(off, n uint64) error {
	return m.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (m *Memfd) fallocate(mode uint32, off, n uint64) error {
	for {
		err := fallocate(int(m.file.Fd()), mode, int64(off), int64(n))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Populate faults in every page of b for writing: where the host has no memory
// for one it fails, where touching the page would be a SIGBUS. It returns
// ErrNotSupported before Linux 5.14. (madvise MADV_POPULATE_WRITE)
func Populate(b []byte) error { return populate(b, unix.MADV_POPULATE_WRITE) }

func populate(b []byte, advice int) error {
	for {
		switch err := madvise(b, advice); {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		case errors.Is(err, unix.EINVAL):
			return ErrNotSupported
		default:
			return err
		}
	}
}
