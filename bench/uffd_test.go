package main

import "testing"

// BenchmarkUffd asks what serving a fault of another process costs, by what the
// fault is and how it is answered.
func BenchmarkUffd(b *testing.B) {
	for _, mode := range []string{"missing", "missing-shmem", "minor", "wp", "zeropage", "bulk=64KiB"} {
		b.Run(mode, func(b *testing.B) { benchmarkServed(b, "uffd/"+mode) })
	}
}
