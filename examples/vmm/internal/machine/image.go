//go:build linux && amd64

package machine

import (
	"context"
	"fmt"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// Write writes the guest to a file while it runs on. With a parent file, which was
// written of the snapshot since, it writes what was written after that.
func (s *Snapped) Write(ctx context.Context, path string, o snapfile.Options, since *Snapped) (snapfile.Info, error) {
	img := s.Image()
	if since != nil {
		img = s.ImageSince(since.Snapshot)
	}
	return s.write(ctx, path, img, o)
}

func (s *Saved) write(ctx context.Context, path string, img snapfile.Image, o snapfile.Options) (snapfile.Info, error) {
	var err error
	if o.State, err = s.MarshalBinary(); err != nil {
		return snapfile.Info{}, err
	}
	return snapfile.Write(ctx, path, img, o)
}

// WritePaused writes the guest to a file while it stands still, and everything if
// there is no parent: else what the memory's dirty sources have seen since the last call,
// which wrote the parent. After an error that is lost, and the next file has to be a full
// one.
func (g *Guest) WritePaused(ctx context.Context, path string, o snapfile.Options) (info snapfile.Info, err error) {
	err = whole(ctx, func() error {
		g.VM.Pause()
		defer g.VM.Resume()
		s := Saved{Layout: g.Layout}
		if s.State, err = g.VM.Save(); err != nil {
			return err
		}
		// Who reads the ledgers stores to the guest.
		g.reading.Lock()
		defer g.reading.Unlock()
		img := &still{m: g.Memory, isFull: o.Parent == nil}
		if err := img.harvest(); err != nil {
			return err
		}
		info, err = s.write(ctx, path, img, o)
		return err
	})
	return info, err
}

// still is memory that nobody writes, and what was written before.
type still struct {
	m      *guestmem.Memory
	isFull bool
	dirty  map[addr.GPA][]pageRun // by the base of the region
}

type pageRun struct {
	start addr.GPA
	n     uint64
}

func (s *still) harvest() error {
	s.dirty = make(map[addr.GPA][]pageRun)
	for _, r := range s.m.Regions() {
		err := s.m.CollectDirty(r, func(start addr.GPA, n uint64) {
			s.dirty[r.Base()] = append(s.dirty[r.Base()], pageRun{start, n})
		})
		if err != nil {
			return fmt.Errorf("harvest of %v: %w", r, err)
		}
	}
	return nil
}

// Regions implements snapfile.Image.
func (s *still) Regions() []snapfile.Region {
	var out []snapfile.Region
	for _, r := range s.m.Regions() {
		out = append(out, snapfile.Region{Name: r.Name(), Base: r.Base(), Size: r.Size(), PageSize: r.PageSize(), ReadOnly: r.ReadOnly()})
	}
	return out
}

// Data implements snapfile.Image.
func (s *still) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	if s.isFull {
		r, ok := s.m.RegionAt(base)
		if !ok {
			return fmt.Errorf("no region at %v: %w", base, guestmem.ErrNoRegion)
		}
		yield(base, r.Size()/addr.PageSize)
		return nil
	}
	for _, run := range s.dirty[base] {
		if !yield(run.start, run.n) {
			break
		}
	}
	return nil
}

// ReadAt implements snapfile.Image.
func (s *still) ReadAt(p []byte, gpa addr.GPA) (int, error) { return s.m.ReadAt(p, gpa) }
