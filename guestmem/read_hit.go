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
				mayYieldToStore()
			}
			if page := m.arena.Bytes(f)[off:]; len(p) == 8 && len(page) >= 8 {
				*(*[8]byte)(p) = *(*[8]byte)(page) // a call of memmove is a tenth of it all
			} else {
				copy(p, page)
			}
			if invariants.Enabled {
				m.pool.MustHold(f, stamp)
			}
			ok = !as.overlays.Load() || as.stillLeads(gva, f)
		}
	}
	h.Exit()
	return ok
}

// stillLeads reports whether what was read from f is what gva had at an instant of the
// section; if not, it is to be read again.
//
// What a reader has walked to stays as it was until the reader leaves, and so a store
// that replaces a private page beside it need not wait for it: it has read from before.
// That does not hold where the frame is an object's, and others store to it:
//
//	reader                    private store               shared store
//	walks to the object's F
//	                          copies F, stores 5, returns
//	                                                      stores 8 to F
//	reads 8
//
// The private area never held 8 once it had held 5. So the entry is looked at again
// after the read. It can have led elsewhere in between only if it does now: what takes
// the copy away again is a change, and waits for this section.
//
// Whoever reads asks overlays first: this is too large to be inlined.
func (as *AddressSpace) stillLeads(gva addr.GVA, f addr.PFN) bool {
	now, ok := as.pt.Translate(gva, pagetable.User)
	return ok && now == f
}

// mayYieldToStore stands between a walk and the access, where invariants are checked.
func mayYieldToStore() {
	invariants.MayYield()
	if accessHook != nil {
		accessHook()
	}
}

// accessHook is called there. Only tests set it.
var accessHook func()
