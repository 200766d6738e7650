package guestmem

import (
	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// snapshotImage is a snapshot as what snapfile.Write writes.
type snapshotImage struct {
	*Snapshot
	since *Snapshot // nil: everything
}

// Image returns the snapshot as a full image, to be written by snapfile.Write while
// the guest runs on and pages are still being copied. The snapshot stays open until
// that has ended.
func (s *Snapshot) Image() snapfile.Image { return snapshotImage{s, nil} }

// ImageSince returns what has changed since an earlier snapshot of the same memory:
// the image of an increment to the file that was written of that one. Both
// stay open until it was written.
func (s *Snapshot) ImageSince(since *Snapshot) snapfile.Image { return snapshotImage{s, since} }

// Regions implements snapfile.Image.
func (i snapshotImage) Regions() []snapfile.Region {
	regions := i.Snapshot.Regions()
	list := make([]snapfile.Region, len(regions))
	for k, r := range regions {
		list[k] = snapfile.Region{Name: r.Name, Base: r.Base, Size: r.Size, PageSize: r.PageSize, ReadOnly: r.ReadOnly}
	}
	return list
}

// Data implements snapfile.Image.
func (i snapshotImage) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	if i.since != nil {
		return i.Changed(i.since, base, yield)
	}
	return i.Snapshot.Data(base, yield)
}
