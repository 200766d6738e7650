package sys

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/inject"
)

// Points where tests let the calls of this file fail.
var (
	atMmapFixed = inject.New("region: mmap over")
	atMbind     = inject.New("region: mbind")
	atFstat     = inject.New("region: fstat")
	atRemote    = inject.New("region: process_vm")
	atDup       = inject.New("region: duplicate a descriptor")
)

// NewHugeMemfd is NewMemfd over huge pages of 2 MiB. (memfd_create MFD_HUGETLB;
// Linux 4.14, sealing 4.16)
func NewHugeMemfd(name string, size uint64) (*Memfd, error) {
	return makeMemfd(name, size, unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
}

// Fd returns the descriptor, borrowed.
func (m *Memfd) Fd() int { return int(m.file.Fd()) }

// File returns the descriptor as a file, borrowed.
func (m *Memfd) File() *os.File { return m.file }

// SealWrites seals the memfd against stores, for good. It fails with EBUSY
// while a shared mapping of it is writable. (fcntl F_ADD_SEALS; Linux 3.17)
func (m *Memfd) SealWrites() error {
	if err := addSeals(m.file.Fd(), unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL); err != nil {
		return fmt.Errorf("seal against writing: %w", err)
	}
	return nil
}

// MapFile maps size bytes at off of a file, left out of core dumps and of
// children that the host process forks. (mmap, madvise)
func MapFile(f *os.File, off, size uint64, sharing Sharing, rights Rights, reserve Reserve) ([]byte, error) {
	flags := unix.MAP_SHARED
	if sharing == Private {
		flags = unix.MAP_PRIVATE
	}
	return mapBytes(int(f.Fd()), off, size, flags, rights, reserve)
}

// MapAnonymous maps size bytes of private zeroes. (mmap, madvise)
func MapAnonymous(size uint64) ([]byte, error) {
	return mapBytes(-1, 0, size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, ReadWrite, NoReserve)
}

func mapBytes(fd int, off, size uint64, flags int, rights Rights, reserve Reserve) ([]byte, error) {
	prot := unix.PROT_READ
	if rights == ReadWrite {
		prot |= unix.PROT_WRITE
	}
	if reserve == NoReserve {
		flags |= unix.MAP_NORESERVE
	}
	b, err := mmap(fd, int64(off), int(size), prot, flags)
	if err != nil {
		return nil, fmt.Errorf("mmap %#x bytes: %w", size, err)
	}
	for _, advice := range []int{unix.MADV_DONTFORK, unix.MADV_DONTDUMP} {
		if err := madvise(b, advice); err != nil {
			Unmap(b)
			return nil, fmt.Errorf("madvise %d: %w", advice, err)
		}
	}
	return b, nil
}

// PopulateRead faults in every page of b for reading. It returns
// ErrNotSupported before Linux 5.14. (madvise MADV_POPULATE_READ)
func PopulateRead(b []byte) error { return populate(b, unix.MADV_POPULATE_READ) }

// Drop throws away what a private mapping holds at b: its pages read as what is
// below the mapping, zeroes or the file. (madvise MADV_DONTNEED)
func Drop(b []byte) error { return madviseRetry(b, unix.MADV_DONTNEED) }

// Remove punches a hole into what is mapped shared at b. (madvise MADV_REMOVE)
func Remove(b []byte) error { return madviseRetry(b, unix.MADV_REMOVE) }

func madviseRetry(b []byte, advice int) error {
	for {
		err := madvise(b, advice)
		if !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
}

// Advise gives advice for a mapping. (madvise)
func Advise(b []byte, a Advice) error {
	advice := unix.MADV_HUGEPAGE
	if a == NoHugePages {
		advice = unix.MADV_NOHUGEPAGE
	}
	return madvise(b, advice)
}

// PunchHole gives n bytes at off of a file back to the host; they read as zero
// after. (fallocate)
func PunchHole(f *os.File, off, n uint64) error {
	for {
		err := fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// FileSize returns the length of a regular file, memfd or block device, and
// whether the descriptor is open for writing.
// (fstat, lseek, fcntl)
func FileSize(f *os.File) (size uint64, writable bool, err error) {
	if err := atFstat.Err(); err != nil {
		return 0, false, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, false, fmt.Errorf("fstat: %w", err)
	}
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return 0, false, fmt.Errorf("fcntl: %w", err)
	}
	size = uint64(st.Size)
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		end, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_END)
		if err != nil {
			return 0, false, fmt.Errorf("lseek: %w", err)
		}
		size = uint64(end)
	}
	return size, flags&unix.O_ACCMODE == unix.O_RDWR, nil
}

// EachData calls fn for every run of [off, off+n) of a file that has data: what
// is left out reads as zero. Where the file system does not tell, that is all.
// Others may store to the file and punch holes into it meanwhile: no run is empty
// for that. (lseek SEEK_DATA, SEEK_HOLE)
func EachData(f *os.File, off, n uint64, fn func(off, n uint64) error) error {
	fd, end := int(f.Fd()), off+n
	for off < end {
		data, err := unix.Seek(fd, int64(off), unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil
		case errors.Is(err, unix.EINVAL):
			return fn(off, end-off)
		case err != nil:
			return fmt.Errorf("lseek SEEK_DATA: %w", err)
		}
		if uint64(data) >= end {
			return nil
		}
		hole, err := unix.Seek(fd, data, unix.SEEK_HOLE)
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil // the file has got shorter since
		case err != nil:
			return fmt.Errorf("lseek SEEK_HOLE: %w", err)
		case hole == data:
			off = uint64(data) // what was there has gone since
			continue
		}
		stop := min(uint64(hole), end)
		if err := fn(uint64(data), stop-uint64(data)); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

// Areas returns what /proc/self/maps has between start and end, in order.
func Areas(start, end uint64) ([]Area, error) {
	f, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []Area
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var a Area
		var perms, dev string
		var off, inode uint64
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s %x %s %d", &a.Start, &a.End, &perms, &off, &dev, &inode); err != nil {
			return nil, fmt.Errorf("/proc/self/maps: %q: %w", lines.Text(), err)
		}
		if a.End <= start {
			continue
		}
		if a.Start >= end {
			break
		}
		a.Shared, a.Writable, a.File = strings.HasSuffix(perms, "s"), strings.Contains(perms, "w"), inode != 0
		out = append(out, a)
	}
	return out, nil
}

// Dup returns a descriptor of its own for a file. (fcntl F_DUPFD_CLOEXEC)
func Dup(f *os.File) (*os.File, error) {
	if err := atDup.Err(); err != nil {
		return nil, err
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Allocate has the host allocate n bytes at off of a file. (fallocate)
func Allocate(f *os.File, off, n uint64) error {
	for {
		err := fallocate(int(f.Fd()), 0, int64(off), int64(n))
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
