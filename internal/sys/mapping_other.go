//go:build !linux

package sys

import "os"

// NewHugeMemfd answers ErrNotSupported.
func NewHugeMemfd(string, uint64) (*Memfd, error) { return nil, ErrNotSupported }

// Fd returns no descriptor.
func (*Memfd) Fd() int { return -1 }

// File returns nil.
func (*Memfd) File() *os.File { return nil }

// SealWrites answers ErrNotSupported.
func (*Memfd) SealWrites() error { return ErrNotSupported }

// MapFile answers ErrNotSupported.
func MapFile(*os.File, uint64, uint64, Sharing, Rights, Reserve) ([]byte, error) {
	return nil, ErrNotSupported
}

// MapAnonymous answers ErrNotSupported.
func MapAnonymous(uint64) ([]byte, error) { return nil, ErrNotSupported }

// PopulateRead answers ErrNotSupported.
func PopulateRead([]byte) error { return ErrNotSupported }

// Drop answers ErrNotSupported.
func Drop([]byte) error { return ErrNotSupported }

// Remove answers ErrNotSupported.
func Remove([]byte) error { return ErrNotSupported }

// Advise answers ErrNotSupported.
func Advise([]byte, Advice) error { return ErrNotSupported }

// PunchHole answers ErrNotSupported.
func PunchHole(*os.File, uint64, uint64) error { return ErrNotSupported }

// FileSize answers ErrNotSupported.
func FileSize(*os.File) (uint64, bool, error) { return 0, false, ErrNotSupported }

// EachData answers ErrNotSupported.
func EachData(*os.File, uint64, uint64, func(off, n uint64) error) error { return ErrNotSupported }

// Areas answers ErrNotSupported.
func Areas(uint64, uint64) ([]Area, error) { return nil, ErrNotSupported }

// ZeroOver answers ErrNotSupported.
func ZeroOver([]byte) error { return ErrNotSupported }

// FileOver answers ErrNotSupported.
func FileOver([]byte, *os.File, uint64, Sharing) error { return ErrNotSupported }

// Bind answers ErrNotSupported.
func Bind([]byte, MemoryPolicy, []int) error { return ErrNotSupported }

// CopyOut answers ErrNotSupported.
func CopyOut(_, _ []byte) (int, error) { return 0, ErrNotSupported }

// CopyIn answers ErrNotSupported.
func CopyIn(_, _ []byte) (int, error) { return 0, ErrNotSupported }

// BytesAt returns nothing.
func BytesAt(uintptr, uint64) []byte { return nil }

// EachPresent answers ErrNotSupported.
func EachPresent(uintptr, uint64, func(off, n uint64) error) error { return ErrNotSupported }

// Dup answers ErrNotSupported.
func Dup(*os.File) (*os.File, error) { return nil, ErrNotSupported }

// Allocate answers ErrNotSupported.
func Allocate(*os.File, uint64, uint64) error { return ErrNotSupported }
