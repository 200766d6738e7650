//go:build linux && amd64

package machine

import (
	"context"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// image is a snapshot as snapfile wants it: whole, or what was written since
// another.
type image struct {
	*guestmem.Snapshot
	since *guestmem.Snapshot
}

func (i image) Regions() []snapfile.Region {
	var out []snapfile.Region
	for _, r := range i.Snapshot.Regions() {
		out = append(out, snapfile.Region{Name: r.Name, Base: r.Base, Size: r.Size, PageSize: r.PageSize, ReadOnly: r.ReadOnly})
	}
	return out
}

func (i image) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	if i.since != nil {
		return i.Changed(i.since, base, yield)
	}
	return i.Snapshot.Data(base, yield)
}

// Write writes the guest to a file while it runs on. With a parent file, which was
// written of the snapshot since, it writes what was written after that.
func (s *Snapped) Write(ctx context.Context, path string, o snapfile.Options, since *Snapped) (snapfile.Info, error) {
	var err error
	if o.State, err = s.MarshalBinary(); err != nil {
		return snapfile.Info{}, err
	}
	i := image{Snapshot: s.Snapshot}
	if since != nil {
		i.since = since.Snapshot
	}
	return snapfile.Write(ctx, path, i, o)
}
