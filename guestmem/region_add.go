package guestmem

import (
	"errors"
	"fmt"
	"io"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// AddRegion maps a region and makes it part of the memory. Whoever attached a
// listener hears of it before anybody can find it. Readers of other regions are
// not waited for and do not wait.
//
// Errors, with nothing changed: ErrInvalid (unaligned, too large, mismatched
// options); ErrExists where it overlaps a region, naming both; ErrNoSpace beyond
// MaxRegions; ErrBus for a file shorter than the region; ErrDenied for a file
// or mapping that may not be written; ErrNotMapped for a foreign mapping with
// holes; ErrNoMemory where the host is short of memory, huge pages or mappings;
// ErrClosed; that of a listener or of Fill; the errno of mmap, memfd_create,
// madvise or mbind. Linux 3.17; 5.14 for regions that are mapped once.
func (m *Memory) AddRegion(o RegionOptions) (*Region, error) {
	const op = "add region"
	if err := o.check(); err != nil {
		return nil, regionError(op, o.Base, o.Size, err)
	}
	if o.Name == "" {
		o.Name = "guestmm " + o.Backing.String()
	}
	m.layout.Lock()
	defer m.layout.Unlock()
	if err := m.roomFor(o.Base, o.Size); err != nil {
		return nil, regionError(op, o.Base, o.Size, err)
	}
	host, err := openHost(&o)
	if err != nil {
		// Before anything is made in the heap that grows with a size nobody has.
		m.leftOver = append(m.leftOver, &host)
		return nil, regionError(op, o.Base, o.Size, errors.Join(err, m.closeLeftOver()))
	}
	r := newRegion(m, &o, host)
	err = hostShort(r.furnish(&o))
	t := m.table().with(r)
	if err == nil {
		err = m.tellListeners(t, m.table())
	}
	if err != nil {
		return nil, regionError(op, o.Base, o.Size, errors.Join(err, m.retire(r)))
	}
	m.publish(t)
	return r, nil
}

// roomFor says whether a region may be added at a place.
func (m *Memory) roomFor(base addr.GPA, size uint64) error {
	if m.isClosed() {
		return ErrClosed
	}
	t := m.table()
	if len(t) >= MaxRegions {
		return fmt.Errorf("there are %d regions of at most %d: %w", len(t), MaxRegions, ErrNoSpace)
	}
	if other := t.overlapping(base, size); other != nil {
		return fmt.Errorf("overlaps the region %v: %w", other, ErrExists)
	}
	return nil
}

func newRegion(m *Memory, o *RegionOptions, host hostMemory) *Region {
	r := &Region{
		mem: m, base: o.Base, size: o.Size, pageSize: addr.PageSize, name: o.Name, backing: o.Backing,
		readOnly: o.Access == RegionReadOnly, advice: o.HugePages, numa: o.NUMA, host: host,
		guarded: o.Backing == BackingFile || o.Backing == BackingFilePrivate || o.Backing == BackingForeign,
	}
	if o.Backing == BackingHugetlb {
		r.pageSize = hugePageSize
	}
	r.init()
	return r
}

// furnish gives advice, fills and populates a region that nobody knows yet.
func (r *Region) furnish(o *RegionOptions) error {
	if err := r.host.advise(o); err != nil {
		return err
	}
	if o.Populate == PopulateNow {
		access := Write
		if r.readOnly && o.Backing == BackingFile {
			access = Read
		}
		if err := r.populate(0, r.nPages(), access); err != nil {
			return err
		}
	}
	if o.Fill == nil {
		return nil
	}
	if err := o.Fill(filler{r}); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	return nil
}

// filler stores to a region that nobody else knows yet.
type filler struct{ r *Region }

// WriteAt implements io.WriterAt.
func (f filler) WriteAt(p []byte, off int64) (done int, err error) {
	r := f.r
	if off < 0 || uint64(off) > r.size {
		return 0, fmt.Errorf("offset %#x of a region of %#x bytes: %w", off, r.size, ErrInvalid)
	}
	if room := r.size - uint64(off); uint64(len(p)) > room {
		p, err = p[:room], io.ErrShortWrite
	}
	for done < len(p) {
		at := uint64(off) + uint64(done)
		n := min(uint64(len(p)-done), sectionBytes)
		first, last := at/addr.PageSize, (at+n-1)/addr.PageSize
		if err := r.populate(first, last-first+1, Write); err != nil {
			return done, err
		}
		k, ok := r.copyBytes(r.look[at:at+n], p[done:done+int(n)])
		done += k
		if !ok {
			return done, r.lost(at / addr.PageSize)
		}
		r.dirty.add(first, last-first+1)
	}
	return done, err
}

// RemoveRegion takes a region out of the memory: nobody finds it from then on,
// accesses that had found it have ended, listeners have heard, and what it was
// made of is unmapped. Accesses of other regions do not wait.
//
// Errors, with nothing changed: ErrBusy if Slices of it are held, objects show it (NewDeviceObject), an open
// snapshot still lacks pages of it (Snapshot.Sweep gets them) or it is the pool's; ErrInvalid if it is not part of this memory; that of a listener. The
// errno of munmap or close, and the region is removed: Close tries again.
func (m *Memory) RemoveRegion(r *Region) error {
	const op = "remove region"
	m.layout.Lock()
	defer m.layout.Unlock()
	t := m.table()
	if r == nil || !t.has(r) {
		return regionError(op, 0, 0, fmt.Errorf("not a region of this memory: %w", ErrInvalid))
	}
	if r.pooled {
		return regionError(op, r.base, r.size, fmt.Errorf("address spaces are made of it: %w", ErrBusy))
	}
	if n := r.devices.Load(); n > 0 {
		return regionError(op, r.base, r.size, fmt.Errorf("%d objects show it: %w", n, ErrBusy))
	}
	if err := m.snaps.needed(r); err != nil {
		return regionError(op, r.base, r.size, err)
	}
	if err := r.pins.shut(); err != nil {
		return regionError(op, r.base, r.size, err)
	}
	// The sections that the grace period waits for are those that may have
	// found the region in the table before; who comes later does not find it
	// (R1). Only then may its mapping go.
	m.publish(t.without(r))
	m.domain.BarrierAll()
	if err := m.tellListeners(t.without(r), t); err != nil {
		m.publish(t)
		r.pins.reopen()
		return regionError(op, r.base, r.size, err)
	}
	m.unwatch(r)
	if err := m.retire(r); err != nil {
		return regionError(op, r.base, r.size, err)
	}
	return nil
}

// end says that the region is gone, once those have ended who had found it and
// populate or copy by system call.
func (r *Region) end() {
	r.pop.Lock()
	defer r.pop.Unlock()
	r.gone = true
}
