//go:build !linux

package sys

import "os"

// ReadFile answers ErrNotSupported.
func ReadFile(*os.File, []byte, uint64) error { return ErrNotSupported }

// WriteFile answers ErrNotSupported.
func WriteFile(*os.File, []byte, uint64) error { return ErrNotSupported }
