package guestmem

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// openHost maps what a region is made of. With an error it returns what there is
// to close.
func openHost(o *RegionOptions) (h hostMemory, err error) {
	switch o.Backing {
	case BackingMemfd:
		fd, e := sys.NewMemfd(o.Name, o.Size)
		err = h.mapMemfd(fd, e, o, sys.NoReserve)
	case BackingHugetlb:
		fd, e := sys.NewHugeMemfd(o.Name, o.Size)
		err = h.mapMemfd(fd, e, o, sys.Reserved)
	case BackingAnonymous:
		h.slot, err = sys.MapAnonymous(o.Size)
		err = h.ownMapping(h.slot, err)
	case BackingFile, BackingFilePrivate:
		err = h.mapFile(o)
	case BackingForeign:
		err = h.mapForeign(o)
	default:
		err = ErrInvalid
	}
	return h, hostShort(err)
}

// close gives back what is owned. A mapping that could not be unmapped is kept,
// to be tried again; a descriptor is gone whatever close says.
func (h *hostMemory) close() error {
	var errs []error
	var left [][]byte
	for _, b := range h.mappings {
		if err := sys.Unmap(b); err != nil {
			errs, left = append(errs, fmt.Errorf("unmap %#x bytes: %w", len(b), err)), append(left, b)
		}
	}
	h.mappings = left
	if h.closeFile != nil {
		errs = append(errs, h.closeFile())
		h.closeFile = nil
	}
	return errors.Join(errs...)
}

func (h *hostMemory) ownMapping(b []byte, err error) error {
	if err == nil {
		h.mappings = append(h.mappings, b)
	}
	return err
}

// mapMemfd takes a memfd over and maps it twice.
func (h *hostMemory) mapMemfd(fd *sys.Memfd, err error, o *RegionOptions, reserve sys.Reserve) error {
	if err != nil {
		return err
	}
	h.file, h.memfd, h.closeFile = fd.File(), fd, fd.Close
	for _, b := range []*[]byte{&h.alias, &h.slot} {
		*b, err = sys.MapFile(h.file, 0, o.Size, sys.Shared, sys.ReadWrite, reserve)
		if err := h.ownMapping(*b, err); err != nil {
			return err
		}
	}
	return nil
}

// mapFile maps a file of the embedder's.
func (h *hostMemory) mapFile(o *RegionOptions) error {
	size, writable, err := sys.FileSize(o.File)
	if err != nil {
		return err
	}
	if size < o.Offset || size-o.Offset < o.Size {
		return fmt.Errorf("the file %s has %#x bytes, the region needs %#x at offset %#x: %w", o.File.Name(), size, o.Size, o.Offset, ErrBus)
	}
	sharing, rights := sys.Shared, sys.ReadWrite
	if o.Backing == BackingFilePrivate {
		sharing = sys.Private
	} else if !writable {
		if o.Access != RegionReadOnly || o.Fill != nil {
			return fmt.Errorf("the file %s is not open for writing, and the region is to be written: %w", o.File.Name(), ErrDenied)
		}
		rights = sys.ReadOnly
	}
	if h.file, err = sys.Dup(o.File); err != nil {
		return err
	}
	h.closeFile, h.offset = h.file.Close, o.Offset
	mappings := []*[]byte{&h.slot}
	if sharing == sys.Shared {
		mappings = append(mappings, &h.alias)
	}
	for _, b := range mappings {
		*b, err = sys.MapFile(h.file, o.Offset, o.Size, sharing, rights, sys.NoReserve)
		if err := h.ownMapping(*b, err); err != nil {
			return err
		}
	}
	return nil
}

// mapForeign looks at the embedder's mapping and maps its descriptor once more.
func (h *hostMemory) mapForeign(o *RegionOptions) error {
	start, end := uint64(o.Mapping), uint64(o.Mapping)+o.Size
	areas, err := sys.Areas(start, end)
	if err != nil {
		return err
	}
	at := start
	for _, a := range areas {
		if a.Start > at {
			break
		}
		if !a.Writable && o.Access != RegionReadOnly {
			return fmt.Errorf("the mapping at %#x is read-only, the region is to be written: %w", max(a.Start, start), ErrDenied)
		}
		if o.File != nil && !a.Shared {
			return fmt.Errorf("the mapping at %#x is private, and a descriptor was given for it: %w", max(a.Start, start), ErrInvalid)
		}
		at = a.End
	}
	if at < end {
		return fmt.Errorf("%#x bytes at %v were given, and nothing is mapped at %#x: %w", o.Size, o.Mapping, at, ErrNotMapped)
	}
	h.slot = sys.BytesAt(uintptr(o.Mapping), o.Size)
	if o.File == nil {
		return nil
	}
	size, writable, err := sys.FileSize(o.File)
	if err != nil {
		return err
	}
	if size < o.Offset || size-o.Offset < o.Size {
		return fmt.Errorf("the descriptor has %#x bytes, the region needs %#x at offset %#x: %w", size, o.Size, o.Offset, ErrBus)
	}
	rights := sys.ReadWrite
	if !writable {
		rights = sys.ReadOnly
	}
	h.file, h.offset = o.File, o.Offset
	h.alias, err = sys.MapFile(o.File, o.Offset, o.Size, sys.Shared, rights, sys.NoReserve)
	return h.ownMapping(h.alias, err)
}

// advise tells the kernel about huge pages and nodes.
func (h *hostMemory) advise(o *RegionOptions) error {
	advice, wanted := sys.HugePages, o.HugePages != HugeDefault
	if o.HugePages == HugeNever || o.HugePages == HugeDefault && o.Backing == BackingMemfd {
		advice = sys.NoHugePages
	}
	for _, b := range [][]byte{h.slot, h.alias} {
		if b == nil || !wanted && o.Backing != BackingMemfd {
			continue
		}
		// A kernel without transparent huge pages refuses with EINVAL: it has
		// none to keep away.
		if err := sys.Advise(b, advice); err != nil && (wanted && advice == sys.HugePages || !errors.Is(err, syscall.EINVAL)) {
			return fmt.Errorf("advice on huge pages: %w", err)
		}
	}
	if o.NUMA.Mode == NUMADefault && len(o.NUMA.Nodes) == 0 {
		return nil
	}
	for _, b := range [][]byte{h.slot, h.alias} {
		if b == nil {
			continue
		}
		if err := sys.Bind(b, sys.MemoryPolicy(o.NUMA.Mode), o.NUMA.Nodes); err != nil {
			return fmt.Errorf("NUMA policy %d on nodes %v: %w", o.NUMA.Mode, o.NUMA.Nodes, err)
		}
	}
	return nil
}

// hostShort names the host's shortage of memory, mappings or huge pages.
func hostShort(err error) error {
	if errors.Is(err, syscall.ENOMEM) && !errors.Is(err, ErrNoMemory) || errors.Is(err, syscall.ENOSPC) {
		return fmt.Errorf("%w: %w", ErrNoMemory, err)
	}
	return err
}

// hostPages is where pages of a region are in one of its mappings.
func hostPages(b []byte, first, n uint64) []byte {
	return b[first*addr.PageSize : (first+n)*addr.PageSize]
}
