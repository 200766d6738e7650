package main

import (
	"testing"

	"github.com/guestmm/guestmm/internal/testutil"
)

// BenchmarkExit asks what the end of an address space costs, and a vCPU's way out
// of the guest and back in.
func BenchmarkExit(b *testing.B) {
	for _, of := range []string{"child", "touched=4MiB"} {
		b.Run(of, func(b *testing.B) { benchmarkRow(b, "exit/"+of) })
	}
	for _, by := range []string{"vcpu", "syscall", "kick"} {
		b.Run(by, func(b *testing.B) {
			testutil.RequireKVM(b)
			benchmarkMachine(b, "exit/"+by)
		})
	}
}
