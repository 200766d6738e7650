package main

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// BenchmarkClone asks what it costs from a template to the clone's first exit.
func BenchmarkClone(b *testing.B) {
	testutil.RequireKVM(b)
	b.Run("first-exit", func(b *testing.B) { benchmarkMachine(b, "clone/first-exit") })
}
