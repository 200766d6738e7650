//go:build linux && amd64

package kernel

import (
	"context"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
)

// filePages is the page cache of a file in /tmp that has been mapped: an object of the
// guest's memory, by which every read, write and truncation of the file goes.
type filePages struct {
	ctx context.Context
	obj *guestmem.Object
}

// newPages returns what makes one.
func (k *Kernel) newPages(name string) func(vfs.Raw, int64) (vfs.Pages, error) {
	return func(raw vfs.Raw, size int64) (vfs.Pages, error) {
		obj, err := k.Memory.NewObject(guestmem.ObjectOptions{
			Source: raw, Sink: raw, Size: size, Name: name, Released: raw.Release,
			Lost: func(err error) { k.say("%s: what programs stored to a mapping is lost: %v", name, err) },
		})
		if err != nil {
			return nil, err
		}
		return &filePages{k.ctx, obj}, nil
	}
}

func (p *filePages) ReadAt(b []byte, off int64) (int, error)  { return p.obj.ReadAt(p.ctx, b, off) }
func (p *filePages) WriteAt(b []byte, off int64) (int, error) { return p.obj.WriteAt(p.ctx, b, off) }
func (p *filePages) Truncate(size int64) error                { return p.obj.Truncate(size) }
func (p *filePages) Size() int64                              { return int64(p.obj.Size()) }
func (p *filePages) IsStorable() bool                         { return p.obj.IsStorable() }
func (p *filePages) Close()                                   { p.obj.Close() }
