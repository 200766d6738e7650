package guestmem

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// CloneOptions say what is done to a clone.
type CloneOptions struct {
	// Hook, if not nil, is called with the new memory before Clone returns it:
	// to reseed what must differ between clones. If it fails, the clone is
	// closed and its error returned; it releases what it holds of it first.
	Hook func(*Memory) error
	// OnFailure, if not nil, is called once if a clone of a snapshot lacks pages
	// that cannot be had any more, since the snapshot has failed: its accesses return
	// that error, and a vCPU that needs such a page waits until the memory is closed.
	// Templates lack nothing.
	OnFailure func(error)
}

// Clone returns a new memory with the regions and the content of the template:
// one private mapping for each region. The kernel copies a page when it is first
// written; reading costs no memory, and an idle clone next to none. A clone can be
// sealed in turn.
//
// It has no alias: Go code goes through the one mapping, as vCPUs do.
//
// Errors: ErrClosed; ErrNoMemory where the host is short of mappings, address
// space or, for huge pages, of those; that of the hook; the errno of mmap, madvise
// or mbind. Nothing is left of a clone that failed. Safe for concurrent use.
func (t *Template) Clone(o CloneOptions) (*Memory, error) {
	const op = "clone"
	if err := t.refAll(); err != nil {
		return nil, opError(op, addr.Range{}, err)
	}
	m, err := NewMemory(MemoryOptions{})
	if err != nil {
		return nil, opError(op, addr.Range{}, errors.Join(err, unrefAll(t.regions)))
	}
	table := make(regionTable, 0, len(t.regions))
	for i := range t.regions {
		// Each region takes over one of the references, also where it fails.
		r, err := t.regions[i].mapFor(m)
		if err != nil {
			err = errors.Join(err, unrefAll(t.regions[i+1:]), m.retire(table...), m.Close())
			return nil, opError(op, addr.Range{}, err)
		}
		table = append(table, r)
	}
	m.publish(table)
	if o.Hook != nil {
		if err := o.Hook(m); err != nil {
			return nil, opError(op, addr.Range{}, errors.Join(fmt.Errorf("hook: %w", err), m.Close()))
		}
	}
	return m, nil
}

// CloneN makes n clones at once: all of them, or none and an error.
//
// Errors: as Clone; ErrInvalid for a negative n.
func (t *Template) CloneN(n int, o CloneOptions) ([]*Memory, error) {
	if n < 0 {
		return nil, opError("clone", addr.Range{}, fmt.Errorf("%d clones: %w", n, ErrInvalid))
	}
	out, errs := make([]*Memory, n), make([]error, n)
	var wg sync.WaitGroup
	turn := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i := range out {
		wg.Go(func() {
			turn <- struct{}{}
			out[i], errs[i] = t.Clone(o)
			<-turn
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	if err == nil {
		return out, nil
	}
	for _, m := range out {
		if m != nil {
			err = errors.Join(err, m.Close())
		}
	}
	return nil, err
}

// mapFor maps a region of the template into a new memory, which nobody knows
// yet. It takes over a reference to the image.
func (tr *templateRegion) mapFor(m *Memory) (*Region, error) {
	host := hostMemory{file: tr.image.fd.File(), closeFile: tr.image.unref}
	o := RegionOptions{
		Name: tr.name, Base: tr.base, Size: tr.size, Backing: BackingTemplate,
		HugePages: tr.advice, NUMA: tr.numa,
	}
	if tr.readOnly {
		o.Access = RegionReadOnly
	}
	reserve := sys.NoReserve
	if tr.pageSize > addr.PageSize {
		reserve = sys.Reserved
	}
	var err error
	host.slot, err = sys.MapFile(host.file, 0, tr.size, sys.Private, sys.ReadWrite, reserve)
	if err = host.ownMapping(host.slot, err); err == nil {
		err = host.advise(&o)
	}
	if err != nil {
		return nil, errors.Join(hostShort(err), host.close())
	}
	r := newRegion(m, &o, host)
	r.pageSize = tr.pageSize
	return r, nil
}
