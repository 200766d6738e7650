package guestmem

import (
	"fmt"
	"math"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Truncate sets the object's length, as ftruncate(2) does under mappings. What lies
// beyond the end is gone from every address space when it returns, private copies
// too; an access there is ErrBus from then on. The rest of the last page reads as
// zero, but in private copies. Growing, what is new reads as zero; what was stored to
// the rest of the old last page stays, as in a file of tmpfs.
//
// It waits for the lookups in progress in the spaces that map the object, one after
// the other, and for what is being written back. If the sink has a method
// Truncate(int64) error, that is called first.
//
// Errors, with the length as before: ErrInvalid (negative, or of a device's memory), ErrDenied (the object is
// read-only), ErrIO with the sink's error; ErrNoMemory, for page tables; where
// a space is forked meanwhile and needs them too, private copies beyond the end may be
// gone in some of the spaces.
// Source: ftruncate(2), mm/truncate.c.
func (o *Object) Truncate(size int64) error {
	err := ErrInvalid
	if size >= 0 && o.device == nil {
		err = o.truncate(uint64(size))
	}
	if err != nil {
		return &Error{Op: "truncate object", Err: fmt.Errorf("%s to %#x bytes: %w", o.name, size, err)}
	}
	return nil
}

// truncater is a sink that can be told.
type truncater interface{ Truncate(size int64) error }

func (o *Object) truncate(size uint64) error {
	if o.readOnly {
		return ErrDenied
	}
	o.syncing.Lock()
	defer o.syncing.Unlock()
	o.punching.Lock()
	defer o.punching.Unlock()
	s := span{object: o, first: pageCount(size), kind: sweepCopies}
	s.n = math.MaxUint64>>nodeBits - s.first
	if size < o.size.Load() {
		if err := s.reserve(); err != nil {
			return err // before anything is done
		}
		defer s.release()
	}
	// Before the sink is told: a fill that finds it too short starts over.
	o.cut()
	defer o.cut()
	if t, ok := o.dst.(truncater); ok {
		if err := t.Truncate(int64(size)); err != nil {
			return o.ioError("truncate", size, err)
		}
		o.reached = min(o.reached, size)
	}
	was := o.setSize(size)
	if size < was {
		if err := o.dropBeyond(s, size, was); err != nil {
			return err
		}
	}
	if o.host != nil {
		if err := o.host.Truncate(int64(size)); err != nil {
			_, _ = o.refreshSize()
			return o.ioError("truncate", size, err)
		}
	}
	return nil
}

// setSize has faults past the end fail from now on. Those that have asked before
// are waited for by the changes that sweep.
func (o *Object) setSize(size uint64) (was uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was = o.size.Load()
	o.size.Store(size)
	o.believed = min(o.believed, size)
	return was
}

// dropBeyond takes out what lies beyond the end of an object that has shrunk.
// Interleaving 11: the pages are marked in the object first, so that no fault finds
// them, and then each space is changed, one at a time.
//
// Preconditions: syncing and punching are held, and the end is set.
func (o *Object) dropBeyond(s span, size, was uint64) error {
	s.mark()
	if err := s.sweepSpaces(); err != nil {
		s.unmark()
		o.mu.Lock()
		o.size.Store(was)
		o.mu.Unlock()
		return err
	}
	// What a monitor's install has put in since that had asked for the length before:
	// such sections have ended, and what they mapped was swept.
	s.mark()
	s.remove()
	if in := size % addr.PageSize; in != 0 && o.host == nil {
		if f, there := o.page(size / addr.PageSize); there {
			o.mem.pastDoor(func() {
				o.mem.stored(f)
				clear(o.mem.arena.Bytes(f)[in:])
			})
		}
	}
	return nil
}

// mark hides the pages of the span from faults, and reports whether there are any.
func (s span) mark() (found bool) {
	s.object.eachSlot(s.first, s.n, func(_ uint64, p *atomic.Uint64) {
		for {
			f := p.Load()
			if f == 0 || p.CompareAndSwap(f, f|punched) {
				found = found || f != 0
				return
			}
		}
	})
	return found
}

// unmark shows them again.
func (s span) unmark() {
	s.object.eachSlot(s.first, s.n, func(_ uint64, p *atomic.Uint64) {
		if f := p.Load(); f&punched != 0 {
			p.Store(f &^ punched) // nobody but who has punching changes a marked one
		}
	})
}

// remove takes them out and drops them.
//
// Preconditions: no table leads to them, and who has walked there has ended.
func (s span) remove() {
	o := s.object
	var frames []addr.PFN
	defer func() { o.dropPages(frames) }()
	o.eachSlot(s.first, s.n, func(_ uint64, p *atomic.Uint64) {
		f := p.Load()
		if f&punched == 0 {
			return
		}
		p.Store(0)
		o.mem.objectPages.Dec()
		frames = append(frames, addr.PFN(f&^pageMarks))
	})
}
