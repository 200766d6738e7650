module github.com/guestmm/guestmm

go 1.26.0

require (
	github.com/anishathalye/porcupine v1.3.1
	github.com/google/btree v1.1.3
	github.com/google/go-cmp v0.7.0
	github.com/klauspost/cpuid/v2 v2.4.2
	go.uber.org/atomic v1.12.0
	golang.org/x/sys v0.49.0
	pgregory.net/rapid v1.3.0
)
