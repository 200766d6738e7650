//go:build amd64 || arm64

package uffd

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Pagemap looks into a page table by PAGEMAP_SCAN, and with FeatureWPAsync also
// arms what it finds: then the kernel notes writes without anybody being asked.
// Its methods are safe for concurrent use.
type Pagemap struct{ h handle }

// OpenPagemap opens the page table of process pid, or of this one if pid is 0.
//
// Errors: ErrNotSupported before Linux 6.7; the errno of opening
// /proc/PID/pagemap (ENOENT, EACCES, EMFILE).
func OpenPagemap(pid int) (*Pagemap, error) {
	const op = "open pagemap"
	who := "self"
	if pid != 0 {
		who = fmt.Sprint(pid)
	}
	fd, err := openPath("/proc/" + who + "/pagemap")
	if err != nil {
		return nil, opError(op, err)
	}
	p := &Pagemap{handle{fd: fd}}
	// An empty range is scanned in no time, and tells whether the call exists.
	if _, err := p.call(&pmScanArg{}); err != nil {
		unix.Close(fd)
		return nil, opError(op, err)
	}
	return p, nil
}

func openPath(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		switch {
		case err == nil:
			return fd, nil
		case !errors.Is(err, unix.EINTR):
			return -1, &os.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// Close gives the descriptor back. It may be called again.
func (p *Pagemap) Close() error {
	_, err := p.h.close()
	return opError("close pagemap", err)
}

// vecLen is how many runs one call brings: 6 KiB, on the heap of each Scan.
const vecLen = 256

// Scan calls yield with each run of pages of [start, end) that s selects, in
// ascending order; adjacent runs differ in Categories. start and end are whole
// pages. yield must take what it is given: with s.Arm the pages are armed again
// by the time it hears of them, so that a run that is dropped is a write lost.
//
// After an error, what was found until then has been given to yield, except that
// with s.Arm the last runs may lack some pages that were armed: take the whole
// rest of the range as written.
//
// Errors: ErrInvalid, ErrClosed; EPERM, from s.Arm with s.OnlyAsync, where part
// of the range is not registered for WP with FeatureWPAsync; EINTR (the process
// is being killed); ESRCH... as PAGEMAP_SCAN has them. Linux 6.7
func (p *Pagemap) Scan(start, end addr.HVA, s Selection, yield func(Run)) error {
	const op = "scan pagemap"
	length := uint64(end - start)
	if end < start || s.check() != nil || start != end && checkRange(start, length) != nil {
		return rangeError(op, start, length, 0, ErrInvalid)
	}
	vec := make([]pageRegion, vecLen)
	var pin runtime.Pinner
	defer pin.Unpin()
	arg := s.arg()
	arg.vec, arg.vecLen = vecAddress(&pin, vec), vecLen
	for at := uint64(start); at < uint64(end); {
		arg.start, arg.end, arg.walkEnd = at, uint64(end), 0
		clear(vec)
		n, err := p.call(&arg)
		if err != nil {
			// How many runs were found is not told; those that were are there.
			for n = 0; n < len(vec) && vec[n].end != 0; n++ {
			}
		}
		for _, r := range vec[:n] {
			yield(Run{addr.HVA(r.start), addr.HVA(r.end), Categories(r.categories)})
		}
		if err == nil && (arg.walkEnd <= at || arg.walkEnd > uint64(end)) {
			err = fmt.Errorf("the scan went from %#x to %#x: %w", at, arg.walkEnd, unix.EIO)
		}
		if err != nil {
			return rangeError(op, start, length, at-uint64(start), err)
		}
		at = arg.walkEnd
	}
	return nil
}

// call makes the request, and returns how many runs it brought.
func (p *Pagemap) call(arg *pmScanArg) (int, error) {
	if !p.h.acquire() {
		return 0, ErrClosed
	}
	defer p.h.release()
	arg.size = scanArgSize
	n, err := ioctlResult(p.h.fd, reqPagemapScan, arg)
	if errors.Is(err, unix.ENOTTY) {
		err = fmt.Errorf("%w: PAGEMAP_SCAN needs Linux 6.7: %w", ErrNotSupported, err)
	}
	return n, err
}
