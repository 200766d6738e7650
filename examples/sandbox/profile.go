//go:build linux && amd64

package main

import (
	"fmt"
	"io"
	"os"

	"github.com/guestmm/guestmm/examples/sandbox/internal/profile"
)

// newRecorder returns what -profile asks for; nil without it.
func newRecorder(o *options) *profile.Recorder {
	if o.profile == "" {
		return nil
	}
	return profile.NewRecorder()
}

// writeProfile writes what has been recorded, if anything was to be.
func writeProfile(o *options, r *profile.Recorder, stderr io.Writer) error {
	switch {
	case r == nil:
		return nil
	case o.profile == "-":
		return r.WriteTable(stderr)
	}
	f, err := os.Create(o.profile)
	if err == nil {
		err = r.WritePprof(f)
		if closeErr := f.Close(); err == nil {
			err = closeErr
		}
	}
	if err != nil {
		return fmt.Errorf("-profile: %w", err)
	}
	return nil
}
