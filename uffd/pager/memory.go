package pager

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// memoryServer serves regions of a guestmem.Memory of this process by a guest.
type memoryServer struct{ g *Guest }

// FaultServer returns what guestmem.Region.SetFaultServer wants of a region
// whose slot mapping this guest serves: vCPUs fault, Go code fetches.
//
// The region's own states follow as pages are installed where Region.Of says whose
// they are, and else as Go code looks at them. It is a guestmem.Remover:
// Memory.Discard says what it is about to take away. If every region is
// ArmForSnapshots it is a guestmem.Armer too.
func (g *Guest) FaultServer() guestmem.FaultServer {
	for _, r := range g.l.regions {
		if r.Arming != ArmForSnapshots {
			return memoryServer{g}
		}
	}
	return armingServer{memoryServer{g}}
}

// Fetch returns once pages [first, first+n) of r, of 4 KiB, are there.
func (m memoryServer) Fetch(ctx context.Context, r *guestmem.Region, first, n uint64) error {
	start := r.Slot() + addr.HVA(first*addr.PageSize)
	if err := m.g.Fetch(ctx, start, n*addr.PageSize); err != nil {
		return err
	}
	for page := first; page < first+n; page++ {
		if err := m.follow(r, page); err != nil {
			return err
		}
	}
	return nil
}

// follow makes the region's own state of a page say what ours does.
func (m memoryServer) follow(r *guestmem.Region, page uint64) error {
	own, i, ok := m.g.l.layout.Load().find(r.Slot() + addr.HVA(page*addr.PageSize))
	if !ok {
		return &Error{Op: "fetch", Guest: m.g.o.Name, Err: ErrOutside}
	}
	own.followPage(r, i, page)
	return nil
}

// follow has the states that the Memory keeps say that n pages from i on are there.
// It comes after each install, with the gate held, so that what is not there by those
// states is installed by nobody who has not seen what was armed meanwhile.
func (r *region) follow(i, n int) {
	if r.Of == nil {
		return
	}
	small := uint64(1) << (r.shift - addr.PageShift)
	for page := uint64(i) * small; page < uint64(i+n)*small; page++ {
		r.followPage(r.Of, int(page/small), page)
	}
}

// followPage has a region's state of a page of 4 KiB say what that of its page i is.
func (r *region) followPage(of *guestmem.Region, i int, page uint64) {
	switch s := r.pages.at(i); {
	case s&stateMask == removed:
		of.States().Remove(page)
	case of.States().BeginFill(page):
		var marks guestmem.PageMarks
		if s&armed != 0 && r.Arming == ArmInstalled {
			marks = guestmem.PageArmed
		}
		of.States().EndFill(page, marks) // false: discarded meanwhile
	default:
		// Another is between its two steps, or is done.
		for st, _ := of.States().State(page); st == guestmem.PageFilling; st, _ = of.States().State(page) {
			runtime.Gosched()
		}
	}
}

// Remove implements guestmem.Remover.
func (m memoryServer) Remove(r *guestmem.Region, first, n uint64) error {
	return m.g.Remove(r.Slot()+addr.HVA(first*addr.PageSize), n*addr.PageSize)
}

// BeforeStore disarms pages, after telling GuestOptions.OnWrite of each.
func (m memoryServer) BeforeStore(ctx context.Context, r *guestmem.Region, first, n uint64) error {
	g := m.g
	for page := first; page < first+n; page++ {
		at := r.Slot() + addr.HVA(page*addr.PageSize)
		own, i, ok := g.l.layout.Load().find(at)
		if !ok {
			return &Error{Op: "disarm", Guest: g.o.Name, Addr: at, Err: ErrOutside}
		}
		if own.pages.at(i)&armed == 0 || !r.States().Claim(page) {
			continue
		}
		if g.o.OnWrite != nil {
			if err := g.o.OnWrite(ctx, at, own.offset(i)); err != nil {
				r.States().Unclaim(page)
				return err
			}
		}
		if err := g.paced(func() error { return g.disarm(own, i) }); err != nil {
			r.States().Unclaim(page)
			if !errors.Is(err, ErrClosed) {
				err = &Error{Op: "disarm", Guest: g.o.Name, Addr: at, Err: fmt.Errorf("%w: %w", ErrKernel, err)}
			}
			return err
		}
		r.States().Disarm(page)
	}
	return nil
}
