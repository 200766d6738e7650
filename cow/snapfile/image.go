package snapfile

import (
	"fmt"
	"strings"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A Region describes a range of guest-physical memory: [Base, Base+Size).
type Region struct {
	Name     string   `json:"name"`
	Base     addr.GPA `json:"base"`
	Size     uint64   `json:"size"`
	PageSize uint64   `json:"page_size"` // of the host pages behind it; what it is restored to may choose another
	ReadOnly bool     `json:"read_only,omitempty"`
}

func (r Region) String() string {
	return fmt.Sprintf("%s [%#x, %#x)", r.Name, uint64(r.Base), uint64(r.Base)+r.Size)
}

func (r Region) nPages() uint64 { return r.Size / addr.PageSize }

func (r Region) gpaOf(page uint64) addr.GPA { return r.Base + addr.GPA(page*addr.PageSize) }

// An Image is what is written: guest memory that holds still. Its methods are
// safe for concurrent use, and what they tell does not change.
type Image interface {
	// Regions returns the regions, in any order.
	Regions() []Region
	// Data calls yield for runs of 4 KiB pages of the region at base, in
	// ascending order and without overlaps, until it returns false. For a full
	// file those are all pages that may hold something else than zeroes; for an
	// increment, all that may differ from the parent. Pages that turn out to be
	// zero cost nothing in the file, or an entry for each run in an increment.
	Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error
	// ReadAt fills p, which is whole pages of one run, from gpa on. Fewer
	// bytes are an error.
	ReadAt(p []byte, gpa addr.GPA) (int, error)
}

// checkRegions refuses what the format cannot hold. It expects the regions in
// ascending order.
func checkRegions(regions []Region) error {
	if len(regions) > MaxRegions {
		return limitf("%d regions, of at most %d", len(regions), MaxRegions)
	}
	var end, total uint64
	for i, r := range regions {
		switch base := uint64(r.Base); {
		case r.Size == 0 || r.Size%addr.PageSize != 0 || base%addr.PageSize != 0:
			return regionsf("%v is not of whole pages", r)
		case r.Size > MaxGuest || base > MaxGuest-r.Size:
			return limitf("%v ends above %#x", r, uint64(MaxGuest))
		case i > 0 && base < end:
			return regionsf("%v overlaps %v", r, regions[i-1])
		case len(r.Name) > MaxName:
			return limitf("the name of %v has %d bytes, of at most %d", r, len(r.Name), MaxName)
		case strings.ContainsRune(r.Name, 0):
			return regionsf("the name of %v has a zero byte in it", r)
		case r.PageSize < addr.PageSize || r.PageSize&(r.PageSize-1) != 0 || r.PageSize > MaxGuest:
			return regionsf("%v is of pages of %d bytes", r, r.PageSize)
		}
		end = uint64(r.Base) + r.Size
		total += r.Size // below MaxGuest, since they do not overlap
	}
	return nil
}
