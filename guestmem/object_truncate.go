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
// read-only), ErrIO with the sink's error; ErrClosed; ErrNoMemory, for page tables; where
// a space is forked meanwhile and needs them too, private copies beyond the end may be
// gone in some of the spaces, and what the sink had there and was not read before.
// Source: ftruncate(2), mm/truncate.c.
func (o *Object) Truncate(size int64) error {
	err := ErrInvalid
	if size >= 0 && o.device == nil {
		if err = o.hold(); err == nil {
			err = o.truncate(uint64(size))
			o.unref()
		}
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
	was, believed := o.setSize(size)
	if size < was {
		if err := o.dropBeyond(s, size); err != nil {
			o.stayAt(s, was, believed)
			return err
		}
		o.cutBack(size)
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
func (o *Object) setSize(size uint64) (was, believed uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was, believed = o.size.Load(), o.believed
	o.size.Store(size)
	o.believed = min(o.believed, size)
	o.noteTail(was, size)
	return was, believed
}

// noteTail marks the page that the end lies in as changed, where the end moves up: what
// somebody has stored to the rest of it belongs to the object from now on, and was cut
// off when the page was written to the sink.
//
// Preconditions: mu is held, and punching.
func (o *Object) noteTail(was, size uint64) {
	if size > was && was%addr.PageSize != 0 {
		o.noteStore(was / addr.PageSize) // if it is there
	}
}

// cutBack forgets what is known of what lies beyond the end.
func (o *Object) cutBack(size uint64) {
	if _, told := o.dst.(truncater); o.dst != nil && !told {
		o.stale = min(o.stale, size)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.emptied.cutAt(pageCount(size))
}

// stayAt undoes what was begun of a truncation that cannot be done. A sink that was
// told of it has lost what lies beyond: pages that are there are written back to it. The
// others can be read no more, unless the source is another file; that is an error
// for whoever needs them, and no zeroes (R12).
func (o *Object) stayAt(s span, was, believed uint64) {
	o.mu.Lock()
	o.size.Store(was)
	o.believed = believed
	o.mu.Unlock()
	if _, told := o.dst.(truncater); told {
		if s.first > 0 {
			s.first, s.n = s.first-1, s.n+1 // the new end may lie in it
		}
		s.markChanged()
	}
}

// dropBeyond takes out what lies beyond the end of an object that has shrunk.
// Interleaving 11: the pages are marked in the object first, so that no fault finds
// them, and then each space is changed, one at a time.
//
// Preconditions: syncing and punching are held, and the end is set.
func (o *Object) dropBeyond(s span, size uint64) error {
	s.mark()
	if err := s.sweepSpaces(); err != nil {
		s.unmark()
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
		p.And(^uint64(punched))
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
