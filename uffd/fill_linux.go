//go:build amd64 || arm64

package uffd

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Filled counts what became of a range, in bytes.
type Filled struct {
	Installed uint64 // by this call
	Existed   uint64 // was there already, and is left as it is
}

// Done returns how many bytes from the start on are there now.
func (n Filled) Done() uint64 { return n.Installed + n.Existed }

// Fill copies src into the pages of [dst, dst+len(src)) that are not there. One
// that is there keeps what it holds, is counted, and who waits for it is woken
// unless DontWake is given: a page that came first wins, and is no error.
//
// pageSize is that of the memory at dst, and divides both dst and len(src).
//
// Of hugetlb memory the kernel also says EEXIST when its pool is used up: then
// Existed counts a page that is not there, and who waits faults again.
//
// Errors: as Copy's but EEXIST.
func (f *FD) Fill(dst addr.HVA, src []byte, pageSize uint64, fl Flags) (Filled, error) {
	const op = "fill"
	length := uint64(len(src))
	if err := checkFill(dst, length, pageSize); err != nil {
		return Filled{}, rangeError(op, dst, length, 0, err)
	}
	var p runtime.Pinner
	defer p.Unpin()
	from := pinned(&p, src)
	return f.fill(op, dst, length, pageSize, fl, func(done uint64) (uint64, error) {
		return f.copyFrom(op, dst+addr.HVA(done), from+addr.HVA(done), length-done, fl)
	})
}

// FillZero installs zeroes where nothing is, as Fill does.
//
// Errors: as Zero's but EEXIST.
func (f *FD) FillZero(start addr.HVA, length, pageSize uint64, fl Flags) (Filled, error) {
	const op = "fill with zeroes"
	if err := checkFill(start, length, pageSize); err != nil {
		return Filled{}, rangeError(op, start, length, 0, err)
	}
	return f.fill(op, start, length, pageSize, fl, func(done uint64) (uint64, error) {
		return f.Zero(start+addr.HVA(done), length-done, fl)
	})
}

// FillContinue maps what is in the page cache and not mapped, as Fill does.
//
// Errors: as Continue's but EEXIST.
func (f *FD) FillContinue(start addr.HVA, length, pageSize uint64, fl Flags) (Filled, error) {
	const op = "fill from the page cache"
	if err := checkFill(start, length, pageSize); err != nil {
		return Filled{}, rangeError(op, start, length, 0, err)
	}
	return f.fill(op, start, length, pageSize, fl, func(done uint64) (uint64, error) {
		return f.Continue(start+addr.HVA(done), length-done, fl)
	})
}

func checkFill(start addr.HVA, length, pageSize uint64) error {
	if pageSize < hostPageSize || pageSize&(pageSize-1) != 0 || (uint64(start)|length)&(pageSize-1) != 0 {
		return ErrInvalid
	}
	return checkRange(start, length)
}

// fill calls step for the rest of the range until all of it is there, stepping
// over each page that was there before. Each turn advances by a page or ends.
func (f *FD) fill(op string, start addr.HVA, length, pageSize uint64, fl Flags, step func(done uint64) (uint64, error)) (Filled, error) {
	var n Filled
	for n.Done() < length {
		installed, err := step(n.Done())
		n.Installed += installed
		if err == nil {
			continue
		}
		if !errors.Is(err, unix.EEXIST) {
			return n, rangeError(op, start, length, n.Done(), cause(err))
		}
		at := start + addr.HVA(n.Done())
		n.Existed += pageSize
		if fl&DontWake == 0 {
			if err := f.Wake(at, pageSize); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}
