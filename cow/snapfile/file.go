package snapfile

import (
	"errors"
	"os"
	"slices"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// File is an open snapshot file with its parents. Its methods are safe for
// concurrent use.
type File struct {
	path  string
	src   source
	h     *header
	id    ID
	state []byte
	codec Codec // nil: none
	*tables
	parent *File  // nil: it is full
	cache  *cache // of the whole chain
	closed atomic.Bool
} // immutable but for closed

// Path returns the path by which it was opened.
func (f *File) Path() string { return f.path }

// ID returns its identity.
func (f *File) ID() ID { return f.id }

// Regions returns the regions in ascending order.
func (f *File) Regions() []Region { return f.tables.Regions() }

// State returns what Options.State was.
func (f *File) State() []byte { return slices.Clone(f.state) }

// Parent returns the file that this is an increment to, or nil. It belongs to this
// one, and is closed with it.
func (f *File) Parent() *File { return f.parent }

// Info describes the file and its parents.
func (f *File) Info() Info {
	info := describe(f.path, f.id, f.h, f.tables)
	if f.parent != nil {
		parent := f.parent.Info()
		info.Parent = &parent
	}
	return info
}

// Raw returns where in which file the region at base lies as it is in memory, from
// its first byte to its last: what backs a MAP_PRIVATE mapping. The descriptor
// is borrowed, and open for reading. It returns false but for raw files.
//
// What is mapped is not checked: Verify before that.
func (f *File) Raw(base addr.GPA) (file *os.File, offset int64, ok bool) {
	i, err := f.at(base)
	if err != nil || !f.h.raw() || f.src.file() == nil || f.closed.Load() {
		return nil, 0, false
	}
	return f.src.file(), int64(f.regions[i].rawOff), true
}

// Close closes the file and its parents. Calls that are under way fail with
// ErrClosed, or end as if it came later. It may be called again.
func (f *File) Close() error {
	if f.closed.Swap(true) {
		return nil
	}
	errs := []error{f.src.close()}
	if f.parent != nil {
		errs = append(errs, f.parent.Close())
	}
	return errors.Join(errs...)
}

// layer is a run of pages of a region, as the newest file of a chain that knows of
// it has it: part of an extent, or known to be zero if there is none.
type layer struct {
	span
	file   *File
	extent *extent
}

// eachLayer calls fn for the runs that [first, first+n) of a region is made of, in
// ascending order. Regions are the same along a chain.
func (f *File) eachLayer(region int, s span, fn func(layer) error) error {
	t := &f.regions[region]
	for i := t.from(s.first); s.n > 0; i++ {
		gap := s.n
		var e *extent
		if i < len(t.extents) {
			e = &t.extents[i]
			gap = min(gap, max(e.first, s.first)-s.first)
		}
		if gap > 0 {
			if err := f.below(region, span{s.first, gap}, fn); err != nil {
				return err
			}
			s.first, s.n = s.first+gap, s.n-gap
		}
		if s.n == 0 {
			return nil
		}
		n := min(s.n, e.end()-s.first)
		l := layer{span{s.first, n}, f, e}
		if e.chunk == zeroes {
			l.extent = nil
		}
		if err := fn(l); err != nil {
			return err
		}
		s.first, s.n = s.first+n, s.n-n
	}
	return nil
}

// below is eachLayer of what this file has nothing of.
func (f *File) below(region int, s span, fn func(layer) error) error {
	if f.parent == nil {
		return fn(layer{s, f, nil})
	}
	return f.parent.eachLayer(region, s, fn)
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// ZeroRanges calls yield for the runs of 4 KiB pages of the region at base that no
// file of the chain has data for, which are zero; in ascending order, until it
// returns false.
//
// Errors: ErrRegions.
func (f *File) ZeroRanges(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	region, err := f.at(base)
	if err != nil {
		return fileError("read", f.path, err)
	}
	r := &f.regions[region]
	var run span
	flush := func() error {
		if run.n > 0 && !yield(r.gpaOf(run.first), run.n) {
			return errStop
		}
		return nil
	}
	err = f.eachLayer(region, span{0, r.nPages()}, func(l layer) error {
		if l.extent != nil {
			return nil
		}
		if run.n > 0 && run.end() == l.first {
			run.n += l.n
			return nil
		}
		err := flush()
		run = l.span
		return err
	})
	if err == nil {
		err = flush()
	}
	if err == errStop {
		return nil
	}
	return err
}
