package pager

import (
	"cmp"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// A Region is a range of a guest's memory, in the addresses of the process
// that it belongs to, and where its image is.
type Region struct {
	// Start and Size are multiples of PageSize.
	Start addr.HVA
	Size  uint64
	// Offset of the first byte in the image, a multiple of PageSize.
	Offset uint64
	// PageSize is 4096 (or 0, which means that) or 2 MiB for hugetlb memory.
	PageSize uint64
	// Mode is how pages get there: ModeCopy or ModeContinue. A region of
	// ModeFile takes no faults and is not given to a pager.
	Mode Mode
	// Cache holds the pages for ModeContinue: the region is a MAP_PRIVATE
	// mapping of its file at Offset, registered for Missing and Minor.
	Cache *Cache
	// Arming says whether pages are installed armed. The region is registered
	// for WP too.
	Arming Arming
	// Of is the region of a guestmem.Memory of this process whose slot mapping
	// this is, from its first page on. Its own page states follow what is
	// installed, and Guest.FaultServer is for it.
	Of *guestmem.Region
}

// Arming says whether the first write to a page is to be told.
type Arming uint8

const (
	// NotArmed installs pages writable.
	NotArmed Arming = iota
	// ArmInstalled installs every page write-protected from its first instant
	// on, pages of zeroes too. GuestOptions.OnWrite hears of the writes.
	ArmInstalled
	// ArmForSnapshots arms what live snapshots of the Memory that the region is Of
	// want armed, pages that are installed meanwhile among them, and hands writes
	// to armed pages over to them. The region is registered for WP too.
	ArmForSnapshots
)

const (
	smallPage = addr.PageSize
	hugePage  = 2 << 20
	// maxRegions bounds what a hostile list can make us allocate.
	maxRegions = 1 << 16
	// maxPages is 8 TiB of small pages; states take half a byte each.
	maxPages = 1 << 31
	// maxTimes is how often an image may be shown on average. Once is usual;
	// without a bound many regions could all show the same large file, and
	// their states would be larger than any of them.
	maxTimes = 4
)

// MaxRegions is how many regions one guest may have.
const MaxRegions = maxRegions

func (r Region) String() string {
	return fmt.Sprintf("[%#x, %#x) from %#x", uint64(r.Start), uint64(r.Start)+r.Size, r.Offset)
}

// checkRegions returns the regions in order of their addresses, with defaults
// filled in. imageSize is that of the source of ModeCopy regions.
//
// Errors: ErrInvalid, ErrOverlap, ErrBeyondSource, each naming the region.
func checkRegions(in []Region, imageSize uint64) ([]Region, error) {
	if len(in) == 0 || len(in) > maxRegions {
		return nil, fmt.Errorf("%w: %d regions, want 1 to %d", ErrInvalid, len(in), maxRegions)
	}
	out := slices.Clone(in)
	total, shown := uint64(0), uint64(0)
	for i := range out {
		r := &out[i]
		if r.PageSize == 0 {
			r.PageSize = smallPage
		}
		if err := r.check(imageSize); err != nil {
			return nil, fmt.Errorf("region %d %v: %w", i, *r, err)
		}
		if total += r.Size / r.PageSize; total > maxPages {
			return nil, fmt.Errorf("%w: more than %d pages", ErrInvalid, uint64(maxPages))
		}
		if r.Mode == ModeCopy {
			shown += r.Size // no overflow: total bounds it
		}
		if shown/maxTimes > imageSize {
			return nil, fmt.Errorf("%w: regions of %#x bytes show an image of %#x", ErrInvalid, shown, imageSize)
		}
	}
	slices.SortFunc(out, func(a, b Region) int { return cmp.Compare(a.Start, b.Start) })
	for i := range out[1:] {
		if a, b := out[i], out[i+1]; uint64(b.Start) < uint64(a.Start)+a.Size {
			return nil, fmt.Errorf("%w: %v and %v", ErrOverlap, a, b)
		}
	}
	return out, nil
}

func (r *Region) check(imageSize uint64) error {
	switch {
	case r.PageSize != smallPage && r.PageSize != hugePage:
		return fmt.Errorf("%w: page size %d, want %d or %d", ErrInvalid, r.PageSize, smallPage, hugePage)
	case r.Size == 0 || (uint64(r.Start)|r.Size|r.Offset)%r.PageSize != 0:
		return fmt.Errorf("%w: empty, or not of whole pages of %d bytes", ErrInvalid, r.PageSize)
	case r.Start == 0, uint64(r.Start)+r.Size < uint64(r.Start):
		return fmt.Errorf("%w: addresses overflow", ErrInvalid)
	case r.Offset+r.Size < r.Offset:
		return fmt.Errorf("%w: offset overflows", ErrInvalid)
	case r.Arming > ArmForSnapshots:
		return fmt.Errorf("%w: arming %d", ErrInvalid, r.Arming)
	case r.Arming == ArmForSnapshots && r.Of == nil:
		return fmt.Errorf("%w: armed for snapshots of no memory", ErrInvalid)
	case r.Of != nil && (r.Start != r.Of.Slot() || r.Size > r.Of.Size()):
		return fmt.Errorf("%w: not the slot of region %v", ErrInvalid, r.Of)
	}
	switch r.Mode {
	case ModeCopy:
		if r.Cache != nil {
			return fmt.Errorf("%w: %v with a cache", ErrInvalid, r.Mode)
		}
	case ModeContinue:
		if r.Cache == nil || r.PageSize != smallPage {
			return fmt.Errorf("%w: %v needs a cache, and pages of %d bytes", ErrInvalid, r.Mode, smallPage)
		}
		imageSize = r.Cache.Size()
	default:
		return fmt.Errorf("%w: a pager does not serve %v", ErrInvalid, r.Mode)
	}
	if r.Offset+r.Size > imageSize {
		return fmt.Errorf("%w: ends at %#x of %#x", ErrBeyondSource, r.Offset+r.Size, imageSize)
	}
	return nil
}

// A region is a Region being served. It stays when its addresses move.
type region struct {
	Region               // Start is where it was at first
	released atomic.Bool // unregistered, and the Memory's own again
	index    int
	shift    uint // log2 of PageSize
	pages    *pages
}

func newRegion(r Region, index int) *region {
	out := &region{Region: r, index: index, shift: addr.PageShift}
	if r.PageSize == hugePage {
		out.shift = 21
	}
	out.pages = newPages(int(r.Size >> out.shift))
	if r.Arming == ArmForSnapshots {
		out.pages.lasting = armed
	}
	return out
}

// offset returns where page i is in the image.
func (r *region) offset(i int) uint64 { return r.Offset + uint64(i)<<r.shift }

// bytes returns the length of n pages.
func (r *region) bytes(n int) uint64 { return uint64(n) << r.shift }

// A span says that pages [first, first+n) of a region are at start.
type span struct {
	start addr.HVA
	r     *region
	first int
	n     int
}

func (s span) end() addr.HVA { return s.start + addr.HVA(s.r.bytes(s.n)) }

// cut returns what of the span lies in [from, to), rounded out to whole pages.
func (s span) cut(from, to addr.HVA) (span, bool) {
	from, to = max(from, s.start), min(to, s.end())
	if from >= to {
		return span{}, false
	}
	skip := int(uint64(from-s.start) >> s.r.shift)
	stop := int((uint64(to-s.start) + s.r.PageSize - 1) >> s.r.shift)
	return span{s.start + addr.HVA(s.r.bytes(skip)), s.r, s.first + skip, stop - skip}, true
}

// A layout says which pages are where: immutable, sorted by address, without
// overlaps. Layout events replace it.
type layout struct {
	spans []span
	// ofRegion has the spans of each region, by region.index, sorted by page.
	ofRegion [][]span
}

func newLayout(spans []span, nRegions int) *layout {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.start, b.start) })
	l := &layout{spans: spans, ofRegion: make([][]span, nRegions)}
	for _, s := range spans {
		l.ofRegion[s.r.index] = append(l.ofRegion[s.r.index], s)
	}
	for _, of := range l.ofRegion {
		slices.SortFunc(of, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	}
	return l
}

// find returns whose page an address is.
func (l *layout) find(a addr.HVA) (*region, int, bool) {
	lo := l.firstAfter(a)
	if lo == len(l.spans) || a < l.spans[lo].start {
		return nil, 0, false
	}
	s := &l.spans[lo]
	return s.r, s.first + int(uint64(a-s.start)>>s.r.shift), true
}

// firstAfter returns the first span that ends after a.
func (l *layout) firstAfter(a addr.HVA) int {
	lo, hi := 0, len(l.spans)
	for lo < hi {
		if mid := (lo + hi) / 2; l.spans[mid].end() <= a {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// locate returns where page i of r is and how many of the next limit pages
// follow it there. ok is false if it is nowhere any more.
func (l *layout) locate(r *region, i, limit int) (at addr.HVA, n int, ok bool) {
	of := l.ofRegion[r.index]
	lo, hi := 0, len(of)
	for lo < hi {
		if mid := (lo + hi) / 2; of[mid].first+of[mid].n <= i {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(of) || i < of[lo].first {
		return 0, 0, false
	}
	s := &of[lo]
	return s.start + addr.HVA(r.bytes(i-s.first)), min(limit, s.first+s.n-i), true
}

// within returns the parts of [from, to) that are somebody's.
func (l *layout) within(from, to addr.HVA) []span {
	var out []span
	for _, s := range l.spans[l.firstAfter(from):] {
		c, ok := s.cut(from, to)
		if !ok {
			break
		}
		out = append(out, c)
	}
	return out
}

// without returns the layout with nothing left in [from, to).
func (l *layout) without(from, to addr.HVA) *layout {
	var out []span
	for _, s := range l.spans {
		if _, ok := s.cut(from, to); !ok {
			out = append(out, s)
			continue
		}
		if c, ok := s.cut(s.start, from); ok && from > s.start {
			out = append(out, c)
		}
		if c, ok := s.cut(to, s.end()); ok && to < s.end() {
			out = append(out, c)
		}
	}
	return newLayout(out, len(l.ofRegion))
}

// moved returns the layout after length bytes have moved. What was at the
// destination is gone.
func (l *layout) moved(from, to addr.HVA, length uint64) *layout {
	taken := l.within(from, from+addr.HVA(length))
	out := l.without(from, from+addr.HVA(length)).without(to, to+addr.HVA(length)).spans
	out = slices.Clone(out)
	for _, s := range taken {
		s.start = s.start - from + to
		out = append(out, s)
	}
	return newLayout(out, len(l.ofRegion))
}
