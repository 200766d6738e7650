//go:build race || !amd64

package epoch

import "sync/atomic"

// storeRelease is a store of which less is asked where less is had: see the one
// for amd64.
func storeRelease(p *atomic.Uint64, v uint64) { p.Store(v) }
