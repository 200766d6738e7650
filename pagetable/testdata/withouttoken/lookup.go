// Package withouttoken is a lookup that takes pages away, without a change: it
// must not compile (R1).
package withouttoken

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

func lookup(t *pagetable.Table, r addr.Range, spare *pagetable.Spare, zs *pagetable.ZapSpare, gone *pagetable.Retired, out *pagetable.Zapped) {
	t.Zap(r, r, pagetable.ZapPlan{}, zs, out)
	t.Rezap(r, out)
	t.Protect(r, 0, pagetable.PathPlan{}, spare, gone, nil)
	t.Share(1, 2)
	t.End()
}
