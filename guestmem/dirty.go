package guestmem

import (
	"errors"
	"fmt"
	"math/bits"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// DirtySource knows of stores that do not go through this package: those of
// vCPUs, above all.
type DirtySource interface {
	// CollectDirty ors into bitmap, one bit for each 4 KiB page of r, those
	// that were stored to since the last call, and begins to watch them again. It may
	// name some that were not. An error means that it still knows of all of them.
	CollectDirty(r *Region, bitmap []uint64) error
}

// A SparseDirtySource names the pages one by one or in runs, so that a harvest
// looks at those alone, where a bitmap has to be looked at wholly.
type SparseDirtySource interface {
	DirtySource
	// CollectDirtyPages is CollectDirty with add called for every run of dirty 4
	// KiB pages, counted from the region's base, in any order. What was added
	// before an error counts as dirty.
	CollectDirtyPages(r *Region, add func(first, n uint64)) error
}

// gathering is what a harvest has found so far: a bit for each page, and one for
// each word of those bits that is not zero. What came before an error stays in it.
type gathering struct {
	bits, words []uint64
}

func (g *gathering) init(nPages uint64) {
	if g.bits == nil {
		g.bits = make([]uint64, (nPages+63)/64)
		g.words = make([]uint64, (len(g.bits)+63)/64)
	}
}

func (g *gathering) word(page, members uint64) {
	i := page / 64
	g.bits[i] |= members
	g.words[i/64] |= 1 << (i % 64)
}

func (g *gathering) add(first, n uint64) {
	for n > 0 {
		k := min(n, 64-first%64)
		g.word(first, ^uint64(0)>>(64-k)<<(first%64))
		first, n = first+k, n-k
	}
}

// from asks a source.
func (g *gathering) from(s DirtySource, r *Region) error {
	if sparse, ok := s.(SparseDirtySource); ok {
		return sparse.CollectDirtyPages(r, g.add)
	}
	err := s.CollectDirty(r, g.bits)
	for i, w := range g.bits {
		if w != 0 {
			g.words[i/64] |= 1 << (i % 64)
		}
	}
	return err
}

// empty calls fn for the words that are not zero, in order.
func (g *gathering) empty(fn func(page, members uint64)) {
	for k, noted := range g.words {
		g.words[k] = 0
		for ; noted != 0; noted &= noted - 1 {
			i := uint64(k)*64 + uint64(bits.TrailingZeros64(noted))
			w := g.bits[i]
			g.bits[i] = 0
			fn(i*64, w)
		}
	}
}

// AttachDirtySource has every harvest ask s too. Attaching twice is refused with
// ErrBusy, and with ErrInvalid what cannot be compared, such as a function type.
func (m *Memory) AttachDirtySource(s DirtySource) error {
	if !isComparable(s) {
		return fmt.Errorf("guestmem: attach dirty source: a %T cannot be compared, and so not be detached: %w", s, ErrInvalid)
	}
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
	if !isComparable(s) {
		return
	}
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
// a look at one bit for each 256 KiB; or at one for each page, where a source is
// no SparseDirtySource. One at a time for each region. After an error, everything is
// still marked and nothing was yielded.
//
// Errors: ErrInvalid if r is not part of the memory; that of a source.
func (m *Memory) CollectDirty(r *Region, yield func(start addr.GPA, nPages uint64)) error {
	const op = "collect dirty"
	if r == nil || !m.table().has(r) {
		return regionError(op, 0, 0, fmt.Errorf("not a region of this memory: %w", ErrInvalid))
	}
	r.harvest.Lock()
	defer r.harvest.Unlock()
	g := &r.gathered
	g.init(r.nPages())
	var errs []error
	for _, s := range m.dirtySources() {
		errs = append(errs, g.from(s, r))
	}
	if err := errors.Join(errs...); err != nil {
		return regionError(op, r.base, r.size, err) // what the others gave is kept
	}
	// Slices before marks: see regionPins.release.
	r.HeldForWriting(g.add)
	if r.pooled && m.tracking.Load() {
		m.eachPinned(func(f addr.PFN) { g.add(r.pageOf(f.GPA()), 1) })
	}
	r.dirty.take(g.word)
	m.domain.BarrierAll() // see writeSection
	runs := pageRuns{yield: func(first, n uint64) { yield(r.gpaOf(first), n) }}
	g.empty(runs.word)
	runs.flush()
	return nil
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
