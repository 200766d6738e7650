package pager

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// Live snapshots of memory that is served arm it through the descriptor that
// serves it, which is the only one that a mapping may have. armed then is a wish
// for a page and outlives whatever is there:
//
//	the page is …        arming it                      a write to it, then
//	absent, filling      marks it; its install is       brings it from the image, armed;
//	                     armed from its first instant   faults again, and is handed over
//	removed, not there   marks it, and the kernel's     brings zeroes, armed; faults again,
//	                     page table                     and is handed over
//	present              marks it, and protects it      is handed over
//
// So the snapshot may take a page that was not there at its instant for what the
// image has: nobody has written it. Reads of it bring it from there.
//
// An install is on one side or the other of an arming, by the gate: one that was
// under way has ended, and is protected by the call; one that comes later
// sees the mark.
//
//	arming                     install                    without the gate
//	marks p
//	                           had seen no mark
//	protects what is there
//	                           Copy(p), not armed         a write to p is not told

// armingServer is a memoryServer whose regions can all be armed.
type armingServer struct{ memoryServer }

var _ guestmem.Armer = armingServer{}

// Arm implements guestmem.Armer.
func (a armingServer) Arm(of *guestmem.Region, first, n uint64) error {
	g := a.g
	r, i, end, err := g.pagesOf(of, first, n)
	if err != nil {
		return err
	}
	g.l.gate.Lock()
	owns := g.l.owner == g
	if owns {
		r.pages.arm(i, end)
	}
	g.l.gate.Unlock()
	if !owns {
		if why := g.Err(); why != nil {
			return why
		}
		return g.cannot("arm", r, i, ErrClosed)
	}
	g.armings.Add(1)
	for i < end {
		k := 0
		if i, k = r.pages.nextThere(i, end); k == 0 {
			return nil
		}
		if err := g.protect(r, i, k, uffd.Armed); err != nil {
			return g.cannot("arm", r, i, err)
		}
		i += k
	}
	return nil
}

// Disarm implements guestmem.Armer.
func (a armingServer) Disarm(of *guestmem.Region, first, n uint64) error {
	g := a.g
	r, i, end, err := g.pagesOf(of, first, n)
	if err != nil {
		return err
	}
	r.pages.disarmRun(i, end)
	if err := g.protect(r, i, end-i, 0); err != nil {
		return g.cannot("disarm", r, i, err)
	}
	return nil
}

// pagesOf returns the pages of a region that have something of [first, first+n).
func (g *Guest) pagesOf(of *guestmem.Region, first, n uint64) (r *region, i, end int, err error) {
	for _, r := range g.l.regions {
		if r.Of == of {
			k := r.shift - addr.PageShift
			return r, int(first >> k), min(int((first+n+1<<k-1)>>k), r.pages.n), nil
		}
	}
	return nil, 0, 0, &Error{Op: "arm", Guest: g.o.Name, Addr: of.Slot(), Err: ErrOutside}
}

func (g *Guest) cannot(op string, r *region, i int, err error) error {
	if !errors.Is(err, ErrClosed) && !errors.Is(err, ErrPeerGone) {
		err = fmt.Errorf("%w: %w", ErrKernel, err)
	}
	return &Error{Op: op, Guest: g.o.Name, Addr: r.Start + addr.HVA(r.bytes(i)), Offset: r.offset(i), Err: err}
}

// protect arms or disarms n pages from i on, and tries again while the layout
// changes. What is no longer mapped cannot be written to either.
func (g *Guest) protect(r *region, i, n int, fl uffd.Flags) error {
	for n > 0 {
		at, k, ok := g.l.layout.Load().locate(r, i, n)
		if !ok {
			i, n = i+1, n-1
			continue
		}
		err := g.paced(func() error {
			g.l.gate.RLock()
			defer g.l.gate.RUnlock()
			switch {
			case g.l.closed && fl == 0:
				return nil // nothing is armed any more
			case g.l.owner != g && fl != 0:
				return ErrClosed
			}
			return g.l.k.WriteProtect(at, r.bytes(k), fl)
		})
		switch {
		case errors.Is(err, syscall.ENOENT) && (r.released.Load() || g.layoutChanged(r, i, at)):
		case errors.Is(err, syscall.ESRCH):
			return because(ErrPeerGone, err)
		case err != nil:
			return err
		}
		i, n = i+k, n-k
	}
	return nil
}

// layoutChanged reports whether page i of r is no longer at at.
func (g *Guest) layoutChanged(r *region, i int, at addr.HVA) bool {
	now, _, ok := g.l.layout.Load().locate(r, i, 1)
	return !ok || now != at
}

// bridged is how many pages that are not there are protected along with those
// round them: the kernel notes them in its page tables, which costs less than
// another call.
const bridged = 512

// nextThere returns the next run of pages of [i, end) that are there or were given
// back, with small gaps counted in. What was given back may be there again, and the
// pager does not know: others populate it through the alias.
func (p *pages) nextThere(i, end int) (first, n int) {
	first, last := -1, -1
	for ; i < end; i++ {
		if i%pagesPerChunk == 0 && p.flat == nil {
			if c := p.chunks[i/pagesPerChunk].Load(); c.isShared() && c.all()&stateMask == absent {
				if i += pagesPerChunk - 1; first >= 0 {
					break
				}
				continue
			}
		}
		if s := p.at(i) & stateMask; s == absent || s == filling {
			if first >= 0 && i-last > bridged {
				break
			}
			continue
		}
		if first < 0 {
			first = i
		}
		last = i
	}
	if first < 0 {
		return end, 0
	}
	return first, last - first + 1
}

// handWriteOver has the Memory deal with a write to an armed page. That may have to
// wait for a window to open, or for pages that workers bring: so it has a goroutine of
// its own, of which there are no more than threads that wait.
func (g *Guest) handWriteOver(r *region, i int) {
	if n := g.armings.Load(); g.reader.armings != n {
		// Armed again: a guest that writes the same page after each is not stuck.
		g.reader.armings, g.reader.times = n, 0
	}
	if g.isStuck(r, i) {
		return
	}
	go func() {
		defer func() { g.recovered(recover()) }()
		handOver := r.Of.WriteFault
		if g.o.writeFault != nil {
			handOver = g.o.writeFault
		}
		err := handOver(g.ctx, uint64(i)<<(r.shift-addr.PageShift))
		if err != nil && g.ctx.Err() == nil {
			g.fail("hand a write over", r, i, err)
		}
	}()
}
