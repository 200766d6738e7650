package main

import "testing"

// BenchmarkFault asks what the first access to a page costs, with a recycled
// frame and its zeroing.
func BenchmarkFault(b *testing.B) {
	for _, kind := range []string{"first-touch", "resolve"} {
		b.Run(kind, func(b *testing.B) { benchmarkRow(b, "fault/"+kind) })
	}
}
