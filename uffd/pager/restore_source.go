package pager

import (
	"context"
	"fmt"
	"sort"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
)

// A fileSource is a snapshot file as a Source for all of its regions: the
// offset of a page is its guest-physical address, so that errors, working sets
// and the guest speak of the same numbers. What is in no region is asked for by
// nobody.
type fileSource struct {
	file    *snapfile.File
	regions []snapfile.Region // sorted by Base
	sources []*snapfile.RegionSource
	size    uint64
}

func newFileSource(f *snapfile.File) (*fileSource, error) {
	s := &fileSource{file: f, regions: f.Regions()}
	sort.Slice(s.regions, func(i, k int) bool { return s.regions[i].Base < s.regions[k].Base })
	for _, r := range s.regions {
		src, err := f.Source(r.Base)
		if err != nil {
			return nil, err
		}
		s.sources = append(s.sources, src)
		s.size = max(s.size, uint64(r.Base)+r.Size)
	}
	return s, nil
}

// at returns the source that has [off, off+n), and where its region begins.
func (s *fileSource) at(off, n uint64) (*snapfile.RegionSource, uint64, error) {
	i := sort.Search(len(s.regions), func(i int) bool { return uint64(s.regions[i].Base) > off })
	if i > 0 {
		r := s.regions[i-1]
		if skip := off - uint64(r.Base); skip < r.Size && n <= r.Size-skip {
			return s.sources[i-1], uint64(r.Base), nil
		}
	}
	return nil, 0, fmt.Errorf("%w: [%#x, +%#x) is in no region of %s", ErrBeyondSource, off, n, s.file.Path())
}

func (s *fileSource) ReadPages(ctx context.Context, p []byte, off uint64) error {
	src, base, err := s.at(off, uint64(len(p)))
	if err != nil {
		return err
	}
	return src.ReadPages(ctx, p, off-base)
}

// TryReadPages implements TryReader.
func (s *fileSource) TryReadPages(p []byte, off uint64) error {
	src, base, err := s.at(off, uint64(len(p)))
	if err != nil {
		return err
	}
	return src.TryReadPages(p, off-base)
}

func (s *fileSource) Size() uint64 { return s.size }

// ZeroRanges implements ZeroRanger.
func (s *fileSource) ZeroRanges(yield func(off, length uint64) bool) error {
	for i, src := range s.sources {
		goOn := true
		err := src.ZeroRanges(func(off, length uint64) bool {
			goOn = yield(uint64(s.regions[i].Base)+off, length)
			return goOn
		})
		if err != nil || !goOn {
			return err
		}
	}
	return nil
}

// backingOf returns what a region of the file is made of where nobody says so.
func backingOf(r snapfile.Region) guestmem.Backing {
	if r.PageSize == hugePage && r.Size%hugePage == 0 && uint64(r.Base)%hugePage == 0 {
		return guestmem.BackingHugetlb
	}
	return guestmem.BackingMemfd
}
