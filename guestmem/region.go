package guestmem

import (
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// Region is a range of guest-physical memory with one host backing.
type Region struct {
	// Base is its first guest-physical address, Size its length in bytes.
	Base addr.GPA
	Size uint64
	// Slot is where it is mapped for a memory slot: a shared mapping of a
	// memfd, which may be registered with userfaultfd and zapped by
	// MADV_DONTNEED without losing data. Go code of this library uses another
	// mapping, the alias (R10).
	Slot addr.HVA
}

// hostRegion is the memory behind a region: one memfd, mapped twice.
type hostRegion struct {
	fd    *sys.Memfd
	alias []byte // what Go code loads and stores through
	slot  []byte // what vCPUs use
	base  addr.GPA
	// populateSlot: vCPUs will use the memory, so its slot mapping is filled
	// ahead as well; set before the first frame is handed out to a guest.
	populateSlot bool
}

func newHostRegion(name string, base addr.GPA, size uint64) (_ *hostRegion, err error) {
	r := &hostRegion{base: base}
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	if r.fd, err = sys.NewMemfd(name, size); err != nil {
		return nil, err
	}
	if r.alias, err = r.fd.Map(); err != nil {
		return nil, err
	}
	if r.slot, err = r.fd.Map(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *hostRegion) close() error {
	var errs []error
	for _, b := range [][]byte{r.alias, r.slot} {
		if b != nil {
			errs = append(errs, sys.Unmap(b))
		}
	}
	if r.fd != nil {
		errs = append(errs, r.fd.Close())
	}
	r.alias, r.slot, r.fd = nil, nil, nil
	return errors.Join(errs...)
}

func (r *hostRegion) bytesOf(f addr.PFN, n uint64) (off, length uint64) {
	return uint64(f.GPA() - r.base), n * addr.PageSize
}

// Populate implements cow.FrameStore.
func (r *hostRegion) Populate(f addr.PFN, n uint64) error {
	off, length := r.bytesOf(f, n)
	err := sys.Populate(r.alias[off : off+length])
	if errors.Is(err, sys.ErrNotSupported) {
		err = r.fd.Allocate(off, length)
	}
	if err != nil {
		return fmt.Errorf("populate %#x bytes: %w", length, err)
	}
	if r.populateSlot {
		// Only a head start for vCPUs: the pages exist, KVM maps them itself.
		_ = sys.Populate(r.slot[off : off+length])
	}
	return nil
}

// GiveBack implements cow.FrameStore.
func (r *hostRegion) GiveBack(f addr.PFN, n uint64) error {
	off, length := r.bytesOf(f, n)
	return r.fd.PunchHole(off, length)
}
