package guestmem

import (
	"fmt"
	"io"
	"os"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// RegionAccess is what guests may do with a region.
type RegionAccess uint8

// Accesses of regions.
const (
	RegionReadWrite RegionAccess = iota
	// RegionReadOnly: guests may read it, and their writes exit as MMIO. The
	// VMM's WriteAt is refused too, with ErrReadOnly: a ROM is filled by
	// RegionOptions.Fill, or comes from a file.
	RegionReadOnly
)

// HugePages says what the kernel is told about transparent huge pages.
type HugePages uint8

// Advice on transparent huge pages.
const (
	// HugeDefault: none for memfds, whose huge pages would let KVM map 2 MiB
	// around one page that is there; the host's policy for the rest.
	HugeDefault HugePages = iota
	HugeAlways            // MADV_HUGEPAGE
	HugeNever             // MADV_NOHUGEPAGE
)

// Populate says when the host backs a region.
type Populate uint8

// Times of backing a region.
const (
	PopulateOnUse Populate = iota
	// PopulateNow: all of it, before AddRegion returns.
	PopulateNow
)

// NUMAMode is a policy for where the host takes pages from, numerically MPOL_*.
type NUMAMode int

// Policies for pages.
const (
	NUMADefault    NUMAMode = NUMAMode(sys.PolicyDefault)
	NUMAPreferred  NUMAMode = NUMAMode(sys.PolicyPreferred)
	NUMABind       NUMAMode = NUMAMode(sys.PolicyBind)
	NUMAInterleave NUMAMode = NUMAMode(sys.PolicyInterleave)
)

// NUMAPolicy is a policy and the nodes that it is about.
type NUMAPolicy struct {
	Mode  NUMAMode
	Nodes []int
}

// RegionOptions say where a region lies and what it is made of.
type RegionOptions struct {
	// Name is what errors and the host (memfd) call it; that of the backing if
	// empty.
	Name string
	// Base and Size are where it lies: whole pages of the backing, 4 KiB or, for
	// BackingHugetlb, 2 MiB, below 2^52, in a hole.
	Base addr.GPA
	Size uint64

	Backing Backing
	Access  RegionAccess

	// File and Offset are what is mapped with BackingFile and
	// BackingFilePrivate: at least Offset+Size bytes, Offset a multiple of 4
	// KiB. The descriptor is duplicated; the caller may close it. With
	// BackingForeign, the descriptor that Mapping is a shared mapping of, from
	// which the alias is made; the library uses it for as long as the region
	// is there.
	File   *os.File
	Offset uint64
	// Mapping is the embedder's own mapping of Size bytes (BackingForeign).
	Mapping addr.HVA

	// Fill, if not nil, stores what the region holds at first; offsets are
	// from Base. It runs before anybody can see the region, also a read-only
	// one; if it fails, there is no region.
	Fill func(io.WriterAt) error

	HugePages HugePages
	NUMA      NUMAPolicy
	Populate  Populate
}

// MaxRegions bounds how many regions a memory may have.
const MaxRegions = 32764

// check validates the options on their own.
func (o *RegionOptions) check() error {
	if o.Backing >= BackingTemplate {
		return fmt.Errorf("backing %d: %w", o.Backing, ErrInvalid)
	}
	page := uint64(addr.PageSize)
	if o.Backing == BackingHugetlb {
		page = sys.HugePageSize
	}
	if err := checkPlace(o.Base, o.Size, page); err != nil {
		return err
	}
	if o.Access > RegionReadOnly || o.HugePages > HugeNever || o.Populate > PopulateNow {
		return fmt.Errorf("access %d, huge pages %d, populate %d: %w", o.Access, o.HugePages, o.Populate, ErrInvalid)
	}
	hasFile, hasMapping := o.File != nil, o.Mapping != 0
	wantsFile := o.Backing == BackingFile || o.Backing == BackingFilePrivate
	switch {
	case wantsFile && !hasFile:
		return fmt.Errorf("backing %v without a file: %w", o.Backing, ErrInvalid)
	case hasFile && !wantsFile && o.Backing != BackingForeign:
		return fmt.Errorf("backing %v with a file: %w", o.Backing, ErrInvalid)
	case hasMapping != (o.Backing == BackingForeign):
		return fmt.Errorf("backing %v with the mapping %v: %w", o.Backing, o.Mapping, ErrInvalid)
	case !hasFile && o.Offset != 0 || o.Offset%addr.PageSize != 0:
		return fmt.Errorf("offset %#x: %w", o.Offset, ErrInvalid)
	case uint64(o.Mapping)%addr.PageSize != 0 || uint64(o.Mapping) > ^uint64(0)-o.Size:
		return fmt.Errorf("mapping of %#x bytes at %v: %w", o.Size, o.Mapping, ErrInvalid)
	case o.Offset > 1<<62 || o.Size > 1<<62-o.Offset:
		return fmt.Errorf("%#x bytes at offset %#x: %w", o.Size, o.Offset, ErrOverflow)
	}
	return nil
}

// checkPlace says whether a region can lie at a place.
func checkPlace(base addr.GPA, size, page uint64) error {
	end, ok := base.Add(size)
	switch {
	case !ok || uint64(end) > 1<<52:
		return fmt.Errorf("base %#x and size %#x go past 2^52: %w", uint64(base), size, ErrInvalid)
	case size == 0 || size%page != 0 || uint64(base)%page != 0:
		return fmt.Errorf("base %#x and size %#x are not whole pages of %#x bytes: %w", uint64(base), size, page, ErrInvalid)
	}
	return nil
}
