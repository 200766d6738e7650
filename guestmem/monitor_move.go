package guestmem

import (
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// Move takes pages out of [src, src+length), private anonymous memory of the same
// address space, and installs them at dst, which is registered with the monitor:
// by their page-table entries, nothing is copied. A page that is missing at src
// ends it, or is passed over with uffd.AllowHoles. It is a change, and waits for
// the lookups in progress. It returns how many bytes it has dealt with, and an error
// unless that is all.
//
// Errors: ErrAgain; ErrInvalid (not whole pages, flags; areas that are shared, not
// writable, with other protections or locks, or a target that is not registered with
// this monitor); ENOENT (a range is not in one area; no page at src); ErrNotMapped
// (EFAULT: a guard, poison or the mark of an armed page at src); ErrExists (a page at dst); ErrBusy (a page is pinned, or shared with a relative); ErrNoMemory;
// ErrGone; ErrClosed. Source: UFFDIO_MOVE.
func (m *Monitor) Move(dst, src addr.GVA, length uint64, fl uffd.Flags) (done uint64, err error) {
	r, err := m.begin(dst, length)
	var from addr.Range
	if err == nil {
		from, err = m.as.checkMonitored(src, length)
	}
	if err == nil && fl&^(uffd.DontWake|uffd.AllowHoles) != 0 {
		err = fmt.Errorf("flags %v: %w", fl, ErrInvalid)
	}
	step := length
	if r.Overlaps(from) {
		step = addr.PageSize // what has moved may move again
	}
	for n := uint64(0); err == nil && done < length; done += n {
		to := addr.Range{Start: r.Start + addr.GVA(done), End: r.Start + addr.GVA(done+step)}
		n, err = m.move(to, addr.Range{Start: src + addr.GVA(done), End: src + addr.GVA(done+step)}, fl)
	}
	if done > 0 && fl&uffd.DontWake == 0 {
		m.wake(addr.Range{Start: r.Start, End: r.Start + addr.GVA(done)})
	}
	if err != nil {
		return done, opError("move", r, err)
	}
	return done, nil
}

func (m *Monitor) move(to, from addr.Range, fl uffd.Flags) (uint64, error) {
	as := m.as
	if err := m.enter(); err != nil {
		return 0, err
	}
	defer m.leave()
	if err := as.splitAllHuge(from); err != nil {
		return 0, err
	}
	c, err := as.startChange()
	if err != nil {
		return 0, ErrGone
	}
	if m.changing.Load() != 0 {
		c.abort()
		return 0, errChanging
	}
	if err := m.mayMove(c, to, from); err != nil {
		c.abort()
		return 0, err
	}
	c.areas.StartWrite(to)
	c.areas.StartWrite(from)
	as.mem.domain.Barrier(as.id) // from here on nothing is installed at either place
	n, stopped := m.movable(c.areas.Find(from.Start), to, from, fl)
	if n == 0 {
		c.abort()
		return 0, stopped
	}
	mv := moving{c: c, disarm: true}
	mv.move(addr.Range{Start: from.Start, End: from.Start + addr.GVA(n)}, to.Start-from.Start)
	s, err := mv.run()
	if err != nil {
		c.abort()
		return 0, err
	}
	c.publish()
	as.finishMap(c, s)
	return n, stopped
}

// splitAllHuge makes single pages of what is to be moved.
func (as *AddressSpace) splitAllHuge(r addr.Range) error {
	a := as.borrow()
	defer a.giveBack()
	for gva := r.Start; gva < r.End; gva = hugeRange(gva).End {
		if err := a.splitHuge(gva); err != nil {
			return err
		}
	}
	return nil
}

// mayMove checks the areas. Source: validate_move_areas.
func (m *Monitor) mayMove(c *changeUnderWay, to, from addr.Range) error {
	d, s := c.areas.Find(to.Start), c.areas.Find(from.Start)
	if d == nil || s == nil {
		return errUnregistered
	}
	dm, _ := monitorOf(d)
	const kinds = vmarea.Locked | vmarea.LockOnFault
	switch {
	case s.Flags&vmarea.Shared != 0, from.End > s.End, to.End > d.End, d.Flags&vmarea.Shared != 0,
		s.Prot != d.Prot, s.Flags&kinds != d.Flags&kinds, s.Prot&ProtWrite == 0,
		s.Backing != nil, d.Backing != nil, dm != m:
		return fmt.Errorf("%v to %v: %w", s, d, ErrInvalid)
	}
	return nil
}

// movable returns how many bytes can be moved, and why no more.
//
// Preconditions: both places are marked, and lookups begun before have ended.
func (m *Monitor) movable(source *vmarea.Area, to, from addr.Range, fl uffd.Flags) (uint64, error) {
	as := m.as
	as.pt.LockTables()
	defer as.pt.UnlockTables()
	for n := addr.GVA(0); n < to.End-to.Start; n += addr.PageSize {
		s, d := as.pt.Find(from.Start+n), as.pt.Find(to.Start+n)
		present := s.Entry.Has(pagetable.Present)
		switch {
		case d.Entry.Has(pagetable.Present), d.Marked():
			return uint64(n), ErrExists
		case s.Guarded, !present && armed(source, s) != 0:
			return uint64(n), fmt.Errorf("%v holds no page, but a mark: %w", from.Start+n, ErrNotMapped)
		case !present && fl&uffd.AllowHoles == 0:
			return uint64(n), fmt.Errorf("no page at %v: %w", from.Start+n, errUnregistered)
		case present && (s.Huge || !as.mem.pool.Exclusive(s.Entry.Frame()) || !s.Owned || as.pins.has(s.Entry.Frame())):
			return uint64(n), fmt.Errorf("%v: %w", from.Start+n, ErrBusy)
		}
	}
	return uint64(to.End - to.Start), nil
}

// has reports whether a frame is pinned.
func (s *pinSet) has(f addr.PFN) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.frames[f] != nil
}
