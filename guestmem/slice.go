package guestmem

import (
	"context"
	"fmt"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Slice is guest-physical memory held still for a device or for a long access:
// the pin of a Memory (R7). While it is held, its region cannot be removed, its
// pages cannot be discarded, and, if it is held for writing, every harvest counts
// its pages dirty, since nobody is told of a device's stores.
type Slice struct {
	region *Region
	first  uint64 // page
	n      uint64 // pages
	off    uint64 // of the first byte in the region
	size   uint64
	access Access
	bytes  []byte // what Go may touch; nil if only devices may go there
	live   bool   // its pages are there, and it is about to be given out; pins.mu
}

// Slice holds [gpa, gpa+size) for reading, or for reading and writing. The range
// lies in one region. Its pages are fetched and populated first.
//
// Errors: a *RegionError over ErrNoRegion, also where the range goes past the
// end of the region; ErrReadOnly; ErrInvalid for an empty range or another
// access; ErrBusy where the region is being removed; as ReadAt.
func (m *Memory) Slice(gpa addr.GPA, size uint64, access Access) (*Slice, error) {
	const op = "slice"
	if size == 0 || access != Read && access != Write {
		return nil, regionError(op, gpa, size, fmt.Errorf("access %d: %w", access, ErrInvalid))
	}
	r, ok := m.RegionAt(gpa)
	switch {
	case !ok && m.isClosed():
		return nil, regionError(op, gpa, size, ErrClosed)
	case !ok:
		return nil, regionError(op, gpa, size, ErrNoRegion)
	case size > uint64(r.End()-gpa):
		return nil, regionError(op, gpa, size, fmt.Errorf("goes past the region %v: %w", r, ErrNoRegion))
	case access == Write && r.readOnly:
		return nil, regionError(op, gpa, size, fmt.Errorf("region %v: %w", r, ErrReadOnly))
	}
	s := &Slice{region: r, off: uint64(gpa - r.base), size: size, access: access}
	s.first = r.pageOf(gpa)
	s.n = r.pageOf(gpa+addr.GPA(size-1)) - s.first + 1
	// Held first, made usable then: a discard in between is seen by the
	// second step, and one after it is refused.
	if err := r.pins.hold(s); err != nil {
		return nil, regionError(op, gpa, size, err)
	}
	if err := s.makeReady(); err != nil {
		r.pins.release(s)
		return nil, regionError(op, gpa, size, err)
	}
	return s, nil
}

// makeReady fetches and populates what the slice holds, and has it given out.
func (s *Slice) makeReady() error {
	r := s.region
	r.pop.RLock()
	intercepted := r.intercepted
	r.pop.RUnlock()
	if !intercepted {
		if err := s.bring(); err != nil {
			return err
		}
	}
	if err := s.goLive(); err != nil {
		return err
	}
	if !intercepted && !r.guarded {
		s.bytes = r.look[s.off : s.off+s.size : s.off+s.size]
	}
	return nil
}

// bring fetches and populates what the slice holds. A window that opens after that
// arms it again, until the slice is live.
func (s *Slice) bring() error {
	for page := s.first; page < s.first+s.n; page += populateBatch {
		if err := s.region.ready(context.Background(), page, min(populateBatch, s.first+s.n-page), s.access); err != nil {
			return err
		}
	}
	return nil
}

// goLive has stores to what the slice holds known to harvests and snapshots without
// being trapped.
func (s *Slice) goLive() error {
	r := s.region
	if s.access == Write {
		r.dirty.prepare(s.first, s.n)
		// In this order: a window arms what nobody holds who is ready, so that what
		// is disarmed after stays so; and what it copies for being held is there.
		r.pins.enliven(s)
		// A device's stores are not trapped, whoever watches the mapping.
		return r.disarmRange(context.Background(), s.first, s.n)
	}
	return nil
}

// Bytes returns the memory for Go code to touch until Release, or nil where it
// may not: the only mapping is watched by somebody else, or what is behind it
// is a file or the embedder's and could go away. Others may store to it at any
// time. What has been got stays valid for the life of the slice.
func (s *Slice) Bytes() []byte { return s.bytes }

// HVA returns where the memory is for a device, vhost or io_uring: in the
// mapping that vCPUs use.
func (s *Slice) HVA() addr.HVA { return s.region.Slot() + addr.HVA(s.off) }

// GPA returns the guest-physical address of the first byte.
func (s *Slice) GPA() addr.GPA { return s.region.base + addr.GPA(s.off) }

// Size returns the length in bytes.
func (s *Slice) Size() uint64 { return s.size }

// Region returns the region that the slice is of.
func (s *Slice) Region() *Region { return s.region }

// Release lets go. Its pages count dirty once more if it was held for writing.
// Releasing twice does nothing. Nobody may use its memory after.
func (s *Slice) Release() { s.region.pins.release(s) }

// regionPins are the slices held of a region.
type regionPins struct {
	mu      sync.Mutex
	held    map[*Slice]struct{} // mu
	closing bool                // the region is being removed; mu
}

func (p *regionPins) hold(s *Slice) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closing {
		return fmt.Errorf("region %v is being removed: %w", s.region, ErrBusy)
	}
	if p.held == nil {
		p.held = make(map[*Slice]struct{})
	}
	p.held[s] = struct{}{}
	return nil
}

// enliven says that the pages of a slice are there.
func (p *regionPins) enliven(s *Slice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.live = true
}

func (p *regionPins) release(s *Slice) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.held[s]; !ok {
		return
	}
	if s.access == Write {
		// Before it leaves the set, and a harvest looks at the set before it
		// takes the marks: so one of the two sees the pages.
		s.region.dirty.add(s.first, s.n)
	}
	delete(p.held, s)
}

// shut keeps new slices out, unless some are held.
func (p *regionPins) shut() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.busyLocked(); err != nil {
		return err
	}
	p.closing = true
	return nil
}

func (p *regionPins) reopen() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closing = false
}

// busyLocked names one of the slices held, if any.
func (p *regionPins) busyLocked() error {
	for s := range p.held {
		return fmt.Errorf("%d slices of region %v are held, one of %s: %w", len(p.held), s.region, gpaRange(s.GPA(), s.size), ErrBusy)
	}
	return nil
}

// overlapping is ErrBusy if a slice of one of the pages is held.
func (p *regionPins) overlapping(first, n uint64) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s := range p.held {
		if s.first < first+n && first < s.first+s.n {
			return fmt.Errorf("a slice of %s is held: %w", gpaRange(s.GPA(), s.size), ErrBusy)
		}
	}
	return nil
}

// HeldForWriting calls yield for the pages of each slice of the region that is
// held for writing, and given out: what arming has to copy at once, since stores to
// them are not trapped (R7). One that is still being made may lack its pages: nobody
// has it yet, and it has its pages disarmed before anybody does.
func (r *Region) HeldForWriting(yield func(first, n uint64)) {
	r.pins.mu.Lock()
	defer r.pins.mu.Unlock()
	for s := range r.pins.held {
		if s.access == Write && s.live {
			yield(s.first, s.n)
		}
	}
}
