package main

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// BenchmarkFork asks what a fork costs, and of what: memory, how scattered it
// is, or areas; and with a vCPU running in it.
func BenchmarkFork(b *testing.B) {
	for _, of := range []string{
		"touched=1MiB", "touched=256MiB", "touched=1GiB", "touched=256MiB/scattered",
		"areas=1", "areas=1000", "areas=30000",
	} {
		b.Run(of, func(b *testing.B) { benchmarkRow(b, "fork/"+of) })
	}
	b.Run("vcpu", func(b *testing.B) {
		testutil.RequireKVM(b)
		benchmarkMachine(b, "fork/vcpu")
	})
}
