package guestmem

import (
	"context"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

// sectionBytes is what one read section copies, to the end of the page that it
// reaches: a change of the space waits for it (R4).
const sectionBytes = 64 << 10

// needFor is what a copy needs along the path. A page that may be used at all
// may be read, as on x86.
func needFor(access Access) pagetable.Entry {
	if access == Write {
		return pagetable.User | pagetable.Writable
	}
	return pagetable.User
}

// copy moves bytes between p and guest memory, page by page, faulting in what
// is missing.
func (a Accessor) copy(ctx context.Context, p []byte, gva addr.GVA, access Access) (int, error) {
	done := 0
	for done < len(p) {
		n, shut, lost := a.copySection(p[done:], gva+addr.GVA(done), access)
		done += n
		if done == len(p) {
			break
		}
		if shut {
			a.as.mem.door.wait()
			continue
		}
		if n > 0 && !lost {
			continue
		}
		var dev error
		if !lost && a.as.devices.Load() {
			if n, dev = a.copyDevice(p[done:], gva+addr.GVA(done), access); n > 0 {
				done += n
				continue
			}
		}
		at, ok := gva.Add(uint64(done))
		err := error(ErrNotMapped)
		if dev != nil {
			err = dev
		} else if lost {
			err = errLost
		} else if ok {
			err = a.fault(ctx, at, access)
		}
		if err != nil {
			op := "read"
			if access == Write {
				op = "write"
			}
			return done, opError(op, addr.Range{Start: at, End: at + addr.GVA(len(p)-done)}, err)
		}
	}
	return done, nil
}

// copySection copies, in one read section, as much as is present and at most
// sectionBytes. shut says that the door refused, lost that a page of a file is gone.
//
// What a reader has walked to stays what it was until it leaves: whoever takes
// a page or a permission away waits for this section before that counts, and
// whoever frees a frame waits too.
func (a Accessor) copySection(p []byte, gva addr.GVA, access Access) (done int, shut, lost bool) {
	m, pt := a.as.mem, a.as.pt
	need := needFor(access)
	a.h.Enter(a.as.id)
	if !m.door.passes() {
		a.h.Exit()
		return 0, true, false
	}
	for done < len(p) && done < sectionBytes {
		at := gva + addr.GVA(done)
		f, ok := pt.Translate(at, need)
		if !ok {
			break
		}
		stamp := m.pool.Stamp(f)
		if invariants.Enabled {
			mayYieldToStore()
		}
		n := 0
		if m.hosted.Load() {
			n, lost = m.copyGuarded(p[done:], f, at.PageOffset(), access)
		} else {
			n = m.copyPage(p[done:], f, at.PageOffset(), access)
		}
		m.pool.MustHold(f, stamp)
		if access == Read && a.as.overlays.Load() && !a.as.stillLeads(at, f) {
			lost = false
			continue
		}
		done += n
		if lost {
			break
		}
	}
	a.h.Exit()
	return done, false, lost
}

// copyPage copies to or from a page from off on.
func (m *Memory) copyPage(p []byte, f addr.PFN, off uint64, access Access) int {
	page := m.arena.Bytes(f)[off:]
	if access == Write {
		m.stored(f)
		return copy(page, p)
	}
	return copy(p, page)
}
