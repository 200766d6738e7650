package guestmem

import (
	"fmt"
	"runtime/debug"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
)

// What is behind a file's or an embedder's mapping may go away while it is in
// use: a file is truncated by somebody else. Populating tells in most cases; what
// is left is the moment between that and the access, and for it these regions are
// accessed with the runtime told to turn the fault into a panic, which is caught here.

// lost says that what is behind a region has less than the region.
func (r *Region) lost(page uint64) error {
	err := fmt.Errorf("page %#x of the region %v cannot be accessed: %w", page, r, ErrBus)
	if r.host.file == nil || r.pooled {
		return err
	}
	if size, _, e := sys.FileSize(r.host.file); e == nil {
		err = fmt.Errorf("the file has %#x bytes now, the region needs %#x at offset %#x: %w", size, r.size, r.host.offset, ErrBus)
	}
	return err
}

// stillWhole is ErrBus if the file behind a region, which is somebody else's, has become
// shorter than the region. It is asked after the file was looked at or read: what a file
// that was cut has lost reads as a hole, and as zeroes to the end of its last page (R12).
func (r *Region) stillWhole() error {
	if !r.guarded || r.host.file == nil {
		return nil
	}
	size, _, err := sys.FileSize(r.host.file)
	if err == nil && (size < r.host.offset || size-r.host.offset < r.size) {
		err = r.lost((max(size, r.host.offset) - r.host.offset) / addr.PageSize)
	}
	return err
}

// areasOf returns what the kernel has mapped at pages of the embedder's mapping.
//
// Errors: ErrBus, naming the first page at which there is nothing any more.
func (r *Region) areasOf(b []byte) ([]sys.Area, error) {
	at, end := uint64(hvaOf(b)), uint64(hvaOf(b))+uint64(len(b))
	areas, err := sys.Areas(at, end)
	if err != nil {
		return nil, err
	}
	for _, a := range areas {
		if a.Start > at {
			break
		}
		at = a.End
	}
	if at < end {
		return nil, r.lost((at - uint64(r.Slot())) / addr.PageSize)
	}
	return areas, nil
}

// copyBytes copies between Go memory and a guarded or plain mapping. If the
// mapping has lost its page, as a file that somebody else has truncated, it
// returns false, where a plain copy would be the end of the process.
func (r *Region) copyBytes(dst, src []byte) (n int, ok bool) {
	if !r.isGuarded() {
		return copy(dst, src), true
	}
	ok = guard(func() { n = copy(dst, src) })
	return n, ok
}

// guard runs fn and returns false if it touched memory that is not there. Only
// accesses of Go code to host mappings may be in fn.
func guard(fn func()) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if !ok {
			e := recover()
			if _, isFault := e.(interface{ Addr() uintptr }); !isFault && e != nil {
				panic(e)
			}
		}
	}()
	fn()
	return true
}
