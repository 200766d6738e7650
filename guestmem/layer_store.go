package guestmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/sys"
	"github.com/guestmm/guestmm/uffd"
)

// layerStore is how pages come into a layer that clones may have mapped: a page is
// not there, or is there with all its bytes, and no page that nobody has put.
//
// pwrite(2) does not do that. It makes the page, copies, and where the copy falls
// short, since its source was paged out at that moment, it shows zeroes for the rest
// until it has gone round again. Where the host has huge pages for shared memory
// (shmem_enabled), it makes one of those, and shows 511 other pages that are zero:
//
//	sweep                          vCPU of a clone
//	makes page p, all zeroes
//	                               touches p: it is there, and no fault is told
//	copies p
//	                               goes on with zeroes, for ever if it has stored
//
// UFFDIO_COPY makes a small page, fills it, and puts it in its place then.
type layerStore struct {
	fd *uffd.FD // the snapshot's; its events are none, since nobody touches b
	b  []byte   // the layer, mapped to be named to the kernel
}

var atLayer = inject.New("snapshot: copy to a layer")

// openLayerStores returns the userfaultfd for the layers of a snapshot, or nil where the
// host has none of the kind. Then it cannot have clones that lack pages, and pwrite
// will do.
func openLayerStores() (*uffd.FD, error) {
	fd, err := uffd.Open(uffd.Options{Required: uffd.FeatureMissingShmem})
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOMEM):
		return nil, hostShort(err)
	}
	return nil, nil
}

// newLayerStore maps a layer.
func newLayerStore(fd *uffd.FD, image *sys.Memfd) (st layerStore, err error) {
	if fd == nil {
		return layerStore{}, nil
	}
	st = layerStore{fd, nil}
	if st.b, err = image.Map(); err != nil {
		return layerStore{}, hostShort(err)
	}
	if _, err := fd.Register(hvaOf(st.b), uint64(len(st.b)), uffd.Missing); err != nil {
		return layerStore{}, errors.Join(hostShort(err), sys.Unmap(st.b))
	}
	return st, nil
}

func (st *layerStore) close() error {
	if st.b == nil {
		return nil
	}
	b := st.b
	st.b = nil
	return sys.Unmap(b)
}

// store stores pages that the layer has not had yet.
func (l *layer) store(first uint64, p []byte) error {
	if err := atLayer.Err(); err != nil {
		return err
	}
	for l.to.b != nil && len(p) > 0 {
		done, err := l.to.fd.Copy(hvaOf(l.to.b)+addr.HVA(first*addr.PageSize), p, uffd.DontWake)
		if err == nil {
			return nil
		}
		first, p = first+done/addr.PageSize, p[done:]
		if errors.Is(err, syscall.EEXIST) {
			break // zeroes that somebody was given, who was not to be
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return err
		}
	}
	return sys.WriteFile(l.image.fd.File(), p, first*addr.PageSize)
}

// storeZeroes has a page of zeroes take memory.
//
// Preconditions: backing is held.
func (l *layer) storeZeroes(page uint64) error {
	if l.to.b == nil {
		return l.image.fd.Allocate(page*addr.PageSize, addr.PageSize)
	}
	if err := atLayer.Err(); err != nil {
		return err
	}
	_, err := l.to.fd.Zero(hvaOf(l.to.b)+addr.HVA(page*addr.PageSize), addr.PageSize, uffd.DontWake)
	if errors.Is(err, syscall.EEXIST) {
		err = nil // a clone that lacks nothing any more has touched it
	}
	return err
}

// mayBeCloned says whether the snapshot may have a clone that lacks pages.
func (l *layer) mayBeCloned() error {
	if l.to.b == nil {
		return fmt.Errorf("clones of a snapshot that is not complete need userfaultfd(2) for shared memory: %w", ErrNotSupported)
	}
	return nil
}
