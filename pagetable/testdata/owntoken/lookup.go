// Package owntoken makes a change token of its own, as only LockChange may: it
// must not compile (R1).
package owntoken

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

type forged struct{}

func (forged) ofTable(*pagetable.Table) bool { return true }

func lookup(t *pagetable.Table, r addr.Range, out *pagetable.Zapped) {
	t.Rezap(forged{}, r, out)
	t.End(new(int))
}
