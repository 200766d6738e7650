package pager

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Placement is how RestoreNow gets a file into memory.
type Placement uint8

const (
	// CopyIn reads all of it, checks it, and writes it to the regions.
	CopyIn Placement = iota
	// MapFile checks all of it, and then maps the file privately
	// (BackingFilePrivate): guests of the same file share its page cache. It is for
	// files that File.Raw can map. Whoever changes the file afterwards changes
	// what guests see of it; one that becomes shorter is ErrBus, to vCPUs a failed
	// Run.
	MapFile
)

// EagerOptions are those of RestoreNow.
type EagerOptions struct {
	Placement Placement
	// Backing says what each region is made of where it is copied to. Nil: as the
	// file says.
	Backing func(snapfile.Region) guestmem.Backing
	// Workers and Progress are those of snapfile.RestoreOptions.
	Workers  int
	Progress func(done, total uint64)
}

// RestoreNow gives a memory the regions of a snapshot file and what they hold. All
// of the file and of its parents was read and found to be right when it returns
// nil; the guest runs after that, not before. The memory has nothing where the
// regions go. The file is the caller's, and not needed afterwards.
//
// Errors, with no region left behind: those of File.Verify and of AddRegion;
// ErrInvalid, for MapFile where the file cannot be mapped too; ctx's.
func RestoreNow(ctx context.Context, m *guestmem.Memory, f *snapfile.File, o EagerOptions) error {
	var err error
	var regions []*guestmem.Region
	switch o.Placement {
	case CopyIn:
		regions, err = copyIn(ctx, m, f, &o)
	case MapFile:
		regions, err = mapFile(ctx, m, f, &o)
	default:
		err = fmt.Errorf("%w: placement %d", ErrInvalid, o.Placement)
	}
	if err != nil {
		return &Error{Op: "restore", Guest: f.Path(), Err: errors.Join(err, removeRegions(m, regions))}
	}
	return nil
}

// regionOptions are those of a region of a file.
func regionOptions(sr snapfile.Region, backing func(snapfile.Region) guestmem.Backing) guestmem.RegionOptions {
	o := guestmem.RegionOptions{Name: sr.Name, Base: sr.Base, Size: sr.Size, Backing: backingOf(sr)}
	if backing != nil {
		o.Backing = backing(sr)
	}
	if sr.ReadOnly {
		o.Access = guestmem.RegionReadOnly
	}
	return o
}

func copyIn(ctx context.Context, m *guestmem.Memory, f *snapfile.File, o *EagerOptions) (regions []*guestmem.Region, err error) {
	for _, sr := range f.Regions() {
		ro := regionOptions(sr, o.Backing)
		if sr.ReadOnly {
			// It is written to before anybody sees it, and never after.
			ro.Fill = func(w io.WriterAt) error { return fillFrom(ctx, w, f, sr) }
		}
		r, err := m.AddRegion(ro)
		if err != nil {
			return regions, err
		}
		regions = append(regions, r)
	}
	err = f.Restore(ctx, guestWriter{m}, snapfile.RestoreOptions{Workers: o.Workers, Progress: o.Progress})
	return regions, err
}

// guestWriter passes over what cannot be written any more.
type guestWriter struct{ m *guestmem.Memory }

func (w guestWriter) WriteAt(p []byte, gpa addr.GPA) (int, error) {
	if r, ok := w.m.RegionAt(gpa); ok && r.ReadOnly() {
		return len(p), nil
	}
	return w.m.WriteAt(p, gpa)
}

// fillFrom writes what a region holds that is not known to be zero.
func fillFrom(ctx context.Context, w io.WriterAt, f *snapfile.File, sr snapfile.Region) error {
	buf := make([]byte, runBytes)
	at, end := sr.Base, sr.Base+addr.GPA(sr.Size)
	var failed error
	upTo := func(stop addr.GPA) bool {
		for at < stop && failed == nil {
			p := buf[:min(uint64(stop-at), runBytes)]
			if failed = f.ReadPages(ctx, p, at); failed == nil {
				_, failed = w.WriteAt(p, int64(at-sr.Base))
			}
			at += addr.GPA(len(p))
		}
		return failed == nil
	}
	err := f.ZeroRanges(sr.Base, func(start addr.GPA, nPages uint64) bool {
		ok := upTo(start)
		at = start + addr.GPA(nPages*addr.PageSize)
		return ok
	})
	if err == nil {
		upTo(end)
	}
	return errors.Join(err, failed)
}

func mapFile(ctx context.Context, m *guestmem.Memory, f *snapfile.File, o *EagerOptions) (regions []*guestmem.Region, err error) {
	if err := f.Verify(ctx, o.Progress); err != nil {
		return nil, err
	}
	for _, sr := range f.Regions() {
		file, offset, ok := f.Raw(sr.Base)
		if !ok {
			return regions, fmt.Errorf("%w: region %v of %s cannot be mapped", ErrInvalid, sr, f.Path())
		}
		ro := regionOptions(sr, nil)
		ro.Backing, ro.File, ro.Offset = guestmem.BackingFilePrivate, file, uint64(offset)
		r, err := m.AddRegion(ro)
		if err != nil {
			return regions, err
		}
		regions = append(regions, r)
	}
	return regions, nil
}
