package guestmem

import (
	"context"
	"fmt"
	"math"
	"sync"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// fillPages is how many pages are read from a source at a time, at most: 64 KiB.
const fillPages = defaultAround

var pageBuffers = sync.Pool{New: func() any { return new([fillPages * addr.PageSize]byte) }}

// fill makes sure that a page is there, or that who asks again finds out why not.
// Where faults install more than one page, the window around it is read from the
// source in one go. Several may fill one page at a time; the first wins and the
// others' frames go back. No lock is held while the source is read, so that a source
// which does not answer holds up who needs that page and nobody else.
//
// Preconditions: the caller has a reference and is in no section.
//
// Errors: ErrNoMemory; ErrBus with ErrIO and the source's error; that of ctx.
func (o *Object) fill(ctx context.Context, index uint64) error {
	switch f := o.slot(index).Load(); {
	case f&punched != 0:
		o.awaitPunching()
		return nil
	case f != 0:
		return nil
	}
	if o.host != nil {
		return o.fillHost(index)
	}
	if n := uint64(min(o.mem.around, fillPages)); n > 1 && o.src != nil && index < o.pages() {
		first := index &^ (n - 1)
		if last := o.pages(); first < last && o.fillRun(ctx, first, min(n, last-first)) == nil {
			return nil
		}
		// Too little memory for all, or one of the others cannot be read.
	}
	return o.fillRun(ctx, index, 1)
}

// awaitPunching returns when nothing is being taken out: the fault then asks again.
func (o *Object) awaitPunching() {
	o.punching.RLock()
	//lint:ignore SA2001 to have waited is all
	o.punching.RUnlock()
}

// fillRun reads n pages and installs those that are still absent. What is read is of
// no use if pages were taken out meanwhile: it may be what was there before. Then
// nothing is installed, which is no error.
func (o *Object) fillRun(ctx context.Context, first, n uint64) error {
	began, ok := o.beginFill(first, n)
	if !ok {
		o.awaitPunching()
		return nil
	}
	buf := pageBuffers.Get().(*[fillPages * addr.PageSize]byte)
	defer pageBuffers.Put(buf)
	if err := o.read(ctx, buf[:n*addr.PageSize], first, began); err != nil {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.cuts != began.cuts && ctx.Err() == nil {
			return nil // it may be too short by now
		}
		return err
	}
	var frames [fillPages]addr.PFN
	if err := o.mem.allocate(frames[:n]); err != nil {
		return err
	}
	o.mem.pastDoor(func() { // frames that nobody knows yet
		for i, f := range frames[:n] {
			o.mem.stored(f)
			copy(o.mem.arena.Bytes(f), buf[i*addr.PageSize:])
		}
	})
	for i := range frames[:n] {
		o.slot(first + uint64(i)) // nothing is allocated under mu
	}
	o.mu.Lock()
	for i, f := range frames[:n] {
		if o.cuts == began.cuts && o.slot(first+uint64(i)).CompareAndSwap(0, uint64(f)) {
			o.mem.objectPages.Inc()
			frames[i] = 0
		}
	}
	o.mu.Unlock()
	for _, f := range frames[:n] {
		if f != 0 {
			o.mem.pool.Drop(f)
			o.mem.pool.FreeData(f)
		}
	}
	return nil
}

// fillStart is what a fill needs to know of the moment when it begins.
type fillStart struct {
	cuts     uint64
	believed uint64
	emptied  uint64 // a bit for each of its pages that holds zeroes whatever the source has
}

// beginFill returns it; false if some of its pages are being taken out of the source.
func (o *Object) beginFill(first, n uint64) (f fillStart, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.removing
	ok = r.n == 0 || first+n <= r.first || first >= r.first+r.n
	return fillStart{o.cuts, o.believed, o.emptied.among(first, n)}, ok
}

// cut counts that something is about to be taken out, or has been.
func (o *Object) cut() {
	o.mu.Lock()
	o.cuts++
	o.mu.Unlock()
}

// read reads whole pages from the source; where it is not believed, they are zero.
func (o *Object) read(ctx context.Context, buf []byte, first uint64, began fillStart) error {
	off := first * addr.PageSize
	pages := uint64(len(buf)) / addr.PageSize
	if o.src == nil || off >= began.believed || began.emptied == 1<<pages-1 {
		clear(buf)
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	want := min(uint64(len(buf)), began.believed-off)
	if off > math.MaxInt64-want {
		return fmt.Errorf("%w: %w", ErrBus, o.ioError("read", off, ErrOverflow))
	}
	n, err := o.src.ReadAt(buf[:want], int64(off))
	if uint64(n) < want {
		return fmt.Errorf("%w: %w", ErrBus, o.ioError("read", off, err))
	}
	clear(buf[want:])
	for i := range pages {
		if began.emptied&(1<<i) != 0 {
			clear(buf[i*addr.PageSize : (i+1)*addr.PageSize])
		}
	}
	return nil
}
