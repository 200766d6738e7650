package main

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// BenchmarkSnapshot asks how long a live snapshot of 1 GiB pauses the guest: the
// first, and the next with 1 % written since.
func BenchmarkSnapshot(b *testing.B) {
	for _, pause := range []string{"first", "again", "again/scattered"} {
		b.Run("pause="+pause, func(b *testing.B) {
			testutil.RequireUFFD(b, testutil.UFFDWPShmem)
			benchmarkMachine(b, "snapshot/pause="+pause)
		})
	}
}
