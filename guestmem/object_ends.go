package guestmem

import (
	"io"
	"math"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// What the source and the sink have that the object does not hold.
//
// The source is not what the object holds beyond the least length that it has had
// (Object.believed), nor where pages were taken out and only the sink was told, being
// another file (Object.emptied). There the object holds zeroes until somebody stores.
//
// A sink without a Truncate keeps what the object was cut back from. As long as the
// object ends before it, nobody can tell; when it grows over it, zeroes are written
// there before anything else is (Object.stale): later they would be written over what
// the sink was given since.

// runList is a set of pages as runs in order, none of them touching the next.
type runList []pageRun

// pageRun is the pages [first, end).
type pageRun struct{ first, end uint64 }

// from returns which run is the first that ends at a page or after it.
func (l runList) from(page uint64) int {
	i, _ := slices.BinarySearchFunc(l, page, func(r pageRun, page uint64) int {
		if r.end < page {
			return -1
		}
		return 1
	})
	return i
}

// add adds pages.
func (l *runList) add(r pageRun) {
	i := l.from(r.first)
	k := i
	for k < len(*l) && (*l)[k].first <= r.end {
		r.first, r.end = min(r.first, (*l)[k].first), max(r.end, (*l)[k].end)
		k++
	}
	*l = slices.Replace(*l, i, k, r)
}

// cutAt removes the pages from end on.
func (l *runList) cutAt(end uint64) {
	i := l.from(end)
	if i < len(*l) && (*l)[i].first < end {
		(*l)[i].end = min((*l)[i].end, end)
		i++
	}
	*l = slices.Delete(*l, min(i, len(*l)), len(*l))
}

// among returns which of at most 64 pages are in the list, as bits.
func (l runList) among(first, n uint64) (bits uint64) {
	for i := l.from(first); i < len(l) && l[i].first < first+n; i++ {
		for page := max(first, l[i].first); page < min(first+n, l[i].end); page++ {
			bits |= 1 << (page - first)
		}
	}
	return bits
}

// isOneFile reports whether the sink is the source: who writes to one then reads it
// from the other.
func (o *Object) isOneFile() bool {
	return isComparable(o.src) && isComparable(o.dst) && any(o.src) == any(o.dst)
}

// noteEmptied has pages read as zeroes that were taken out of the sink, and which the
// source still has.
func (o *Object) noteEmptied(s span) {
	if o.src == nil || o.isOneFile() {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if end := min(s.first+s.n, pageCount(o.believed)); s.first < end {
		o.emptied.add(pageRun{s.first, end})
	}
}

// put writes to the sink, all or an error.
//
// Preconditions: syncing is held.
//
// Errors: ErrIO with the sink's error.
func (o *Object) put(b []byte, off uint64) error {
	o.reached = max(o.reached, off+uint64(len(b)))
	n, err := o.dst.WriteAt(b, int64(off))
	if err == nil && n != len(b) {
		err = io.ErrShortWrite // against io.WriterAt's contract; but what would be lost is a guest's
	}
	if err != nil {
		return o.ioError("write", off, err)
	}
	return nil
}

// putZeroes writes zeroes over [at, end) of the sink, and returns how far it came.
//
// Preconditions, errors: as put.
func (o *Object) putZeroes(at, end uint64) (uint64, error) {
	for at < end {
		// Up to a whole run, so that what is written is aligned as pages are.
		n := min(end-at, uint64(len(zeroRun))-at%addr.PageSize)
		if err := o.put(zeroRun[:n], at); err != nil {
			return at, err
		}
		at += n
	}
	return at, nil
}

// zeroStale writes zeroes over what the object was cut back from, as far as an object
// of that size has grown over it again. Then pages can be written up to size, and only
// then: none is written beyond o.stale, where zeroes may still be to come.
//
// Preconditions, errors: as put.
func (o *Object) zeroStale(size uint64) (err error) {
	if end := min(o.reached, size); o.stale < end {
		o.stale, err = o.putZeroes(o.stale, end)
	}
	if o.stale >= o.reached {
		o.stale = math.MaxUint64 // nothing of it is left
	}
	return err
}
