package main

import "testing"

// BenchmarkFork asks what a fork costs, and of what: memory, how scattered it
// is, or areas.
func BenchmarkFork(b *testing.B) {
	for _, of := range []string{
		"touched=1MiB", "touched=256MiB", "touched=1GiB", "touched=256MiB/scattered",
		"areas=1", "areas=1000", "areas=30000",
	} {
		b.Run(of, func(b *testing.B) { benchmarkRow(b, "fork/"+of) })
	}
}
