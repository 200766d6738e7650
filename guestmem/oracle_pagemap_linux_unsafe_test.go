//go:build linux && amd64

package guestmem

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// scanArg and scanRegion are struct pm_scan_arg and struct page_region.
type scanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	inverted, categoryMask, categoryAnyOfMask, categoriesReturned uint64
}

type scanRegion struct{ start, end, categories uint64 }

const (
	pagemapScan   = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsGuard   = 1 << 8 // since Linux 6.15, as guards of files
)

var (
	_ [96]byte = [unsafe.Sizeof(scanArg{})]byte{}
	_ [24]byte = [unsafe.Sizeof(scanRegion{})]byte{}
)

// scanPagemap returns the pages in r that a process has, as ranges, and the
// errno where the kernel cannot say (before 6.7).
func scanPagemap(fd int, r addr.Range) ([]addr.Range, error) {
	out, err := scanCategories(fd, r, pageIsGuard) // none of those
	if err == unix.EINVAL {
		return scanCategories(fd, r, 0)
	}
	return out, err
}

func scanCategories(fd int, r addr.Range, not uint64) ([]addr.Range, error) {
	var out []addr.Range
	vec := new([256]scanRegion)
	var pin runtime.Pinner
	pin.Pin(vec)
	defer pin.Unpin()
	for !r.IsEmpty() {
		arg := scanArg{
			size: 96, start: uint64(r.Start), end: uint64(r.End),
			// SAFETY: the kernel writes to vec, which is pinned.
			vec: uint64(uintptr(unsafe.Pointer(&vec[0]))), vecLen: uint64(len(vec)),
			inverted: not, categoryMask: not,
			categoryAnyOfMask: pageIsPresent | pageIsSwapped, categoriesReturned: pageIsPresent,
		}
		// SAFETY: arg is a struct pm_scan_arg, alive during the call.
		n, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if e != 0 {
			return nil, e
		}
		for _, v := range vec[:n] {
			out = append(out, addr.Range{Start: addr.GVA(v.start), End: addr.GVA(v.end)})
		}
		r.Start = addr.GVA(arg.walkEnd)
	}
	return out, nil
}
