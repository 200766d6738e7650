package guestmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// Discard gives [gpa, gpa+size) back to the host, as a balloon does: the memory
// reads as zero after, to Go code and to vCPUs, and counts dirty. Accesses that
// were under way have ended when it returns or come after. The range lies in one
// region, in whole pages of it.
//
// How: a hole is punched in what is mapped shared (of BackingFile this is the
// file's own data); private zeroes are thrown away; where a file or template would show
// through a private mapping, zeroes are mapped over it, or stored where the
// process has no mapping left, or the kernel no memory for one: then nothing is
// given back.
//
// Errors: a *RegionError over ErrNoRegion, ErrReadOnly, ErrInvalid (not whole
// pages), ErrBus where the embedder has unmapped what he gave, ErrBusy where a slice of the range is held or address spaces are made of
// the region, ErrNoMemory; the errno of fallocate or madvise. Nothing has
// changed then, but where the host failed midway, which may have zeroed part: those
// pages count dirty. That of a Remover, with nothing changed.
// Linux 3.5 (fallocate on tmpfs; see madvise(2) for the rest).
func (m *Memory) Discard(gpa addr.GPA, size uint64) error {
	const op = "discard"
	m.layout.Lock() // no removal meanwhile
	defer m.layout.Unlock()
	r, ok := m.RegionAt(gpa)
	var err error
	switch {
	case !ok && m.isClosed():
		err = ErrClosed
	case !ok:
		err = ErrNoRegion
	case size == 0 || uint64(gpa-r.base)%r.pageSize != 0 || size%r.pageSize != 0:
		err = fmt.Errorf("not whole pages of %#x bytes: %w", r.pageSize, ErrInvalid)
	case size > uint64(r.End()-gpa):
		err = fmt.Errorf("goes past the region %v: %w", r, ErrNoRegion)
	case r.readOnly:
		err = fmt.Errorf("region %v: %w", r, ErrReadOnly)
	case r.pooled:
		err = fmt.Errorf("address spaces are made of the region %v: %w", r, ErrBusy)
	default:
		first, n := r.pageOf(gpa), size/addr.PageSize
		if err = m.beforeLoss(r, first, n); err != nil {
			break
		}
		err = r.withdraw(first, n, func() error { return r.discard(first, n) })
	}
	if err != nil {
		return regionError(op, gpa, size, err)
	}
	return nil
}

// discard gives pages back that no Go code touches.
//
// Preconditions: pop is held for writing.
func (r *Region) discard(first, n uint64) error {
	if err := r.forget(first, n); err != nil {
		return err
	}
	err := r.dropHost(first, n)
	// Its content has changed, by no store that anybody was told of; where the host
	// failed midway, that of a part.
	r.dirty.add(first, n)
	return hostShort(err)
}

// forget has the fault server, if there is one, bring pages no more (R9). It comes
// before the pages go, and has to:
//
//	discard                         vCPU                     fault server
//	hole is punched
//	                                faults on the page
//	                                                         not removed: installs the image
//	Remove: too late
//
// With Remove first, an install that was under way has ended, and the hole takes
// it away again; one that begins later finds the page removed, and is one of
// zeroes. The region's own states come between the two: a fetch that is about to
// say "present" loses against them (R11).
//
// Where the host then fails to drop the pages, those of them that were never
// brought stay removed: their content is gone, and the error says so.
func (r *Region) forget(first, n uint64) error {
	s := r.server.Load()
	if s == nil {
		return nil
	}
	if rm, ok := s.FaultServer.(Remover); ok {
		if err := rm.Remove(r, first, n); err != nil {
			return fmt.Errorf("the fault server: %w", err)
		}
	}
	for page := first; page < first+n; page++ {
		r.states.Remove(page)
	}
	return nil
}

func (r *Region) dropHost(first, n uint64) error {
	b := hostPages(r.host.slot, first, n)
	switch r.backing {
	case BackingMemfd, BackingHugetlb:
		return sys.PunchHole(r.host.file, first*addr.PageSize, n*addr.PageSize)
	case BackingAnonymous:
		return sys.Drop(b)
	case BackingFile:
		return r.zeroFile(first, n)
	case BackingForeign:
		return r.dropForeign(b, first, n)
	}
	return r.zeroPrivate(b)
}

// zeroFile punches a hole in a file, or has zeroes written where its file system
// has no holes.
func (r *Region) zeroFile(first, n uint64) error {
	off := r.host.offset + first*addr.PageSize
	err := sys.PunchHole(r.host.file, off, n*addr.PageSize)
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	zero := make([]byte, min(sectionBytes, n*addr.PageSize))
	for end := off + n*addr.PageSize; off < end; off += uint64(len(zero)) {
		zero = zero[:min(uint64(len(zero)), end-off)]
		if _, err := r.host.file.WriteAt(zero, int64(off)); err != nil {
			return err
		}
	}
	return nil
}

// dropForeign gives back memory of a mapping that is not ours to replace.
func (r *Region) dropForeign(b []byte, first, n uint64) error {
	if r.host.file != nil {
		return r.zeroFile(first, n)
	}
	start := uint64(hvaOf(b))
	areas, err := r.areasOf(b)
	if err != nil {
		return err
	}
	for _, a := range areas {
		lo, hi := max(a.Start, start), min(a.End, start+uint64(len(b)))
		part := b[lo-start : hi-start]
		switch {
		case a.Shared:
			err = sys.Remove(part)
		case !a.File:
			err = sys.Drop(part)
		default:
			err = r.storeZeroes(part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// zeroPrivate has a private mapping of a file read as zeroes. MADV_DONTNEED would
// bring the file's bytes back. The address stays the same, and KVM hears of the
// replacement by the kernel's notifier; a userfaultfd would not go on
// watching the range, so where there is one zeroes are stored instead.
func (r *Region) zeroPrivate(b []byte) error {
	err := error(syscall.ENOMEM)
	if !r.intercepted && r.server.Load() == nil && r.watched.Load() == 0 {
		err = sys.ZeroOver(b)
	}
	if errors.Is(err, syscall.ENOMEM) {
		err = r.storeZeroes(b)
	}
	return err
}

func (r *Region) storeZeroes(b []byte) error {
	zero := make([]byte, min(sectionBytes, len(b)))
	for len(b) > 0 {
		k, err := sys.CopyIn(b, zero[:min(len(zero), len(b))])
		if err != nil {
			return err
		}
		b = b[k:]
	}
	return nil
}
