package snapfile

import (
	"context"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// RegionSource is a region of a File as an image that begins at 0: what serves the
// page faults of a lazy restore reads it. It has the methods of pager.Source,
// pager.TryReader and pager.ZeroRanger, and is safe for concurrent use. It is
// good for as long as the File is open.
type RegionSource struct {
	f    *File
	base addr.GPA
	size uint64
}

// Source returns the region at base as an image.
//
// Errors: ErrRegions.
func (f *File) Source(base addr.GPA) (*RegionSource, error) {
	i, err := f.at(base)
	if err != nil {
		return nil, fileError("read", f.path, err)
	}
	return &RegionSource{f, base, f.regions[i].Size}, nil
}

// Size returns the length of the region.
func (s *RegionSource) Size() uint64 { return s.size }

// ReadPages is File.ReadPages from off on.
func (s *RegionSource) ReadPages(ctx context.Context, p []byte, off uint64) error {
	gpa, err := s.at(p, off)
	if err != nil {
		return err
	}
	return s.f.ReadPages(ctx, p, gpa)
}

// TryReadPages is ReadPages of what is zero, or was read and checked before.
// Anything else is ErrWouldBlock.
func (s *RegionSource) TryReadPages(p []byte, off uint64) error {
	gpa, err := s.at(p, off)
	if err != nil {
		return err
	}
	if err := s.f.tryReadPages(p, gpa); err != nil {
		clear(p)
		return err
	}
	return nil
}

func (s *RegionSource) at(p []byte, off uint64) (addr.GPA, error) {
	if off > s.size || uint64(len(p)) > s.size-off {
		return 0, fileError("read", s.f.path, regionsf("[%#x, +%#x) of a region of %#x bytes", off, len(p), s.size))
	}
	return s.base + addr.GPA(off), nil
}

// ZeroRanges is File.ZeroRanges in bytes.
func (s *RegionSource) ZeroRanges(yield func(off, length uint64) bool) error {
	return s.f.ZeroRanges(s.base, func(start addr.GPA, nPages uint64) bool {
		return yield(uint64(start-s.base), nPages*addr.PageSize)
	})
}
