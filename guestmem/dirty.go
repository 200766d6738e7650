package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// DirtySource knows of stores that do not go through this package: those of
// vCPUs, above all.
type DirtySource interface {
	// CollectDirty ors into bitmap, one bit for each 4 KiB page of r, those
	// that were stored to since the last call, and begins to watch them again. An
	// error means that it still knows of all of them.
	CollectDirty(r *Region, bitmap []uint64) error
}

// AttachDirtySource has every harvest ask s too. Attaching twice is refused with
// ErrBusy.
func (m *Memory) AttachDirtySource(s DirtySource) error {
	m.layout.Lock()
	defer m.layout.Unlock()
	old := m.dirtySources()
	for _, x := range old {
		if x == s {
			return fmt.Errorf("guestmem: attach dirty source: attached already: %w", ErrBusy)
		}
	}
	list := append(append([]DirtySource(nil), old...), s)
	m.sources.Store(&list)
	return nil
}

// DetachDirtySource forgets s. What it knows and was not harvested is lost.
func (m *Memory) DetachDirtySource(s DirtySource) {
	m.layout.Lock()
	defer m.layout.Unlock()
	var list []DirtySource
	for _, x := range m.dirtySources() {
		if x != s {
			list = append(list, x)
		}
	}
	m.sources.Store(&list)
}

func (m *Memory) dirtySources() []DirtySource {
	if p := m.sources.Load(); p != nil {
		return *p
	}
	return nil
}

// CollectDirty calls yield for every run of 4 KiB pages of r that were stored to
// since the last call, in order of address: by WriteAt and its kin, by Fill or a
// discard, by slices held for writing, which count at every call, and by what the
// attached sources know. In the pool's region these are the stores of address
// spaces too, once TrackFrames has been called.
//
// Every store that had ended when it was called is in this harvest, or was in one
// before; when yield is called, no store of this package is under way whose page
// is not in this harvest or will not be in the next. It costs what is dirty, and
// a look at one bit for each page. One at a time for each region. After an error,
// everything is still marked and nothing was yielded.
//
// Errors: ErrInvalid if r is not part of the memory; that of a source.
func (m *Memory) CollectDirty(r *Region, yield func(start addr.GPA, nPages uint64)) error {
	const op = "collect dirty"
	if r == nil || !m.table().has(r) {
		return regionError(op, 0, 0, fmt.Errorf("not a region of this memory: %w", ErrInvalid))
	}
	r.harvest.Lock()
	defer r.harvest.Unlock()
	if r.scratch == nil {
		r.scratch = make([]uint64, (r.nPages()+63)/64)
	}
	var errs []error
	for _, s := range m.dirtySources() {
		errs = append(errs, s.CollectDirty(r, r.scratch))
	}
	if err := errors.Join(errs...); err != nil {
		return regionError(op, r.base, r.size, err) // scratch keeps what the others gave
	}
	// Slices before marks: see regionPins.release.
	r.HeldForWriting(r.gather)
	if r.pooled && m.tracking.Load() {
		m.eachPinned(func(f addr.PFN) { r.gather(r.pageOf(f.GPA()), 1) })
	}
	r.dirty.take(func(page, members uint64) { r.scratch[page/64] |= members })
	m.domain.BarrierAll() // see writeSection
	runs := pageRuns{yield: func(first, n uint64) { yield(r.gpaOf(first), n) }}
	for i, w := range r.scratch {
		if w != 0 {
			r.scratch[i] = 0
			runs.word(uint64(i)*64, w)
		}
	}
	runs.flush()
	return nil
}

// gather adds pages to the harvest under way.
func (r *Region) gather(first, n uint64) {
	for page := first; page < first+n; page++ {
		r.scratch[page/64] |= 1 << (page % 64)
	}
}

// TrackFrames has the stores of address spaces count as dirty too, in the region
// of the frame pool: copies and stores by guest-virtual address, and what faults
// zero or copy; pinned frames count at every harvest. Page tables do not count. It cannot be undone, and costs a bit
// for each frame and a look at it for each store. Stores that had begun before it
// returns may be missed.
//
// Errors: ErrNotSupported for a memory without a frame pool.
func (m *Memory) TrackFrames() error {
	if m.pool == nil {
		return opError("track frames", addr.Range{}, errNoPool)
	}
	m.frames.dirty.prepare(0, m.frames.nPages())
	m.tracking.Store(true)
	m.domain.BarrierAll()
	return nil
}

// stored counts a frame dirty that is about to be stored to, in the same
// section: see writeSection.
func (m *Memory) stored(f addr.PFN) {
	if m.tracking.Load() {
		m.frames.dirty.mark(m.frames.pageOf(f.GPA()))
	}
}

// eachPinned calls fn for the frames that are pinned in any address space.
func (m *Memory) eachPinned(fn func(addr.PFN)) {
	m.mu.Lock()
	sets := make([]*pinSet, 0, len(m.spaces)+len(m.orphans))
	for _, as := range m.spaces {
		sets = append(sets, &as.pins)
	}
	for s := range m.orphans {
		sets = append(sets, s)
	}
	m.mu.Unlock()
	for _, s := range sets {
		s.each(fn)
	}
}
