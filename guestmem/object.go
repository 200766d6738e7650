package guestmem

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Object is what areas map besides private anonymous memory: pages that are the
// same for everyone who maps them. A file object is a page cache over a source,
// for private mappings; a shared anonymous area has one without a source. Safe
// for concurrent use.
type Object struct {
	mem  *Memory     // immutable
	src  io.ReaderAt // immutable; nil: pages begin empty
	size uint64      // bytes; immutable
	name string      // immutable

	refs atomic.Int64 // its creator, each space that maps it, each fill
	root pageNode     // atomic throughout
	high int          // levels of nodes; immutable

	// punching is held while pages are taken out; above every change lock. Who finds
	// a page that is being taken out waits for it.
	punching sync.Mutex
}

// pageNode is a node of a radix tree from page number to frame: small, so that
// a guest which touches few pages far apart costs little host memory (at most
// 0.6 KiB a level and page).
type pageNode struct {
	kids  *[nodeSize]atomic.Pointer[pageNode] // above the lowest level; immutable
	pages *[nodeSize]atomic.Uint64            // at the lowest level; frame, 0 if absent, punched; immutable
}

const (
	nodeBits = 6
	nodeSize = 1 << nodeBits
)

func newPageNode(level int) *pageNode {
	if level == 0 {
		return &pageNode{pages: new([nodeSize]atomic.Uint64)}
	}
	return &pageNode{kids: new([nodeSize]atomic.Pointer[pageNode])}
}

// NewFileObject returns an object over the first size bytes of src, for areas
// that map it privately: reads share its pages, writes copy them. What src
// holds is read when it is first touched, a page at a time, and kept while the
// object lives; src must not change meanwhile. The end of the last page reads as
// zero; pages past it are ErrBus.
//
// The caller owns a reference: Close gives it back, and the object ends when no
// area maps it any more.
//
// Errors: ErrInvalid if src is nil or size is negative.
func (m *Memory) NewFileObject(src io.ReaderAt, size int64, name string) (*Object, error) {
	if src == nil || size < 0 {
		return nil, opError("new file object", addr.Range{}, ErrInvalid)
	}
	return m.newObject(src, uint64(size), name), nil
}

func (m *Memory) newObject(src io.ReaderAt, size uint64, name string) *Object {
	o := &Object{mem: m, src: src, size: size, name: name, high: 1}
	for last := o.pages() >> nodeBits; last > 0; last >>= nodeBits {
		o.high++
	}
	o.root = *newPageNode(o.high - 1)
	o.refs.Store(1)
	m.mu.Lock()
	m.objects[o] = struct{}{}
	m.mu.Unlock()
	return o
}

// BackingName implements vmarea.Backing.
func (o *Object) BackingName() string { return o.name }

// Size returns the object's length in bytes.
func (o *Object) Size() uint64 { return o.size }

// Close gives the creator's reference back.
//
// Preconditions: it is called once, and the creator maps it no more after.
func (o *Object) Close() { o.unref() }

func (o *Object) ref() { o.refs.Add(1) }

// unref drops a reference; the last one ends the object and drops its pages.
// Nobody can be following them: a space gives up its reference after the grace
// period of the change that took its last area of the object away.
func (o *Object) unref() {
	switch n := o.refs.Add(-1); {
	case n < 0:
		panic("guestmem: object " + o.name + " closed once too often")
	case n > 0:
		return
	}
	o.mem.mu.Lock()
	delete(o.mem.objects, o)
	o.mem.mu.Unlock()
	o.each(func(f addr.PFN) {
		o.mem.objectPages.Dec()
		if o.mem.pool.Drop(f) {
			o.mem.pool.FreeData(f)
		}
	})
}

// pages returns the number of pages.
func (o *Object) pages() uint64 {
	n, ok := addr.RoundUpLength(o.size)
	if !ok {
		return math.MaxUint64 / addr.PageSize
	}
	return n / addr.PageSize
}

// page returns the frame of a page, without waiting.
//
// Preconditions: index < pages(); the caller keeps the object alive.
func (o *Object) page(index uint64) (addr.PFN, bool) {
	n := &o.root
	for level := o.high - 1; level > 0; level-- {
		n = n.kids[index>>(nodeBits*level)%nodeSize].Load()
		if n == nil {
			return 0, false
		}
	}
	f := n.pages[index%nodeSize].Load()
	return addr.PFN(f), f != 0 && f&punched == 0
}

// slot returns where the frame of a page is kept, making nodes as needed.
func (o *Object) slot(index uint64) *atomic.Uint64 {
	n := &o.root
	for level := o.high - 1; level > 0; level-- {
		kid := &n.kids[index>>(nodeBits*level)%nodeSize]
		if kid.Load() == nil {
			kid.CompareAndSwap(nil, newPageNode(level-1))
		}
		n = kid.Load()
	}
	return &n.pages[index%nodeSize]
}

// each calls fn for every page that is there.
func (o *Object) each(fn func(addr.PFN)) { o.root.each(fn) }

func (n *pageNode) each(fn func(addr.PFN)) {
	if n.pages != nil {
		for i := range n.pages {
			if f := n.pages[i].Load(); f != 0 {
				fn(addr.PFN(f &^ punched))
			}
		}
		return
	}
	for i := range n.kids {
		if kid := n.kids[i].Load(); kid != nil {
			kid.each(fn)
		}
	}
}

// fillPages is how many pages are read from a source at a time, at most: 64 KiB.
const fillPages = defaultAround

var pageBuffers = sync.Pool{New: func() any { return new([fillPages * addr.PageSize]byte) }}

// fill makes sure that a page is there. Where faults install more than one page,
// the window around it is read from the source in one go. Several may fill
// one page at a time; the first wins and the others' frames go back.
//
// Preconditions: the caller has a reference and is in no section.
//
// Errors: ErrNoMemory; ErrBus with the source's error; that of ctx.
func (o *Object) fill(ctx context.Context, a Accessor, index uint64) error {
	switch f := o.slot(index).Load(); {
	case f&punched != 0:
		o.punching.Lock() // until it is gone: the fault then asks again
		o.punching.Unlock()
		return nil
	case f != 0:
		return nil
	}
	if n := uint64(min(o.mem.around, fillPages)); n > 1 && o.src != nil {
		first := index &^ (n - 1)
		if o.fillRun(ctx, a, first, min(n, o.pages()-first)) == nil {
			return nil
		}
		// Too little memory for all, or one of the others cannot be read.
	}
	return o.fillRun(ctx, a, index, 1)
}

// fillRun reads n pages and installs those that are still absent.
func (o *Object) fillRun(ctx context.Context, a Accessor, first, n uint64) error {
	buf := pageBuffers.Get().(*[fillPages * addr.PageSize]byte)
	defer pageBuffers.Put(buf)
	if err := o.read(ctx, buf[:n*addr.PageSize], first); err != nil {
		return err
	}
	var frames [fillPages]addr.PFN
	if err := o.mem.allocate(frames[:n]); err != nil {
		return err
	}
	for i, f := range frames[:n] {
		for !o.store(a, f, buf[i*addr.PageSize:]) {
			o.mem.door.wait()
		}
		if o.slot(first+uint64(i)).CompareAndSwap(0, uint64(f)) {
			o.mem.objectPages.Inc()
			continue
		}
		o.mem.pool.Drop(f)
		o.mem.pool.FreeData(f)
	}
	return nil
}

// store copies a page to a frame that nobody knows yet, past the door.
func (o *Object) store(a Accessor, f addr.PFN, page []byte) bool {
	a.h.Enter(a.as.id)
	defer a.h.Exit()
	if !o.mem.door.passes() {
		return false
	}
	o.mem.stored(f)
	copy(o.mem.arena.Bytes(f), page)
	return true
}

// read reads whole pages from the source, what is past its end as zero.
func (o *Object) read(ctx context.Context, buf []byte, first uint64) error {
	if o.src == nil {
		clear(buf)
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	off := first * addr.PageSize
	want := min(uint64(len(buf)), o.size-off)
	n, err := o.src.ReadAt(buf[:want], int64(off))
	if uint64(n) < want {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("%w: read %s at %#x: %w", ErrBus, o.name, off, err)
	}
	clear(buf[want:])
	return nil
}
