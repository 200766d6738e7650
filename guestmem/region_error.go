package guestmem

import (
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Errors of guest-physical memory.
var (
	// ErrNoRegion: no region is there (EFAULT); to a vCPU it is a hole, where
	// accesses exit as MMIO.
	ErrNoRegion = newErrno("no region at the guest-physical address", syscall.EFAULT)
	// ErrReadOnly: the region is read-only (EROFS).
	ErrReadOnly = newErrno("region is read-only", syscall.EROFS)
)

// errNoPool is the answer of a memory that was made with Size 0.
var errNoPool = fmt.Errorf("the memory has no frame pool (MemoryOptions.Size is 0): %w", ErrNotSupported)

// RegionError says which operation failed on which guest-physical range, and
// why. Unwrap reaches the named error and its errno.
type RegionError struct {
	Op   string
	GPA  addr.GPA
	Size uint64
	Err  error
}

func (e *RegionError) Error() string {
	return fmt.Sprintf("guestmem: %s %s: %v", e.Op, gpaRange(e.GPA, e.Size), e.Err)
}

func (e *RegionError) Unwrap() error { return e.Err }

func regionError(op string, gpa addr.GPA, size uint64, err error) error {
	return &RegionError{Op: op, GPA: gpa, Size: size, Err: err}
}

// gpaRange is the text of [gpa, gpa+size), which may go past the last address.
func gpaRange(gpa addr.GPA, size uint64) string {
	if end, ok := gpa.Add(size); ok {
		return fmt.Sprintf("[%#x, %#x)", uint64(gpa), uint64(end))
	}
	return fmt.Sprintf("[%#x, +%#x)", uint64(gpa), size)
}
