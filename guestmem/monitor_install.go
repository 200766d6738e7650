package guestmem

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/cow"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
	"github.com/guestmm/guestmm/vmarea"
)

// What a monitor installs, it installs as a fault would: in read sections, by
// compare-and-swap, waiting for no change. Each section asks first whether a change
// is under way that the monitor has not read of: the change has raised its count
// before its grace period, so that an install either sees it, or has ended when the
// change goes on (R9, TestR9...).

type fillKind int

const (
	fillCopy fillKind = iota
	fillZero
	fillContinue
	fillPoison
)

var fillNames = [...]string{"copy", "zero", "continue", "poison"}

// filling is an install under way.
type filling struct {
	m     *Monitor
	kind  fillKind
	armed bool
	end   addr.GVA
	// data is what the pages from the attempt's on will hold; empty if it is to be
	// got first.
	data []byte
}

// errUnregistered is what installs are told where no monitor has the range (ENOENT).
var errUnregistered = newErrno("range is not registered, or not in one area", syscall.ENOENT)

// Copy installs copies of src at dst, whole pages. With uffd.Armed they are
// write-protected from their first instant on, which needs registration for it. Who
// waits for them is woken, unless uffd.DontWake is given. It returns how many bytes
// it has dealt with, and an error unless that is all; what stopped it is that of the
// first page that was not done.
//
// Errors: ErrAgain (a change is under way, or its event was not read); ErrInvalid
// (not whole pages; flags); ENOENT (no area that is registered contains all of it);
// ErrInvalid (Armed where it is not registered for that); ErrExists (a page is
// there); ErrBus (past the end of an object); ErrNoMemory; ErrGone; ErrClosed.
// Source: UFFDIO_COPY.
func (m *Monitor) Copy(dst addr.GVA, src []byte, fl uffd.Flags) (done uint64, err error) {
	return m.copyFrom(dst, uint64(len(src)), fl, func(off uint64) ([]byte, error) { return src[off:], nil })
}

// maxCopyPiece is how much CopyFunc asks for at a time.
const maxCopyPiece = 64 << 10

// CopyFunc is Copy of bytes that read gives: it fills p with what is off bytes
// further on, with no lock held, and returns how many that were. What it cannot
// read ends the copy with its error, and what there is of a page then is not
// installed. It is not asked before the first page could be installed.
func (m *Monitor) CopyFunc(dst addr.GVA, length uint64, fl uffd.Flags, read func(p []byte, off uint64) (int, error)) (done uint64, err error) {
	var buf []byte
	var failed error
	return m.copyFrom(dst, length, fl, func(off uint64) ([]byte, error) {
		if failed != nil {
			return nil, failed
		}
		if buf == nil {
			buf = make([]byte, min(length, maxCopyPiece))
		}
		n, err := read(buf[:min(length-off, maxCopyPiece)], off)
		whole := uint64(n) &^ (addr.PageSize - 1)
		if failed = err; whole == 0 && err == nil {
			failed = ErrNotMapped
		}
		if whole == 0 {
			return nil, failed
		}
		return buf[:whole], nil
	})
}

func (m *Monitor) copyFrom(dst addr.GVA, length uint64, fl uffd.Flags, source func(off uint64) ([]byte, error)) (uint64, error) {
	return m.fill(filling{m: m, kind: fillCopy}, dst, length, fl, uffd.DontWake|uffd.Armed, source)
}

// Zero installs pages of zeroes.
//
// Errors: as Copy's. Source: UFFDIO_ZEROPAGE.
func (m *Monitor) Zero(start addr.GVA, length uint64, fl uffd.Flags) (done uint64, err error) {
	return m.fill(filling{m: m, kind: fillZero}, start, length, fl, uffd.DontWake, nil)
}

// Continue maps pages that their object has: the answer to uffd.FaultMinor.
//
// Errors: as Copy's; ErrBus (EFAULT: the object does not have the page); ErrInvalid
// (not shared memory). Source: UFFDIO_CONTINUE.
func (m *Monitor) Continue(start addr.GVA, length uint64, fl uffd.Flags) (done uint64, err error) {
	return m.fill(filling{m: m, kind: fillContinue}, start, length, fl, uffd.DontWake|uffd.Armed, nil)
}

// Poison has whoever touches the pages fail with ErrPoison, until they are unmapped
// or given back.
//
// Errors: as Copy's. Source: UFFDIO_POISON.
func (m *Monitor) Poison(start addr.GVA, length uint64, fl uffd.Flags) (done uint64, err error) {
	return m.fill(filling{m: m, kind: fillPoison}, start, length, fl, uffd.DontWake, nil)
}

// fill checks, installs, and wakes.
func (m *Monitor) fill(f filling, start addr.GVA, length uint64, fl, known uffd.Flags, source func(off uint64) ([]byte, error)) (uint64, error) {
	op := fillNames[f.kind]
	r, err := m.begin(start, length)
	if err == nil && fl&^known != 0 {
		err = fmt.Errorf("flags %v: %w", fl, ErrInvalid)
	}
	if err != nil {
		return 0, opError(op, r, err)
	}
	if err := m.enter(); err != nil {
		return 0, opError(op, r, err)
	}
	f.armed, f.end = fl&uffd.Armed != 0, r.End
	done, err := f.run(r, source)
	if done > 0 && fl&uffd.DontWake == 0 {
		m.wake(addr.Range{Start: r.Start, End: r.Start + addr.GVA(done)})
	}
	if err != nil {
		return done, opError(op, r, err)
	}
	return done, nil
}

// begin checks what every call that installs does, in Linux's order.
func (m *Monitor) begin(start addr.GVA, length uint64) (addr.Range, error) {
	if m.changing.Load() != 0 {
		return addr.Range{Start: start, End: start + addr.GVA(length)}, errChanging
	}
	return m.as.checkMonitored(start, length)
}

// errChanging is what installs are told beside a change.
var errChanging = fmt.Errorf("an event was not read: %w", ErrAgain)

// run installs page by page, as many in a section as it may.
//
// Preconditions: m was entered; run leaves it.
func (f *filling) run(r addr.Range, source func(off uint64) ([]byte, error)) (done uint64, err error) {
	as := f.m.as
	entered := true
	defer func() {
		if entered {
			f.m.leave()
		}
	}()
	a := as.borrow()
	defer a.giveBack()
	for at := (attempt{gva: r.Start, access: Write}); at.gva < r.End; {
		a.h.Enter(as.id)
		n, o := f.section(a, &at)
		if o == lackFrames || o == lackRoom {
			a.h.Leave()
		} else {
			a.h.Exit()
		}
		done += n
		switch {
		case at.err != nil:
			return done, at.err
		case o == lackData:
			// It may wait for another monitor, and whoever closes the space must
			// not wait for that.
			f.m.leave()
			entered = false
			if f.data, err = source(done); err == nil {
				err = f.m.enter()
			}
			if err != nil {
				return done, err
			}
			entered = true
		case o == lackPage && f.kind != fillContinue:
			at.object.slot(at.index) // a place for it
			at.object.awaitPunching()
			at.object.unref()
			at.object = nil
		default:
			if err := a.provide(context.Background(), &at, o); errors.Is(err, ErrClosed) {
				return done, ErrGone
			} else if err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// section installs pages from at.gva on, which it moves, and returns how many bytes.
//
// Preconditions: a section is open.
func (f *filling) section(a Accessor, at *attempt) (done uint64, o outcome) {
	as := a.as
	if !as.mem.door.passes() {
		return 0, doorShut
	}
	if f.m.changing.Load() != 0 {
		return 0, at.fail(errChanging)
	}
	if fillHook != nil {
		fillHook()
	}
	area, status := as.tree.StartRead(at.gva)
	switch status {
	case vmarea.Found:
	case vmarea.Marked:
		return 0, inChange
	case vmarea.Foreign:
		return 0, foreign
	default:
		return 0, at.fail(errUnregistered)
	}
	defer as.tree.EndRead(area)
	_, modes := monitorOf(area)
	obj, _ := area.Backing.(*Object)
	switch {
	case f.end > area.End || modes == 0:
		return 0, at.fail(errUnregistered)
	case f.armed && modes&uffd.WP == 0:
		return 0, at.fail(fmt.Errorf("not registered for write protection: %w", ErrInvalid))
	case f.kind == fillContinue && obj == nil:
		return 0, at.fail(fmt.Errorf("not shared memory: %w", ErrInvalid))
	}
	c := a.h.Local().(*cow.Cache)
	for at.gva < f.end && done < sectionBytes {
		if o = f.page(area, obj, c, a, at); o != resolved || at.err != nil {
			return done, o
		}
		if f.kind == fillCopy {
			f.data = f.data[addr.PageSize:]
		}
		done += addr.PageSize
		at.gva += addr.PageSize
	}
	return done, again
}

// mark is what leaves hold of pages that are installed armed.
func (f *filling) mark() pagetable.Entry {
	if f.armed {
		return pagetable.Armed
	}
	return 0
}

// fillHook is called in a section that is about to install. Only tests set it.
var fillHook func()

// page installs one page.
func (f *filling) page(area *vmarea.Area, obj *Object, c *cow.Cache, a Accessor, at *attempt) outcome {
	as := a.as
	l := as.pt.Find(at.gva)
	var index uint64
	if obj != nil {
		if index = area.OffsetOf(at.gva) / addr.PageSize; index >= obj.pages() {
			return at.fail(ErrBus)
		}
	}
	switch {
	case l.Entry.Has(pagetable.Present), l.Marked() && (f.kind == fillZero && obj == nil || f.kind == fillPoison):
		return at.fail(ErrExists)
	case !l.Owned:
		return lackPath
	case f.kind == fillPoison:
		if !l.Poison() {
			return again
		}
		return resolved
	case f.kind == fillContinue:
		return f.mapPage(area, obj, l, index, at)
	case f.kind == fillCopy && len(f.data) == 0:
		return lackData
	}
	shared := area.Flags&vmarea.Shared != 0
	if shared {
		if p := obj.find(index); p == nil {
			return at.lacksPage(obj, index)
		} else if have := p.Load(); have&punched != 0 {
			return at.lacksPage(obj, index)
		} else if have != 0 {
			return at.fail(ErrExists)
		}
	}
	p := as.mem.pool
	frame, zero, ok := p.Take(c)
	if !ok {
		return lackFrames
	}
	switch {
	case f.kind == fillCopy:
		as.mem.stored(frame)
		copy(as.mem.arena.Bytes(frame), f.data[:addr.PageSize])
		zero = false
	case !zero:
		as.mem.stored(frame)
		as.mem.arena.Zero(frame)
		zero = true
	}
	if shared {
		if !obj.find(index).CompareAndSwap(0, uint64(frame)) {
			p.Return(c, frame, zero)
			return again
		}
		as.mem.objectPages.Inc()
		if o := f.mapPage(area, obj, l, index, at); o == again {
			return resolved // somebody has mapped it already
		}
		return resolved
	}
	e := as.privateLeaf(area, frame, Write, f.mark())
	if !l.InstallOver(e) {
		p.Return(c, frame, zero)
		return again
	}
	return resolved
}

// mapPage maps a page that the object has.
func (f *filling) mapPage(area *vmarea.Area, obj *Object, l pagetable.Leaf, index uint64, at *attempt) outcome {
	p := f.m.as.mem.pool
	frame, ok := obj.page(index)
	if !ok {
		return at.fail(ErrBus)
	}
	perm := permOf(area.Prot) | pagetable.Dirty
	if area.Flags&vmarea.Shared != 0 {
		perm |= pagetable.Shared
	} else {
		perm &^= pagetable.Writable
	}
	if f.armed {
		perm = perm&^pagetable.Writable | f.mark()
	}
	f.m.as.mem.assertData(frame)
	p.Share([]addr.PFN{frame})
	if !l.InstallOver(pagetable.LeafEntry(frame, perm)) {
		p.Drop(frame) // never the last: the object has one
		return again
	}
	return resolved
}
