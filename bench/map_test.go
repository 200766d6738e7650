package main

import "testing"

// BenchmarkMapUnmap asks what a pair of map and unmap costs beside others.
func BenchmarkMapUnmap(b *testing.B) {
	for _, others := range []string{"others=10", "others=1000", "others=30000"} {
		b.Run(others, func(b *testing.B) { benchmarkRow(b, "map/"+others) })
	}
}

// BenchmarkProtect asks what it costs to take a page's write permission away
// and give it back: a split and a merge, in memory that has been touched.
func BenchmarkProtect(b *testing.B) {
	for _, others := range []string{"others=10", "others=30000"} {
		b.Run(others, func(b *testing.B) { benchmarkRow(b, "protect/"+others) })
	}
}
