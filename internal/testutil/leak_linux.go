package testutil

import (
	"os"
	"path/filepath"
)

// openFDs lists the open descriptors of this process.
func openFDs() map[string]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil // no /proc: nothing to compare
	}
	out := make(map[string]string)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil {
			continue // the one that read the directory
		}
		out[e.Name()] = target
	}
	return out
}
