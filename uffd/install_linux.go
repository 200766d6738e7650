//go:build amd64 || arm64

package uffd

import (
	"errors"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The calls of this file install pages: absent becomes present. All of them
//
//   - return how many bytes from the start were dealt with, and an error unless
//     that is all of them;
//   - stop at the first page that cannot be installed, and name its reason;
//   - return EAGAIN with what was done until then: a layout event has not been
//     read, or the thread that caused it has not gone on yet. Reading events
//     and trying again after a moment is the caller's to pace;
//   - wake who waits for the pages, unless DontWake is given.

// Copy installs copies of src at dst. src may be in any memory, of a file too:
// what cannot be read of it is EFAULT, and no SIGBUS. With Armed the pages are
// write-protected from their first instant on, which needs registration for WP.
//
// dst and len(src) are whole pages, of 2 MiB in hugetlb memory.
//
// Errors: ErrInvalid, ErrClosed; EEXIST (a page is there: Wake; but of hugetlb
// memory also that the pool is used up, and no page is there); EAGAIN; ENOENT
// (not registered, or no longer mapped); ESRCH (the process is gone); EINVAL
// (Armed without WP; an unaligned huge page); ENOMEM (the host, the cgroup or the
// tmpfs behind dst is full); EFAULT (src). UFFDIO_COPY, Linux 4.3
func (f *FD) Copy(dst addr.HVA, src []byte, fl Flags) (done uint64, err error) {
	const op = "copy"
	if len(src) == 0 {
		return 0, rangeError(op, dst, 0, 0, ErrInvalid)
	}
	var p runtime.Pinner
	defer p.Unpin()
	return f.copyFrom(op, dst, pinned(&p, src), uint64(len(src)), fl)
}

// CopyFrom is Copy from memory that is known by its address: a mapping that
// stays for the length of the call.
//
// Errors: as Copy's.
func (f *FD) CopyFrom(dst, src addr.HVA, length uint64, fl Flags) (done uint64, err error) {
	return f.copyFrom("copy", dst, src, length, fl)
}

func (f *FD) copyFrom(op string, dst, src addr.HVA, length uint64, fl Flags) (uint64, error) {
	if fl&^(DontWake|Armed) != 0 || checkRange(dst, length) != nil || uint64(src)+length < uint64(src) {
		return 0, rangeError(op, dst, length, 0, ErrInvalid)
	}
	return f.byParts(op, dst, length, func(fd int, done uint64) (int64, error) {
		arg := uffdioCopy{
			dst: uint64(dst) + done, src: uint64(src) + done, length: length - done,
			mode: installMode(fl),
		}
		err := ioctl(fd, reqCopy, &arg)
		return arg.done, err
	})
}

// Zero installs pages of zeroes. With Armed each is a private page, copied from
// zeroes, since arming the kernel's shared page of zeroes afterwards would lose
// the writes in between.
//
// Errors: as Copy's; EINVAL for hugetlb memory without Armed, which has no page
// of zeroes, and with Armed for pages of more than 2 MiB. UFFDIO_ZEROPAGE, Linux 4.3
func (f *FD) Zero(start addr.HVA, length uint64, fl Flags) (done uint64, err error) {
	const op = "zero"
	if fl&Armed != 0 {
		return f.copyZeroes(start, length, fl)
	}
	if fl&^DontWake != 0 || checkRange(start, length) != nil {
		return 0, rangeError(op, start, length, 0, ErrInvalid)
	}
	return f.install(op, reqZero, start, length, fl)
}

func (f *FD) copyZeroes(start addr.HVA, length uint64, fl Flags) (uint64, error) {
	if err := checkRange(start, length); err != nil {
		return 0, rangeError("zero", start, length, 0, err)
	}
	var p runtime.Pinner
	defer p.Unpin()
	zeroes := pinned(&p, zeroBytes[:])
	for done := uint64(0); done < length; {
		n, err := f.copyFrom("zero", start+addr.HVA(done), zeroes, min(length-done, uint64(len(zeroBytes))), fl)
		done += n
		if err != nil {
			return done, rangeError("zero", start, length, done, cause(err))
		}
	}
	return length, nil
}

// Continue maps pages that are in the page cache: the answer to FaultMinor.
// With Armed (6.4) they are write-protected from their first instant on.
//
// Errors: as Copy's; EFAULT: the page is not in the page cache.
// UFFDIO_CONTINUE, Linux 5.13
func (f *FD) Continue(start addr.HVA, length uint64, fl Flags) (done uint64, err error) {
	const op = "continue"
	if fl&^(DontWake|Armed) != 0 || checkRange(start, length) != nil {
		return 0, rangeError(op, start, length, 0, ErrInvalid)
	}
	return f.install(op, reqContinue, start, length, fl)
}

// Poison makes the range fail whoever touches it, by SIGBUS, as broken memory
// does. A vCPU that does so kills its process with it: never poison what a vCPU
// can reach.
//
// Errors: as Copy's. UFFDIO_POISON, Linux 6.6
func (f *FD) Poison(start addr.HVA, length uint64, fl Flags) (done uint64, err error) {
	const op = "poison"
	if fl&^DontWake != 0 || checkRange(start, length) != nil {
		return 0, rangeError(op, start, length, 0, ErrInvalid)
	}
	return f.install(op, reqPoison, start, length, fl)
}

// Move takes pages from src, which is private anonymous memory of the same
// process, and installs them at dst, which is registered, without copying them.
// Pages that are missing at src end it, or are skipped with AllowHoles.
//
// Errors: as Copy's; ENOENT also where src has no page; EBUSY: a page is pinned
// or shared with another process. UFFDIO_MOVE, Linux 6.8
func (f *FD) Move(dst, src addr.HVA, length uint64, fl Flags) (done uint64, err error) {
	const op = "move"
	if fl&^(DontWake|AllowHoles) != 0 || checkRange(dst, length) != nil || checkRange(src, length) != nil {
		return 0, rangeError(op, dst, length, 0, ErrInvalid)
	}
	mode := installMode(fl &^ AllowHoles)
	if fl&AllowHoles != 0 {
		mode |= modeAllowHoles
	}
	return f.byParts(op, dst, length, func(fd int, done uint64) (int64, error) {
		arg := uffdioCopy{
			dst: uint64(dst) + done, src: uint64(src) + done, length: length - done,
			mode: mode,
		}
		err := ioctl(fd, reqMove, &arg)
		return arg.done, err
	})
}

func (f *FD) install(op string, req uintptr, start addr.HVA, length uint64, fl Flags) (uint64, error) {
	return f.byParts(op, start, length, func(fd int, done uint64) (int64, error) {
		arg := uffdioInstall{
			uffdioRange: uffdioRange{uint64(start) + done, length - done},
			mode:        installMode(fl),
		}
		err := ioctl(fd, req, &arg)
		return arg.done, err
	})
}

func installMode(fl Flags) uint64 {
	var mode uint64
	if fl&DontWake != 0 {
		mode |= modeDontWake
	}
	if fl&Armed != 0 {
		mode |= modeArmed
	}
	return mode
}

// byParts calls step, which asks for the rest of the range, until all is done or
// a call does nothing. The kernel answers a part with EAGAIN whatever stopped it;
// asking for the rest gives the reason. Each turn but the last one advances by a
// page, so it ends.
func (f *FD) byParts(op string, start addr.HVA, length uint64, step func(fd int, done uint64) (int64, error)) (uint64, error) {
	if !f.h.acquire() {
		return 0, rangeError(op, start, length, 0, ErrClosed)
	}
	defer f.h.release()
	var done uint64
	for {
		answer, err := step(f.h.fd, done)
		n := progress(answer, length-done)
		done += n
		switch {
		case done == length:
			return done, nil
		case n > 0 && errors.Is(err, unix.EAGAIN):
			continue
		case err == nil:
			// No kernel does this: success is the whole range.
			err = unix.EIO
		}
		return done, rangeError(op, start, length, done, err)
	}
}

// progress reads the field in which the kernel says how much it has done.
// Nothing is 0, or the negated errno: EAGAIN left the field alone before Linux
// 6.15 and is written to it since. Whatever is no whole number of pages within
// the request counts as nothing.
func progress(answer int64, asked uint64) uint64 {
	if answer <= 0 || uint64(answer) > asked || uint64(answer)&(hostPageSize-1) != 0 {
		return 0
	}
	return uint64(answer)
}
