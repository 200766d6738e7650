package main

import "testing"

// BenchmarkRestore asks what a page costs a guest that touches all of its memory
// while it is still being filled.
func BenchmarkRestore(b *testing.B) {
	b.Run("touch", func(b *testing.B) { benchmarkServed(b, "restore/touch") })
}
