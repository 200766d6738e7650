package main

import "testing"

// BenchmarkCOW asks what the first write to a shared page costs a forked
// child.
func BenchmarkCOW(b *testing.B) {
	for _, where := range []string{"dense", "sparse", "sparse/scattered"} {
		b.Run(where, func(b *testing.B) { benchmarkRow(b, "cow/"+where) })
	}
}
