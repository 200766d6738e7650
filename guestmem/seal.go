package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// Seal makes the memory of a paused guest a template, and uses the memory up: it
// is closed when Seal has succeeded. A memfd becomes the template's as it is, and
// is sealed against writing; what is mapped privately, a file's, or the
// embedder's is copied once, those pages that hold something. Listeners are told
// that there are no regions any more; what they kept equal to them (slots) is
// gone when Seal returns. What the embedder owns stays mapped, and is his.
//
// No vCPU and no device may be using the memory. A clone of a snapshot gets
// what it lacks first.
//
// Errors, with nothing changed: ErrNotSupported for a memory with a frame pool,
// whose address spaces have no place in a template; ErrBusy if slices are held, a
// region has a fault server or was intercepted, an open snapshot lacks pages, or there is no region;
// ErrNoMemory; ErrClosed; that of a listener. A memfd that others have mapped for
// writing cannot be sealed and is copied. Linux 3.17.
func (m *Memory) Seal() (*Template, error) {
	if err := m.completeClone(); err != nil {
		return nil, opError("seal", addr.Range{}, err)
	}
	m.layout.Lock()
	defer m.layout.Unlock()
	t, err := m.sealLocked()
	if err != nil {
		return nil, opError("seal", addr.Range{}, err)
	}
	return t, nil
}

func (m *Memory) sealLocked() (*Template, error) {
	table := m.table()
	if err := m.mayBeSealed(table); err != nil {
		return nil, err
	}
	if err := table.shutPins(); err != nil {
		return nil, err
	}
	if err := m.disarmAll(); err != nil {
		table.reopenPins()
		return nil, err
	}
	m.publish(nil)
	m.domain.BarrierAll()
	if err := m.tellListeners(nil, table); err != nil {
		m.publish(table)
		table.reopenPins()
		return nil, err
	}
	t, err := table.seal()
	if err != nil {
		// The regions are there again, where they were.
		err = errors.Join(err, m.tellListeners(table, nil))
		m.publish(table)
		table.reopenPins()
		return nil, err
	}
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.endSnapshots()
	// What the host does not take back is tried again by Close.
	_ = m.retire(table...)
	return t, nil
}

func (m *Memory) mayBeSealed(table regionTable) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.closed:
		return ErrClosed
	case m.pool != nil:
		return fmt.Errorf("the memory has a frame pool of %#x bytes (MemoryOptions.Size): %w", m.frames.size, ErrNotSupported)
	case len(m.objects) > 0:
		return fmt.Errorf("%d objects are open: %w", len(m.objects), ErrBusy)
	case len(table) == 0:
		return fmt.Errorf("there is no region: %w", ErrInvalid)
	}
	for _, r := range table {
		if err := m.snaps.needed(r); err != nil {
			return err
		}
		r.pop.RLock()
		intercepted := r.intercepted
		r.pop.RUnlock()
		if r.server.Load() != nil || intercepted {
			return fmt.Errorf("region %v: somebody serves or watches its faults: %w", r, ErrBusy)
		}
	}
	return nil
}

// seal makes a template of regions that nobody uses. Copies come first, which
// may fail; then memfds are sealed, which cannot be undone. If one of those can
// neither be sealed nor copied, the ones that are sealed already go on as
// private mappings of themselves, at the same addresses.
func (t regionTable) seal() (_ *Template, err error) {
	images := make([]*image, len(t))
	defer func() {
		if err == nil {
			return
		}
		for i, r := range t {
			if img := images[i]; img != nil {
				err = errors.Join(err, r.takeBack(img))
			}
		}
	}()
	for i, r := range t {
		if !r.isOwnMemfd() {
			if images[i], err = r.copyImage(); err != nil {
				return nil, err
			}
		}
	}
	for i, r := range t {
		if r.isOwnMemfd() {
			if images[i], err = r.sealImage(); err != nil {
				return nil, err
			}
		}
	}
	out := &Template{regions: make([]templateRegion, len(t))}
	for i, r := range t {
		out.regions[i] = templateRegion{
			base: r.base, size: r.size, pageSize: r.pageSize, name: r.name, readOnly: r.readOnly,
			advice: r.advice, numa: r.numa, image: images[i],
		}
	}
	return out, nil
}

// isOwnMemfd reports whether a region is a memfd of its own.
func (r *Region) isOwnMemfd() bool {
	return r.backing == BackingMemfd || r.backing == BackingHugetlb
}

// sealImage turns the region's own memfd into an image, if nobody else can write
// to it, and copies it otherwise.
func (r *Region) sealImage() (*image, error) {
	// The kernel refuses the seal while there is a mapping that may be written
	// through to the memfd. Private ones take their places, so that the
	// addresses stay reserved in case the seal is refused all the same.
	for _, b := range r.host.views() {
		if err := sys.FileOver(b, r.host.file, 0, sys.Private); err != nil {
			return nil, errors.Join(hostShort(err), r.mapAgain())
		}
	}
	if err := r.host.memfd.SealWrites(); err == nil {
		img := newImage(r.host.memfd)
		r.host.closeFile = nil // the image's now
		return img, nil
	}
	if err := r.mapAgain(); err != nil {
		return nil, err
	}
	return r.copyImage()
}

// views are the mappings that have the same memory.
func (h *hostMemory) views() [][]byte {
	if h.alias == nil {
		return [][]byte{h.slot}
	}
	return [][]byte{h.slot, h.alias}
}

// mapAgain has the region's own memfd mapped shared again, where it was. If the host
// refuses even that, the region goes on with its slot alone: one of two mappings
// that is private would not see what is stored through the other.
func (r *Region) mapAgain() error {
	err := sys.FileOver(r.host.slot, r.host.file, 0, sys.Shared)
	if err != nil {
		r.goOnWithSlot(BackingTemplate)
		return hostShort(err)
	}
	if r.host.alias == nil {
		return nil
	}
	if err = sys.FileOver(r.host.alias, r.host.file, 0, sys.Shared); err != nil {
		r.goOnWithSlot(r.backing)
	}
	return hostShort(err)
}

// takeBack undoes the making of an image: a copy is thrown away, and a sealed
// memfd stays behind the private mapping that took its place.
func (r *Region) takeBack(img *image) error {
	if img.fd != r.host.memfd {
		return img.unref()
	}
	r.goOnWithSlot(BackingTemplate)
	r.host.closeFile = img.unref
	return nil
}

// goOnWithSlot has Go code use the slot's mapping. What was populated was so through
// another one.
//
// Preconditions: the region is not published, and no section has it.
func (r *Region) goOnWithSlot(b Backing) {
	r.pop.Lock() // somebody who had found it may be about to populate it
	defer r.pop.Unlock()
	r.backing, r.host.alias, r.look = b, nil, r.host.slot
	r.readable, r.writable = newPageSet(r.nPages()), newPageSet(r.nPages())
}

// copyImage copies what a region holds into a new sealed memfd.
func (r *Region) copyImage() (_ *image, err error) {
	pages, err := r.heldPages()
	if err != nil {
		return nil, err
	}
	create, reserve := sys.NewMemfd, sys.NoReserve
	if r.pageSize > addr.PageSize {
		create, reserve = sys.NewHugeMemfd, sys.Reserved
	}
	fd, err := create(r.name, r.size)
	if err != nil {
		return nil, hostShort(err)
	}
	dst, err := sys.MapFile(fd.File(), 0, r.size, sys.Shared, sys.ReadWrite, reserve)
	if err != nil {
		return nil, errors.Join(hostShort(err), fd.Close())
	}
	if err = r.copyPages(dst, pages); err == nil {
		err = r.stillWhole()
	}
	if e := sys.Unmap(dst); e != nil {
		// It goes with the region.
		r.host.mappings = append(r.host.mappings, dst)
		err = errors.Join(err, e)
	}
	if err == nil {
		err = fd.SealWrites()
	}
	if err != nil {
		return nil, errors.Join(hostShort(err), fd.Close())
	}
	return newImage(fd), nil
}

// heldPages finds the pages that may hold something: data in the file below, and
// what the mapping has of its own. Nothing is faulted in to find out. What was
// discarded of a file's data reads as zero through the mapping, and is left out
// when it is copied.
func (r *Region) heldPages() (*pageSet, error) {
	pages := newPageSet(r.nPages())
	if r.host.file != nil {
		err := sys.EachData(r.host.file, r.host.offset, r.size, func(off, n uint64) error {
			first := (off - r.host.offset) / addr.PageSize
			last := (off - r.host.offset + n - 1) / addr.PageSize
			pages.add(first, last-first+1)
			return nil
		})
		if err == nil {
			err = r.stillWhole() // beyond its end there is no data either
		}
		if err != nil {
			return nil, err
		}
	}
	start := uint64(r.Slot())
	areas := []sys.Area{{Start: start, End: start + r.size, File: r.backing == BackingTemplate || r.backing == BackingFilePrivate}}
	switch r.backing {
	case BackingMemfd, BackingHugetlb, BackingFile:
		return &pages, nil
	case BackingForeign:
		var err error
		if areas, err = r.areasOf(r.host.slot); err != nil {
			return nil, err
		}
	}
	for _, a := range areas {
		lo, hi := max(a.Start, start), min(a.End, start+r.size)
		if r.host.file == nil && (a.Shared || a.File) {
			// The embedder's, and no way to tell: all of it is looked at.
			pages.add((lo-start)/addr.PageSize, (hi-lo)/addr.PageSize)
			continue
		}
		err := sys.EachPresent(uintptr(lo), hi-lo, func(off, n uint64) error {
			pages.add((lo+off-start)/addr.PageSize, n/addr.PageSize)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return &pages, nil
}

// copyPages copies pages of the region to the same place in dst, but for those
// that are zero. Both sides are touched by system calls only, which answer where
// a touch could be a SIGBUS.
func (r *Region) copyPages(dst []byte, pages *pageSet) (err error) {
	buf := make([]byte, 4*sectionBytes)
	runs := pageRuns{yield: func(first, n uint64) {
		for n > 0 && err == nil {
			k := min(n, uint64(len(buf))/addr.PageSize)
			err = r.copyRun(hostPages(dst, first, k), first, buf[:k*addr.PageSize])
			first, n = first+k, n-k
		}
	}}
	pages.each(runs.word)
	runs.flush()
	return err
}

func (r *Region) copyRun(dst []byte, first uint64, buf []byte) error {
	src := hostPages(r.host.slot, first, uint64(len(buf))/addr.PageSize)
	for done := 0; done < len(buf); {
		k, err := sys.CopyOut(buf[done:], src[done:])
		if err != nil {
			return fmt.Errorf("%w: %w", r.lost(first+uint64(done)/addr.PageSize), err)
		}
		done += k
	}
	for off := 0; off < len(buf); off += addr.PageSize {
		page := buf[off : off+addr.PageSize]
		if allZero(page) {
			continue
		}
		for done := 0; done < len(page); {
			k, err := sys.CopyIn(dst[off+done:], page[done:])
			if err != nil {
				return fmt.Errorf("%w: %w", ErrNoMemory, err)
			}
			done += k
		}
	}
	return nil
}
