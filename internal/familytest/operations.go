package familytest

import (
	"errors"
	"fmt"
	"slices"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// operation does something to a space and its model, if it can be done there.
type operation struct {
	name string
	do   func(*family, *space) (did bool, err error)
}

// The operations, as often as they are to come.
var operations = slices.Concat(
	repeat(3, "fork", opFork), repeat(16, "write", opWrite), repeat(5, "map", opMap), repeat(2, "unmap", opUnmap),
	repeat(2, "remap", opRemap), repeat(2, "protect", opProtect), repeat(2, "discard", opDiscard),
	repeat(2, "pin", opPin), repeat(4, "device", opDevice), repeat(2, "release", opRelease),
	repeat(2, "snapshot", opSnapshot), repeat(4, "rollback", opRollback), repeat(1, "close snapshot", opCloseSnapshot),
	repeat(1, "diff", opDiff), repeat(3, "exit", opExit), repeat(1, "elsewhere", opElsewhere),
	repeat(1, "map all", opMapAll), repeat(1, "map file", opMapFile), repeat(2, "guard", opGuard), repeat(1, "lock", opLock),
	repeat(2, "advise", opAdvise), repeat(1, "populate", opPopulate), repeat(1, "punch", opPunch), repeat(1, "collapse", opCollapse),
)

func repeat(n int, name string, do func(*family, *space) (bool, error)) []operation {
	return slices.Repeat([]operation{{name, do}}, n)
}

func opFork(f *family, s *space) (bool, error) {
	if len(f.spaces) >= f.Spaces {
		return false, nil
	}
	child, err := s.as.Fork()
	if err != nil {
		return false, err
	}
	f.spaces = append(f.spaces, &space{as: child, pages: s.pages.fork()})
	return true, nil
}

func (f *family) draw(b []byte) []byte {
	for i := range b {
		b[i] = byte(f.rng.Uint32())
	}
	return b
}

func opWrite(f *family, s *space) (bool, error) {
	i := f.rng.IntN(nPages)
	b := f.draw(make([]byte, 1+f.rng.IntN(100)))
	off := f.rng.IntN(pageSize - len(b))
	_, err := s.as.WriteAt(f.ctx, b, f.at(i)+addr.GVA(off))
	p := &s.pages[i]
	if p.isWritable() != (err == nil) {
		return false, fmt.Errorf("write to page %d (%+v): %w", i, p.area, err)
	}
	if err == nil {
		copy(p.data[off:], b)
	}
	return err == nil, nil
}

func opMap(f *family, s *space) (bool, error) {
	i := f.rng.IntN(nPages)
	return opMapAt(f, s, i, runOf(i, 1+f.rng.IntN(8)), f.rng.IntN(4) == 0)
}

func opMapAt(f *family, s *space, i, n int, shared bool) (bool, error) {
	o := guestmem.MapOptions{
		Addr: f.at(i), Length: uint64(n) * f.unit, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed,
	}
	if shared {
		o.Flags = guestmem.MapShared | guestmem.MapAnonymous | guestmem.MapFixed
	}
	if _, err := s.as.Map(f.ctx, o); err != nil {
		return false, err
	}
	for k := i; k < i+n; k++ {
		s.pages[k] = page{data: new(content), area: area{prot: o.Prot, shared: shared}}
	}
	return true, nil
}

func opUnmap(f *family, s *space) (bool, error) {
	i := f.rng.IntN(nPages)
	n := runOf(i, 1+f.rng.IntN(8))
	clear(s.pages[i : i+n])
	return true, s.as.Unmap(f.at(i), uint64(n)*f.unit)
}

// drawMapped draws a run of pages that are mapped.
func (f *family) drawMapped(s *space) (i, n int, ok bool) {
	i = f.rng.IntN(nPages)
	n = runOf(i, 1+f.rng.IntN(6))
	for n > 0 && !s.pages.isMapped(i, n) {
		n--
	}
	return i, n, n > 0
}

func opRemap(f *family, s *space) (bool, error) {
	i, j := f.rng.IntN(nPages), f.rng.IntN(nPages)
	if i == j || s.pages[i].data == nil {
		return false, nil
	}
	_, err := s.as.Remap(f.ctx, guestmem.RemapOptions{
		Addr: f.at(i), OldLength: f.unit, NewLength: f.unit, NewAddr: f.at(j),
		Flags: guestmem.RemapMayMove | guestmem.RemapFixed,
	})
	s.pages[i], s.pages[j] = page{}, s.pages[i]
	return true, err
}

func opProtect(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok {
		return false, nil
	}
	prot := []guestmem.Prot{guestmem.ProtNone, guestmem.ProtRead, guestmem.ProtRead | guestmem.ProtWrite, guestmem.ProtRead | guestmem.ProtWrite}[f.rng.IntN(4)]
	for k := i; k < i+n; k++ {
		s.pages[k].prot = prot
	}
	return true, s.as.Protect(f.at(i), uint64(n)*f.unit, prot)
}

func opDiscard(f *family, s *space) (bool, error) {
	i, n, ok := f.drawMapped(s)
	if !ok {
		return false, nil
	}
	if locked, err := f.refusesLocked(s, i, n, guestmem.AdviceDontNeed); locked {
		return false, err
	}
	for k := i; k < i+n; k++ {
		if !s.pages[k].shared {
			s.pages[k].data = s.pages[k].empty() // a pin goes on having the old one
		}
	}
	return true, s.as.Discard(f.at(i), uint64(n)*f.unit)
}

func opPin(f *family, s *space) (bool, error) {
	i := f.rng.IntN(nPages)
	n := runOf(i, 1+f.rng.IntN(4))
	access := []guestmem.Access{guestmem.Read, guestmem.Write}[f.rng.IntN(2)]
	r := addr.Range{Start: f.at(i), End: f.at(i) + addr.GVA(uint64(n)*f.unit)}
	p, err := s.as.Pin(f.ctx, r, access)
	var data []*content
	can := len(f.pins) < 40
	for k := i; k < i+n; k++ {
		q := &s.pages[k]
		data = append(data, q.data)
		can = can && q.isReadable() && (access == guestmem.Read || q.isWritable())
	}
	switch {
	case err != nil && !can:
		return false, nil
	case err != nil:
		return false, err
	case !can && len(f.pins) < 40:
		return false, fmt.Errorf("pages [%d, %d) could be pinned for %v", i, i+n, access)
	case !can:
		return false, p.Release()
	}
	f.pins = append(f.pins, &pin{p, f.unit, data})
	return true, nil
}

// opDevice has a device write through a pin, and look at what is there.
func opDevice(f *family, _ *space) (bool, error) {
	if len(f.pins) == 0 {
		return false, nil
	}
	p := f.pins[f.rng.IntN(len(f.pins))]
	i := f.rng.IntN(len(p.data))
	b := f.draw(make([]byte, 1+f.rng.IntN(100)))
	off := f.rng.IntN(pageSize - len(b))
	if _, err := f.Memory.WriteAt(b, p.gpa(i)+addr.GPA(off)); err != nil {
		return false, err
	}
	copy(p.data[i][off:], b)
	return true, p.check(f.Memory)
}

func opRelease(f *family, _ *space) (bool, error) {
	if len(f.pins) == 0 {
		return false, nil
	}
	i := f.rng.IntN(len(f.pins))
	p := f.pins[i]
	f.pins = slices.Delete(f.pins, i, i+1)
	if err := p.p.Release(); err != nil {
		return false, err
	}
	if err := p.p.Release(); !errors.Is(err, guestmem.ErrReleased) {
		return false, fmt.Errorf("released twice: %w", err)
	}
	return true, nil
}

func opSnapshot(f *family, s *space) (bool, error) {
	if len(s.snapshots) == 3 {
		return false, nil
	}
	taken, err := s.as.Snapshot()
	if err != nil {
		return false, err
	}
	s.snapshots = append(s.snapshots, &snapshot{taken, s.pages.copy()})
	return true, nil
}

func opRollback(f *family, s *space) (bool, error) {
	if len(s.snapshots) == 0 {
		return false, nil
	}
	to := s.snapshots[f.rng.IntN(len(s.snapshots))]
	if err := s.as.Rollback(f.ctx, to.s); err != nil {
		return false, err
	}
	s.pages = to.pages.copy()
	return true, nil
}

func opCloseSnapshot(f *family, s *space) (bool, error) {
	if len(s.snapshots) == 0 {
		return false, nil
	}
	i := f.rng.IntN(len(s.snapshots))
	gone := s.snapshots[i].s
	s.snapshots = slices.Delete(s.snapshots, i, i+1)
	err := errors.Join(gone.Close(), gone.Close())
	if back := s.as.Rollback(f.ctx, gone); !errors.Is(back, guestmem.ErrClosed) {
		err = errors.Join(err, fmt.Errorf("rollback to a closed snapshot: %w", back))
	}
	return true, err
}

// opElsewhere tries what must be refused: a rollback to another's snapshot.
func opElsewhere(f *family, s *space) (bool, error) {
	other := f.spaces[f.rng.IntN(len(f.spaces))]
	if other == s || len(other.snapshots) == 0 {
		return false, nil
	}
	if err := s.as.Rollback(f.ctx, other.snapshots[0].s); !errors.Is(err, guestmem.ErrOtherSpace) {
		return false, fmt.Errorf("rollback to a snapshot of another address space: %w", err)
	}
	return true, nil
}

// opDiff compares the space with a snapshot or with a relative.
func opDiff(f *family, s *space) (bool, error) {
	var with guestmem.Comparable
	var model *pages
	if len(s.snapshots) > 0 {
		with, model = s.snapshots[0].s, s.snapshots[0].pages
	} else {
		other := f.spaces[f.rng.IntN(len(f.spaces))]
		with, model = other.as, other.pages
	}
	want, told := s.pages.differ(model, f.layout), make(map[addr.GVA]bool)
	for d, err := range guestmem.Diff(s.as, with, guestmem.ByContent) {
		if err != nil {
			return false, err
		}
		for at := d.Start; at < d.End; at += pageSize {
			i, ok := f.pageAt(at)
			w, differs := want[f.at(i)]
			// All of a unit but its first page is empty on both sides, if it is no guard.
			isFirst := at == f.at(i) || w.mapping || w.guard
			if !ok || !differs || !w.may && (w.mapping != d.Mapping || !isFirst) || w.may && d.Mapping {
				return false, fmt.Errorf("diff: page %d, at %v, is told to differ (mapping: %v); it does %v (%+v)", i, at, d.Mapping, differs, w)
			}
			told[at] = true
		}
	}
	for at, w := range want {
		if !told[at] && !w.may {
			return false, fmt.Errorf("diff: page at %v differs, and is not told of", at)
		}
	}
	return true, nil
}

// opExit closes a space; its pins stay, and its snapshots go before or after.
func opExit(f *family, s *space) (bool, error) {
	if len(f.spaces) == 1 {
		return false, nil
	}
	f.spaces = slices.DeleteFunc(f.spaces, func(o *space) bool { return o == s })
	var errs []error
	closeSnapshots := func() {
		for _, snap := range s.snapshots {
			errs = append(errs, snap.s.Close())
		}
	}
	after := f.rng.IntN(2) == 0
	if !after {
		closeSnapshots()
	}
	errs = append(errs, s.as.Close())
	if after {
		if len(s.snapshots) > 0 {
			if err := s.as.Rollback(f.ctx, s.snapshots[0].s); !errors.Is(err, guestmem.ErrClosed) {
				errs = append(errs, fmt.Errorf("rollback of a closed address space: %w", err))
			}
		}
		closeSnapshots()
	}
	return true, errors.Join(errs...)
}
