//go:build invariants || race

package vmarea

import "sync/atomic"

// readCount counts the readers in an area.
type readCount struct{ n atomic.Int64 }

func (c *readCount) enter() { c.n.Add(1) }

func (c *readCount) exit() {
	if c.n.Add(-1) < 0 {
		panic("vmarea: EndRead without StartRead")
	}
}

func (c *readCount) count() int64 { return c.n.Load() }
