package guestmem

import (
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// WriteTracker is a dirty source that has the kernel note every store through a
// region's slot, whoever makes it: vCPUs, and also vhost and other devices that
// use the mapping, of which KVM's dirty log and ring know nothing. Each page is
// write-protected; at the first store the kernel itself lifts that and goes on,
// and a scan of the page table finds what is not protected any more. Nobody parks:
// no thread, and no Go code (R10).
//
//	store ──► protected ──► kernel: unprotect ──► goes on
//	harvest: PAGEMAP_SCAN ──► what is unprotected, protected again in the same instant
//
// It knows pages of the size that the region has: of huge pages 2 MiB at a time.
//
// A mapping can have one userfaultfd. So it goes with neither a fault server nor a
// live snapshot of the same memory, and whoever is second is refused: ErrBusy.
//
// Safe for concurrent use. userfaultfd(2), PAGEMAP_SCAN in
// Documentation/admin-guide/mm/pagemap.rst; Linux 6.7.
type WriteTracker struct {
	m *Memory

	mu     sync.Mutex // outside of it: Memory.layout, Region.harvest; inside: nothing
	fd     *uffd.FD
	pages  *uffd.Pagemap
	known  map[*Region]tracking // regions of the memory; nil after Close
	closed bool
}

// tracking says what is known of a region.
type tracking uint8

const (
	// trackLost: it is not protected, or a harvest was lost on the way. All of it
	// counts as stored to, once it has been protected.
	trackLost tracking = iota
	// trackArmed: what was stored to is not protected.
	trackArmed
)

// TrackWrites begins to track the stores to all regions, and attaches the tracker
// as a source of CollectDirty. Stores that had begun before it returns may be
// missed. A region that is added later counts as stored to, all of it, in its first
// harvest: a vCPU may be faster than the protection. So does one whose mapping
// was replaced.
//
// It protects all memory, which takes some milliseconds for each GiB of it that is
// there, and page tables for what is not: 2 MiB for each GiB.
//
// Errors: ErrBusy (a fault server or a live snapshot has a region's mapping);
// ErrNotSupported before Linux 6.7; ErrClosed; those of userfaultfd(2), such as EPERM.
func (m *Memory) TrackWrites() (*WriteTracker, error) {
	const op = "track writes"
	pages, err := uffd.OpenPagemap(0)
	if err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	fd, err := uffd.Open(uffd.Options{
		Required: uffd.FeatureFaultWP | uffd.FeatureWPAsync | uffd.FeatureWPUnpopulated | uffd.FeatureWPHugetlbShmem,
	})
	if err != nil {
		return nil, opError(op, addr.Range{}, errors.Join(err, pages.Close()))
	}
	t := &WriteTracker{m: m, fd: fd, pages: pages, known: make(map[*Region]tracking)}
	err = m.AttachListener(t)
	if err == nil {
		err = t.begin()
	}
	if err == nil {
		err = m.AttachDirtySource(t)
	}
	if err != nil {
		return nil, opError(op, addr.Range{}, errors.Join(err, t.Close()))
	}
	return t, nil
}

// begin protects everything, and takes what was stored to before for known.
func (t *WriteTracker) begin() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for r := range t.known {
		if err := t.armLocked(r); err != nil {
			return err
		}
		t.known[r] = trackArmed
	}
	return nil
}

// UpdateRegions implements RegionListener: what comes is registered, so that who
// cannot be tracked is refused at once, and what goes is forgotten before it is
// unmapped.
func (t *WriteTracker) UpdateRegions(regions []*Region) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	next := make(map[*Region]tracking, len(regions))
	var added []*Region
	for _, r := range regions {
		state, has := t.known[r]
		if !has {
			if err := t.registerLocked(r); err != nil {
				for _, a := range added {
					err = errors.Join(err, t.fd.Unregister(a.Slot(), a.Size()))
				}
				return err
			}
			added = append(added, r)
		}
		next[r] = state
	}
	for r := range t.known {
		if _, stays := next[r]; !stays {
			// A mapping that is about to go takes its registration along; an
			// embedder's own one stays.
			_ = t.fd.Unregister(r.Slot(), r.Size())
		}
	}
	t.known = next
	return nil
}

func (t *WriteTracker) registerLocked(r *Region) error {
	_, err := t.fd.Register(r.Slot(), r.Size(), uffd.WP)
	if errors.Is(err, syscall.EBUSY) {
		err = fmt.Errorf("another userfaultfd has the mapping, of a fault server or a live snapshot: %w: %w", ErrBusy, err)
	}
	if err != nil {
		_ = t.fd.Unregister(r.Slot(), r.Size()) // what of it was registered
		return regionError("track writes", r.base, r.size, err)
	}
	return nil
}

func (t *WriteTracker) armLocked(r *Region) error {
	err := t.fd.WriteProtect(r.Slot(), r.Size(), uffd.Armed)
	if err != nil {
		err = regionError("track writes", r.base, r.size, err)
	}
	return err
}

// CollectDirty implements DirtySource.
func (t *WriteTracker) CollectDirty(r *Region, bitmap []uint64) error {
	return t.CollectDirtyPages(r, func(first, n uint64) {
		for page := first; page < first+n; page++ {
			bitmap[page/64] |= 1 << (page % 64)
		}
	})
}

// CollectDirtyPages implements SparseDirtySource. It costs a look at the page
// table of the region, and what is dirty.
//
// Errors: ErrClosed; those of PAGEMAP_SCAN and of protecting again. After one, all
// of the region is in the next harvest.
func (t *WriteTracker) CollectDirtyPages(r *Region, add func(first, n uint64)) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return regionError("collect dirty", r.base, r.size, ErrClosed)
	}
	state, has := t.known[r]
	if !has {
		return nil // it has gone
	}
	if state == trackArmed {
		base := r.Slot()
		err := t.pages.Scan(base, base+addr.HVA(r.Size()), uffd.Written(), func(run uffd.Run) {
			add(uint64(run.Start-base)/addr.PageSize, uint64(run.End-run.Start)/addr.PageSize)
		})
		if err == nil {
			return nil
		}
		// Some pages may have been protected again and not been told.
		t.known[r] = trackLost
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOENT) {
			return regionError("collect dirty", r.base, r.size, err)
		}
	}
	// It is new, or something else was mapped in its place, which takes the
	// registration away: register what is not, and begin anew.
	if err := t.registerLocked(r); err != nil {
		return err
	}
	if err := t.armLocked(r); err != nil {
		return err
	}
	t.known[r] = trackArmed
	add(0, r.nPages())
	return nil
}

// Close ends the tracking. What was not harvested is lost. It may be called again.
//
// Errors: that of closing the descriptors.
func (t *WriteTracker) Close() error {
	t.m.DetachDirtySource(t)
	t.m.DetachListener(t)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	var errs []error
	for r := range t.known {
		// Closing alone would do, but for who duplicated the descriptor by forking.
		_ = t.fd.Unregister(r.Slot(), r.Size())
	}
	t.known = nil
	errs = append(errs, t.fd.Close(), t.pages.Close())
	return errors.Join(errs...)
}
