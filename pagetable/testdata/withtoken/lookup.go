// Package withtoken takes pages away in a change, which compiles: it shows that
// its neighbours fail for nothing but the token.
package withtoken

import (
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

func change(t *pagetable.Table, r addr.Range, spare *pagetable.Spare, zs *pagetable.ZapSpare, gone *pagetable.Retired, out *pagetable.Zapped) {
	tok := t.LockChange()
	t.Zap(tok, r, r, t.PlanZap(tok, r, r), zs, out)
	t.Rezap(tok, r, out)
	t.Protect(tok, r, 0, t.PlanProtect(tok, r, 0), spare, gone, nil)
	t.Share(tok, 1, 2)
	t.End(tok)
	t.UnlockChange(tok)
}
