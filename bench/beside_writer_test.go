package main

import "testing"

// BenchmarkReadBeside asks what a random read over 1 000 areas costs while
// the same address space is being changed. writer=none is the base.
func BenchmarkReadBeside(b *testing.B) {
	for _, writer := range []string{"none", "map", "protect", "fault", "fork"} {
		b.Run("writer="+writer, func(b *testing.B) { benchmarkRow(b, "random/beside="+writer) })
	}
}
