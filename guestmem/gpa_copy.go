package guestmem

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/epoch"
	"github.com/guestmm/guestmm/internal/sys"
)

// PhysAccessor is guest-physical memory as seen with a handle. One goroutine at
// a time.
type PhysAccessor struct {
	m *Memory
	h *epoch.Handle
}

// With returns the accessor for a handle of this memory.
func (m *Memory) With(h *Handle) PhysAccessor {
	if h.mem != m {
		panic("guestmem: With: handle of another memory")
	}
	return PhysAccessor{m, h.h}
}

// stop is why a section of an access by guest-physical address has ended.
type stop int

const (
	stopNone     stop = iota // all done, or as much as one section may do
	stopShut                 // a window is opening
	stopHole                 // no region
	stopReadOnly             // a store to a read-only region
	stopNotReady             // a page has to be made usable
	stopLost                 // what is behind the region has shrunk
)

// ReadAt copies guest memory from gpa on to p and returns how many bytes it
// copied; fewer than len(p) only with an error, and then exactly those below
// the address that failed. A copy may go from one region to the next where there
// is no hole between. Pages that a fault server has are fetched.
//
// In the region of the frame pool only frames that somebody has are accessible;
// the caller keeps them in use meanwhile, by a pin or by being the only one who
// changes the address spaces.
//
// Errors: a *RegionError naming the address that failed, over ErrNoRegion,
// ErrBus for a file that has become shorter than its region, ErrNoMemory where
// the host cannot back a page, ErrNotMapped for a free frame, ErrClosed; that of
// the fault server. Safe for concurrent use; it waits for no change of the
// regions.
func (m *Memory) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	h := m.domain.Borrow()
	if len(p) == 8 && m.read8(h, (*[8]byte)(p), gpa) {
		m.domain.GiveBack(h)
		return 8, nil
	}
	n, err := PhysAccessor{m, h}.ReadAt(p, gpa)
	m.domain.GiveBack(h)
	return n, err
}

// WriteAt copies p to guest memory from gpa on, as ReadAt does the other way,
// and counts the pages dirty.
//
// Errors: as ReadAt; ErrReadOnly.
func (m *Memory) WriteAt(p []byte, gpa addr.GPA) (int, error) {
	h := m.domain.Borrow()
	n, err := PhysAccessor{m, h}.WriteAt(p, gpa)
	m.domain.GiveBack(h)
	return n, err
}

// ReadAt is Memory.ReadAt.
func (a PhysAccessor) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	if len(p) == 8 && a.m.read8(a.h, (*[8]byte)(p), gpa) {
		return 8, nil
	}
	a.h.Enter(noSpace)
	n, why, r := a.m.readSection(p, gpa)
	a.h.Exit()
	if n == len(p) {
		return n, nil
	}
	return a.finish(p, gpa, n, why, r, Read)
}

// WriteAt is Memory.WriteAt.
func (a PhysAccessor) WriteAt(p []byte, gpa addr.GPA) (int, error) {
	a.h.Enter(noSpace)
	n, why, r := a.m.writeSection(p, gpa)
	a.h.Exit()
	if n == len(p) {
		return n, nil
	}
	return a.finish(p, gpa, n, why, r, Write)
}

// finish goes on with a copy that one section did not complete.
func (a PhysAccessor) finish(p []byte, gpa addr.GPA, done int, why stop, r *Region, access Access) (int, error) {
	for done < len(p) {
		at := gpa + addr.GPA(done)
		n, err := a.m.resolve(p[done:], at, why, r, access)
		if done += n; err != nil {
			op := "read"
			if access == Write {
				op = "write"
			}
			return done, regionError(op, at+addr.GPA(n), uint64(len(p)-done), err)
		}
		if done == len(p) {
			break
		}
		a.h.Enter(noSpace)
		if access == Write {
			n, why, r = a.m.writeSection(p[done:], gpa+addr.GPA(done))
		} else {
			n, why, r = a.m.readSection(p[done:], gpa+addr.GPA(done))
		}
		a.h.Exit()
		done += n
	}
	return done, nil
}

// resolve gets what a section lacked at gpa, outside of it. A region that is
// reached by system calls is copied here; it returns the bytes copied.
func (m *Memory) resolve(p []byte, gpa addr.GPA, why stop, r *Region, access Access) (int, error) {
	switch why {
	case stopNone:
		return 0, nil
	case stopShut:
		m.door.wait()
		return 0, nil
	case stopHole:
		if m.isClosed() {
			return 0, ErrClosed
		}
		return 0, ErrNoRegion
	case stopReadOnly:
		return 0, ErrReadOnly
	case stopLost:
		return 0, r.lost(r.pageOf(gpa))
	}
	n, err := r.copyBySystemCall(p, gpa, access)
	if n > 0 || err != nil {
		return n, err
	}
	first := r.pageOf(gpa)
	last := r.pageOf(gpa + addr.GPA(min(uint64(len(p)), sectionBytes, uint64(r.End()-gpa))-1))
	err = r.ready(context.Background(), first, last-first+1, access)
	if err != nil && last > first {
		// One of the pages cannot be had. Those before it can: the copy goes as far,
		// and the error is of the address that failed.
		err = r.ready(context.Background(), first, 1, access)
	}
	return 0, err
}

// read8 copies the 8 bytes at gpa in one section, if they can be had as they are:
// in one page, which is usable, and past the door. Most accesses of a device model
// are of a word.
func (m *Memory) read8(h *epoch.Handle, p *[8]byte, gpa addr.GPA) bool {
	h.Enter(noSpace)
	b := m.readable8(gpa)
	if b != nil {
		*p = *b
	}
	h.Exit()
	return b != nil
}

func (m *Memory) readable8(gpa addr.GPA) *[8]byte {
	if !m.door.passesLoad() {
		return nil
	}
	h := m.regions.Load().find(gpa)
	if h == nil || uint64(gpa)%addr.PageSize > addr.PageSize-8 {
		return nil
	}
	off := uint64(gpa - h.base)
	page := off / addr.PageSize
	c := h.readable[page/chunkPages].Load()
	if c == nil || c.words[page/64%chunkWords].Load()&(1<<(page%64)) == 0 || h.guarded || m.hosted.Load() {
		return nil
	}
	return (*[8]byte)(h.look[off:])
}

// readSection copies, in the caller's section, as much as is usable and at most
// sectionBytes.
func (m *Memory) readSection(p []byte, gpa addr.GPA) (done int, why stop, r *Region) {
	if !m.door.passesLoad() {
		return 0, stopShut, nil
	}
	t := m.regions.Load()
	for done < len(p) && done < sectionBytes {
		at := gpa + addr.GPA(done)
		if at < gpa {
			return done, stopHole, nil
		}
		hot := t.find(at)
		if hot == nil {
			return done, stopHole, nil
		}
		r = hot.r
		off := uint64(at - r.base)
		if !r.readable.has(off / addr.PageSize) {
			return done, stopNotReady, r
		}
		end := min(off|(addr.PageSize-1)+1, r.size)
		n, ok := r.copyPage(p[done:], r.look[off:end])
		if done += n; !ok {
			return done, stopLost, r
		}
	}
	return done, stopNone, r
}

// writeSection is readSection the other way.
//
// A page is marked dirty before it is stored to, in the same section; a harvest
// takes the marks and then waits for the sections that were open. So a store
// whose mark was taken, or that found it set and wrote none, has ended when the
// harvester looks at the page; one that begins later finds no mark and makes one.
// The mark alone, made after the store, would not do: the CPU may load "marked
// already" before its store is seen.
func (m *Memory) writeSection(p []byte, gpa addr.GPA) (done int, why stop, r *Region) {
	if !m.door.passes() {
		return 0, stopShut, nil
	}
	t := m.regions.Load()
	for done < len(p) && done < sectionBytes {
		at := gpa + addr.GPA(done)
		if at < gpa {
			return done, stopHole, nil
		}
		hot := t.find(at)
		if hot == nil {
			return done, stopHole, nil
		}
		r = hot.r
		if r.readOnly {
			return done, stopReadOnly, r
		}
		off := uint64(at - r.base)
		if !r.writable.has(off / addr.PageSize) {
			return done, stopNotReady, r
		}
		r.dirty.mark(off / addr.PageSize)
		if storeHookGPA != nil {
			storeHookGPA()
		}
		end := min(off|(addr.PageSize-1)+1, r.size)
		n, ok := r.copyPage(r.look[off:end], p[done:])
		if done += n; !ok {
			return done, stopLost, r
		}
	}
	return done, stopNone, r
}

// storeHookGPA runs between the dirty mark and the store. Only tests set it.
var storeHookGPA func()

func (r *Region) copyPage(dst, src []byte) (int, bool) {
	if r.isGuarded() {
		return r.copyBytes(dst, src)
	}
	return copy(dst, src), true
}

// copyBySystemCall copies at most to the end of the region or 64 KiB where
// somebody else watches the only mapping there is. It returns 0 and no error
// where Go may go there itself.
func (r *Region) copyBySystemCall(p []byte, gpa addr.GPA, access Access) (int, error) {
	r.pop.RLock()
	defer r.pop.RUnlock()
	if r.gone || !r.intercepted {
		return 0, nil
	}
	off := uint64(gpa - r.base)
	n := min(uint64(len(p)), sectionBytes, r.size-off)
	host := r.host.slot[off : off+n]
	if access == Read {
		k, err := sys.CopyOut(p[:n], host)
		return k, r.faulted(k, off, err)
	}
	k, err := sys.CopyIn(host, p[:n])
	if k > 0 {
		// After the store: whoever harvested before sees the page next time.
		first, last := off/addr.PageSize, (off+uint64(k)-1)/addr.PageSize
		r.dirty.add(first, last-first+1)
	}
	return k, r.faulted(k, off, err)
}

// faulted is the error of a system call that copied k bytes; a short one has
// done its head, and the next call fails at the address.
func (r *Region) faulted(k int, off uint64, err error) error {
	if err == nil || k > 0 {
		return nil
	}
	return fmt.Errorf("the mapping of region %v at %#x: %w: %w", r, off, ErrBus, err)
}
