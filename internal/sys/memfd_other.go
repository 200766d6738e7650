//go:build !linux

package sys

// Memfd is guest memory; there is none on this system.
type Memfd struct{}

// NewMemfd answers ErrNotSupported.
func NewMemfd(string, uint64) (*Memfd, error) { return nil, ErrNotSupported }

// Close does nothing.
func (*Memfd) Close() error { return nil }

// Map answers ErrNotSupported.
func (*Memfd) Map() ([]byte, error) { return nil, ErrNotSupported }

// Allocate answers ErrNotSupported.
func (*Memfd) Allocate(_, _ uint64) error { return ErrNotSupported }

// PunchHole answers ErrNotSupported.
func (*Memfd) PunchHole(_, _ uint64) error { return ErrNotSupported }

// Unmap answers ErrNotSupported.
func Unmap([]byte) error { return ErrNotSupported }

// Populate answers ErrNotSupported.
func Populate([]byte) error { return ErrNotSupported }
