//go:build !race

package epoch

import "sync/atomic"

// storeRelease stores v in *p after all that its goroutine has loaded and stored
// before, and lets what comes later pass it. That is all that the end of a section
// needs: who sees the slot free sees what was done in it, and who sees it late waits
// for a section that has ended, which hurts nobody. Nothing is decided by a load that
// follows the end of a section and must not pass it; the beginning of one is, and is
// a compare-and-swap.
//
// Go's atomic store is a full barrier besides: 6 of the 18 ns of a read of 8 bytes.
// On x86 a plain store is a release, of which the CPU keeps the order; that the
// compiler keeps it too is why this is a call of a function that it knows nothing
// about. The race detector must see the store, so under it this is sync/atomic's.
//
//go:noescape
func storeRelease(p *atomic.Uint64, v uint64)
