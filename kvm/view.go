//go:build linux && amd64

package kvm

import (
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// view is the Platform as its Memory sees it. Each method may be called from
// any goroutine, under any lock of guestmem's: no goroutine that is in
// KVM_RUN, or on its way out, waits for such a lock.
type view struct{ p *Platform }

var _ guestmem.View = view{}

// Stop implements guestmem.View.
func (w view) Stop(as *guestmem.AddressSpace) { w.p.stop(as) }

// Resume implements guestmem.View.
func (w view) Resume(as *guestmem.AddressSpace) { w.p.resume(as) }

// Invalidate implements guestmem.View.
func (w view) Invalidate(as *guestmem.AddressSpace, frames []addr.PFN) {
	if as == nil {
		w.p.invalidate(nil, frames)
		return
	}
	w.p.invalidate(as, frames)
}

// RetireTables implements guestmem.View. It may call ReuseTables before it
// returns.
func (w view) RetireTables(frames []addr.PFN) { w.p.retire(frames) }

// Flush implements guestmem.View.
func (w view) Flush() { w.p.flush() }
