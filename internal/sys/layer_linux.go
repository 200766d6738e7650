package sys

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/inject"
)

var atPread = inject.New("snapshot: pread")

// ReadFile fills p from a file or memfd at off. Holes are zeroes, and stay holes.
// (pread)
func ReadFile(f *os.File, p []byte, off uint64) error {
	if err := atPread.Err(); err != nil {
		return err
	}
	for len(p) > 0 {
		n, err := unix.Pread(int(f.Fd()), p, int64(off))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("pread at %#x: %w", off, err)
		case n == 0:
			return fmt.Errorf("pread at %#x: %w", off, io.ErrUnexpectedEOF)
		}
		p, off = p[n:], off+uint64(n)
	}
	return nil
}

// WriteFile stores p in a memfd at off, which fails where the host has no memory,
// and a store to a mapping would be a SIGBUS. (pwrite)
func WriteFile(f *os.File, p []byte, off uint64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(int(f.Fd()), p, int64(off))
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("pwrite at %#x: %w", off, err)
		case n == 0:
			return fmt.Errorf("pwrite at %#x: %w", off, io.ErrShortWrite)
		}
		p, off = p[n:], off+uint64(n)
	}
	return nil
}
