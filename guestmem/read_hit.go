package guestmem

import (
	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

// readHit is what almost every read is: a few bytes of one page, which is there. It
// is copySection for that alone, with its arguments in registers and no loop, which
// takes a quarter off a read of 8 bytes; it reports false, with nothing read, where
// there is more to be done. What a section may and has to do is said there.
func (as *AddressSpace) readHit(h *epoch.Handle, p []byte, gva addr.GVA) bool {
	off := gva.PageOffset()
	if uint64(len(p)) > addr.PageSize-off {
		return false
	}
	m := as.mem
	h.Enter(as.id)
	ok := m.door.passes() && !m.hosted.Load()
	if ok {
		var f addr.PFN
		if f, ok = as.pt.Translate(gva, pagetable.User); ok {
			var stamp cow.Stamp
			if invariants.Enabled {
				stamp = m.pool.Stamp(f)
				invariants.MayYield()
			}
			if page := m.arena.Bytes(f)[off:]; len(p) == 8 && len(page) >= 8 {
				*(*[8]byte)(p) = *(*[8]byte)(page) // a call of memmove is a tenth of it all
			} else {
				copy(p, page)
			}
			if invariants.Enabled {
				m.pool.MustHold(f, stamp)
			}
		}
	}
	h.Exit()
	return ok
}
