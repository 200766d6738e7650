package guestmem

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// Template is the sealed memory of a guest, which any number of clones map. Safe
// for concurrent use.
type Template struct {
	mu      sync.Mutex
	closed  bool             // mu
	regions []templateRegion // immutable; each holds a reference until Close
}

// templateRegion is a region of a template: its place, and a memfd that nobody
// can write to.
type templateRegion struct {
	base     addr.GPA
	size     uint64
	pageSize uint64
	name     string
	readOnly bool
	advice   HugePages
	numa     NUMAPolicy
	image    *image
}

// image is a sealed memfd, which a template and its clones share: each clone
// that is sealed in turn asks it which of its pages have data.
type image struct {
	fd   *sys.Memfd
	refs atomic.Int64
}

func newImage(fd *sys.Memfd) *image {
	i := &image{fd: fd}
	i.refs.Store(1)
	return i
}

func (i *image) ref() { i.refs.Add(1) }

func (i *image) unref() error {
	if i.refs.Add(-1) > 0 {
		return nil
	}
	return i.fd.Close()
}

// TemplateRegion describes a region of a template.
type TemplateRegion struct {
	Name     string
	Base     addr.GPA
	Size     uint64
	PageSize uint64
	ReadOnly bool
}

// Regions returns the regions of the template, sorted by Base.
func (t *Template) Regions() []TemplateRegion {
	var out []TemplateRegion
	for i := range t.regions {
		r := &t.regions[i]
		out = append(out, TemplateRegion{r.name, r.base, r.size, r.pageSize, r.readOnly})
	}
	return out
}

// File returns a new descriptor of the sealed memfd of region i, the caller's to
// close: for a snapshot to be written, or another process to map.
//
// Errors: ErrInvalid; ErrClosed; the errno of fcntl.
func (t *Template) File(i int) (*os.File, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, fmt.Errorf("guestmem: file of a template: %w", ErrClosed)
	case i < 0 || i >= len(t.regions):
		return nil, fmt.Errorf("guestmem: region %d of a template of %d: %w", i, len(t.regions), ErrInvalid)
	}
	return sys.Dup(t.regions[i].image.fd.File())
}

// Close lets go of the template; clones go on. Closing twice does nothing. An error is
// that of close(2): the template is closed all the same. Safe for concurrent use.
func (t *Template) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	return unrefAll(t.regions)
}

func unrefAll(regions []templateRegion) error {
	var first error
	for i := range regions {
		if img := regions[i].image; img != nil {
			if err := img.unref(); err != nil && first == nil {
				first = err
			}
		}
	}
	return first
}

// refAll takes a reference to every image of an open template.
func (t *Template) refAll() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return ErrClosed
	}
	for i := range t.regions {
		t.regions[i].image.ref()
	}
	return nil
}
