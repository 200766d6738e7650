package guestmem

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Writing back. Whoever makes a page writable, or writes to it, marks it as changed
// first; so a page without that mark has not changed since it was written. To write
// back a window of pages:
//
//	syncing                            one write of a page at a time, the older first
//	  punching
//	    take the marks off
//	    for each space: a change (R1)  takes the permission to write away
//	    copy the pages
//	  unlock
//	  write them to the sink           stores go on meanwhile, and mark their pages again
//	unlock
//
// A fault marks its page and then makes it writable, in one section. If the mark
// was set before it was taken off here, then that section had begun before the change
// did, so that the change waits for it and takes the permission away that it gave;
// and what it stored is in the copy. Devices store without a fault: object_held.go.

// syncPages is how many pages are copied at a time.
const syncPages = 256

// Sync writes what has changed of length bytes from off on to the sink, and returns
// when the sink has it. It waits for the lookups in progress in the spaces that map
// the object, one after the other; they do not wait for the sink.
//
// Errors: ErrIO with the sink's error; ErrNoMemory; ErrClosed; that of ctx: what could
// not be written counts as changed still.
func (o *Object) Sync(ctx context.Context, off, length uint64) error {
	if err := o.hold(); err != nil {
		return &Error{Op: "sync object", Err: fmt.Errorf("%s: %w", o.name, err)}
	}
	defer o.unref()
	if o.host != nil && length > 0 && !o.readOnly {
		if err := o.host.Sync(); err != nil {
			return &Error{Op: "sync object", Err: o.ioError("sync", off, err)}
		}
	}
	if o.dst == nil || length == 0 {
		return nil
	}
	first := off / addr.PageSize
	end := uint64(math.MaxUint64) / addr.PageSize
	if off+length > off {
		end = pageCount(off + length)
	}
	if err := o.writeBack(ctx, first, end); err != nil {
		return &Error{Op: "sync object", Err: fmt.Errorf("%s: %w", o.name, err)}
	}
	return nil
}

// writeBackAll writes everything back, as far as the sink takes it.
func (o *Object) writeBackAll() error {
	if o.dst == nil {
		return nil
	}
	return o.writeBack(context.Background(), 0, math.MaxUint64/addr.PageSize)
}

// writeBack writes the changed pages of [first, end). It goes on after an error, as
// Linux does, and returns the first.
func (o *Object) writeBack(ctx context.Context, first, end uint64) (err error) {
	o.syncing.Lock()
	defer o.syncing.Unlock()
	if e := ctx.Err(); e != nil {
		return e
	}
	err = o.zeroStale(o.size.Load())
	var buf []byte
	for {
		if e := ctx.Err(); e != nil {
			return e
		}
		at, found := o.nextChanged(first, end)
		if !found {
			return err
		}
		first = at + syncPages
		if buf == nil {
			buf = make([]byte, syncPages*addr.PageSize)
		}
		if e := o.writeWindow(buf, span{object: o, first: at, n: min(syncPages, end-at), kind: sweepWrites}); err == nil {
			err = e
		}
	}
}

// nextChanged returns the first changed page of [first, end).
func (o *Object) nextChanged(first, end uint64) (at uint64, found bool) {
	if first >= end {
		return 0, false
	}
	o.eachSlot(first, end-first, func(index uint64, p *atomic.Uint64) {
		if !found && p.Load()&changed != 0 {
			at, found = index, true
		}
	})
	return at, found
}

// writeWindow writes the changed pages of a span back, in runs.
func (o *Object) writeWindow(buf []byte, s span) error {
	pages, size, err := o.collect(buf, s)
	if err != nil {
		return err
	}
	err = o.zeroStale(size)
	for len(pages) > 0 {
		n := 1
		for n < len(pages) && pages[n] == pages[0]+uint64(n) {
			n++
		}
		off := pages[0] * addr.PageSize
		in := (pages[0] - s.first) * addr.PageSize
		b := buf[in : in+uint64(n)*addr.PageSize]
		if off < size {
			b = b[:min(uint64(len(b)), size-off)]
			e := err // that of zeroStale, beyond where it came to
			if off+uint64(len(b)) <= o.stale {
				e = o.put(b, off)
			}
			if e != nil {
				for _, index := range pages[:n] {
					o.noteStore(index)
				}
				if err == nil {
					err = e
				}
			}
		}
		pages = pages[n:]
	}
	return err
}

// collect copies the changed pages of a span to buf, each to its place, and lists
// them: they count as written from then on, and nobody stores to them without saying
// so.
func (o *Object) collect(buf []byte, s span) (pages []uint64, size uint64, err error) {
	o.punching.Lock()
	defer o.punching.Unlock()
	o.eachSlot(s.first, s.n, func(index uint64, p *atomic.Uint64) {
		if p.Load()&changed != 0 {
			p.And(^uint64(changed)) // nobody takes it out: punching is held
			pages = append(pages, index)
		}
	})
	if err := s.sweepSpaces(); err != nil {
		for _, index := range pages {
			o.noteStore(index)
		}
		return nil, 0, err
	}
	for run := range slices.Chunk(pages, sectionBytes/addr.PageSize) {
		o.mem.pastDoor(func() {
			for _, index := range run {
				f, _ := o.page(index)
				copy(buf[(index-s.first)*addr.PageSize:][:addr.PageSize], o.mem.arena.Bytes(f))
			}
		})
	}
	if copiedHook != nil {
		copiedHook()
	}
	o.markHeld(pages) // a device stores without a fault (R7)
	return pages, o.size.Load(), nil
}

// copiedHook is called when pages that are to be written back were copied. Only tests
// set it.
var copiedHook func()
