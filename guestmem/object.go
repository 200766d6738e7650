package guestmem

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/vmarea"
)

// Object is what areas map besides private anonymous memory: pages that are the
// same for everyone who maps them, in any address space. It is a page cache over a
// source, or, without one, what shared anonymous areas are made of. Safe for
// concurrent use.
//
// It has one copy of each page, a frame, which all shared areas lead to; so a store
// through one of them is seen through the others at once, and by ReadAt, and
// what WriteAt writes is seen by all of them. Nothing but the object writes to its
// source: who lets others write to a file that is mapped has them use WriteAt.
type Object struct {
	mem      *Memory
	src      io.ReaderAt // nil: pages begin empty
	dst      io.WriterAt // nil: nothing is written back
	name     string
	readOnly bool // shared areas may not be written

	anonymous bool     // of a shared anonymous area
	host      *os.File // nil, or what its pages are mappings of
	device    *Region  // nil, or what it shows, from deviceAt on; it has no pages then
	deviceAt  addr.GPA
	lost      func(error)
	released  func()
	// All of the above is immutable.

	refs atomic.Int64             // its creator, each space that maps it, each page held, each fill
	root atomic.Pointer[pageRoot] // atomic throughout
	size atomic.Uint64            // bytes; stored under mu, with punching held

	// syncing is held by who writes back or truncates, also while that is under
	// way at the source, so that of two writes of a page the older comes first. No
	// fault takes it. Above punching.
	syncing sync.Mutex
	// punching is held, not shared, while pages are taken out, or their writes
	// are withheld; above every change lock. Who finds a page that is being taken out
	// waits for it. ReadAt and WriteAt hold it shared while they copy.
	punching sync.RWMutex

	mu       sync.Mutex     // innermost; nothing is done under it but what follows
	cuts     uint64         // how often something was taken out, counted before and after; mu
	removing span           // what is being taken out of the source too; mu
	believed uint64         // how far from its start the source is what the object holds; mu
	emptied  runList        // below that, where it is not, and the object holds zeroes; mu
	held     map[uint64]int // how many pins for writing hold a page; mu
	reached  uint64         // how far the sink has something; syncing
	stale    uint64         // from where on that may be what was cut off; syncing
}

// ObjectAccess is what shared areas of an object may do.
type ObjectAccess uint8

// What shared areas may do. Private ones may be written in any case.
const (
	ObjectReadWrite ObjectAccess = iota
	ObjectReadOnly
)

// ObjectOptions say what an object is made of.
type ObjectOptions struct {
	// Source is what the object holds to begin with, Size bytes of it, read a
	// page, or a few, at a time when they are first touched. Nil: it is empty,
	// Size bytes of zeroes.
	Source io.ReaderAt
	// Sink is where Sync writes what has changed; nil with a source: it may not be
	// mapped shared and writable. If it has a method Truncate(int64) error, that is
	// told of each Truncate; one without is given zeroes where the object grows over
	// what it was cut back from. It is commonly the same file as Source; another one
	// is given only what has changed.
	Sink io.WriterAt
	Size int64
	Name string
	// Access limits shared areas.
	Access ObjectAccess
	// Lost, if not nil, is told when what was written could not be written back
	// at the end of the object, where there is nobody else to tell. It is
	// called without a lock.
	Lost func(error)
	// Released, if not nil, is called when nobody maps the object nor holds it any
	// more, and all that was to be written back is: to close the source. Like Lost it is
	// called without a lock of the library's, by whoever gives the last reference back:
	// Close, a change of areas, or a call of the object's that was under way at its Close.
	Released func()
}

// pageRoot is the root of the tree of pages, of as many levels as the largest page
// needs so far.
type pageRoot struct {
	node *pageNode
	high int
}

// pageNode is a node of a radix tree from page number to frame: small, so that
// a guest which touches few pages far apart costs little host memory (at most
// 0.6 KiB a level and page).
type pageNode struct {
	kids  *[nodeSize]atomic.Pointer[pageNode] // above the lowest level; immutable
	pages *[nodeSize]atomic.Uint64            // at the lowest level; frame, 0 if absent, and pageMarks; immutable
}

const (
	nodeBits = 6
	nodeSize = 1 << nodeBits

	// punched marks a page of an object that is being taken out, beside its frame.
	punched = 1 << 63
	// changed marks one that is to be written back. Where an object has a sink, a
	// leaf that may be written leads to a page with this mark.
	changed   = 1 << 62
	pageMarks = punched | changed
)

func newPageNode(level int) *pageNode {
	if level == 0 {
		return &pageNode{pages: new([nodeSize]atomic.Uint64)}
	}
	return &pageNode{kids: new([nodeSize]atomic.Pointer[pageNode])}
}

// NewFileObject returns an object over the first size bytes of src that shared
// areas can only read: NewObject with a source alone.
//
// Errors: ErrInvalid if src is nil or size is negative.
func (m *Memory) NewFileObject(src io.ReaderAt, size int64, name string) (*Object, error) {
	if src == nil {
		return nil, opError("new file object", addr.Range{}, ErrInvalid)
	}
	return m.NewObject(ObjectOptions{Source: src, Size: size, Name: name})
}

// NewObject returns an object. The source must not change but by the object. The
// end of the last page reads as zero; pages past it are ErrBus.
//
// The caller owns a reference: Close gives it back, and the object ends when no
// area maps it any more.
//
// Errors: ErrInvalid if the size is negative, or there is a sink without a source;
// ErrNotSupported for a memory without a frame pool; ErrClosed.
func (m *Memory) NewObject(o ObjectOptions) (*Object, error) {
	switch {
	case o.Size < 0:
		return nil, opError("new object", addr.Range{}, fmt.Errorf("size %d: %w", o.Size, ErrInvalid))
	case o.Source == nil && o.Sink != nil:
		return nil, opError("new object", addr.Range{}, fmt.Errorf("a sink without a source: %w", ErrInvalid))
	case m.pool == nil:
		return nil, opError("new object", addr.Range{}, errNoPool)
	}
	obj, err := m.newObject(o)
	if err != nil {
		return nil, opError("new object", addr.Range{}, err)
	}
	return obj, nil
}

// newObject makes an object, whose one reference is the caller's.
//
// Errors: ErrClosed.
func (m *Memory) newObject(opts ObjectOptions) (*Object, error) {
	size := uint64(opts.Size)
	o := &Object{
		mem: m, src: opts.Source, dst: opts.Sink, name: opts.Name, lost: opts.Lost, released: opts.Released,
		readOnly: opts.Access == ObjectReadOnly || opts.Source != nil && opts.Sink == nil,
		believed: size, reached: size, stale: math.MaxUint64,
	}
	o.size.Store(size)
	o.root.Store(&pageRoot{newPageNode(0), 1})
	o.refs.Store(1)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, ErrClosed
	}
	m.objects[o] = struct{}{}
	return o, nil
}

// BackingName implements vmarea.Backing.
func (o *Object) BackingName() string { return o.name }

// Size returns the object's length in bytes.
func (o *Object) Size() uint64 { return o.size.Load() }

// IsStorable reports whether an area shows the object whose stores reach it: a shared
// one that is writable, or may become so. Snapshots of address spaces count too.
// O(areas) of the spaces that map it; who maps it meanwhile is not told of.
func (o *Object) IsStorable() (found bool) {
	for _, as := range o.mem.sortedSpaces() {
		c, err := as.startChange()
		if err != nil {
			continue // it is closed
		}
		if as.objects[o] > 0 {
			c.areas.Ascend(0, func(a *vmarea.Area) bool {
				found = a.Backing == vmarea.Backing(o) && a.Flags&(vmarea.Shared|vmarea.ReadOnly) == vmarea.Shared
				return !found
			})
		}
		if c.abort(); found {
			return true
		}
	}
	return false
}

// Close gives the creator's reference back. What has changed and was not written back
// is when the last reference goes, of areas and of pins for writing: by Sync before,
// its error is known. A call that is under way keeps the object until it returns; once
// the object has ended, Map and its methods answer ErrClosed.
//
// Preconditions: it is called once.
func (o *Object) Close() { o.unref() }

// ref takes a further reference.
//
// Preconditions: somebody has one meanwhile.
func (o *Object) ref() {
	if n := o.refs.Add(1); invariants.Enabled && n <= 1 {
		panic("guestmem: reference to object " + o.name + ", which has ended")
	}
}

// hold takes a reference for the time of a call of the embedder, who may have closed the
// object, or be closing it: its frames are somebody else's once it has ended, a page
// table's perhaps.
//
// Errors: ErrClosed.
func (o *Object) hold() error {
	for {
		switch n := o.refs.Load(); {
		case n <= 0:
			return ErrClosed
		case o.refs.CompareAndSwap(n, n+1):
			return nil
		}
	}
}

// unref drops a reference; the last one ends the object and drops its pages.
// Nobody can be following them: a space gives up its reference after the grace
// period of the change that took its last area of the object away.
//
// Preconditions: no lock is held, and no section open.
func (o *Object) unref() {
	switch n := o.refs.Add(-1); {
	case n < 0:
		panic("guestmem: object " + o.name + " closed once too often")
	case n > 0:
		return
	}
	if err := o.writeBackAll(); err != nil && o.lost != nil {
		o.lost(err)
	}
	o.mem.mu.Lock()
	delete(o.mem.objects, o)
	o.mem.ending++ // its frames are still to come
	o.mem.mu.Unlock()
	var frames []addr.PFN
	o.each(func(f addr.PFN) { frames = append(frames, f) })
	o.mem.objectPages.Sub(uint64(len(frames)))
	o.dropPages(frames)
	o.mem.mu.Lock()
	o.mem.ending--
	o.mem.mu.Unlock()
	if o.released != nil {
		o.released()
	}
}

// pageCount returns the number of pages that a length touches.
func pageCount(size uint64) uint64 {
	n, ok := addr.RoundUpLength(size)
	if !ok {
		return math.MaxUint64 / addr.PageSize
	}
	return n / addr.PageSize
}

// pages returns the number of pages.
func (o *Object) pages() uint64 { return pageCount(o.size.Load()) }

// tracks reports whether stores to the object's pages are noted, to be written back.
func (o *Object) tracks() bool { return o.dst != nil }

// mayChange reports whether somebody may store to the object's pages.
func (o *Object) mayChange() bool { return !o.readOnly || o.host != nil }

// find returns where the frame of a page is kept, nil if there is no place yet.
func (o *Object) find(index uint64) *atomic.Uint64 {
	r := o.root.Load()
	if index>>(nodeBits*r.high) != 0 {
		return nil
	}
	n := r.node
	for level := r.high - 1; level > 0; level-- {
		if n = n.kids[index>>(nodeBits*level)%nodeSize].Load(); n == nil {
			return nil
		}
	}
	return &n.pages[index%nodeSize]
}

// page returns the frame of a page, without waiting.
//
// Preconditions: the caller keeps the object alive.
func (o *Object) page(index uint64) (addr.PFN, bool) {
	p := o.find(index)
	if p == nil {
		return 0, false
	}
	f := p.Load()
	return addr.PFN(f &^ pageMarks), f != 0 && f&punched == 0
}

// noteStore marks a page as changed, before it becomes writable or is written. It
// returns false, with nothing done, if the page is not there or being taken out.
//
// Preconditions: as page.
func (o *Object) noteStore(index uint64) bool {
	p := o.find(index)
	if p == nil {
		return false
	}
	for {
		switch f := p.Load(); {
		case f == 0 || f&punched != 0:
			return false
		case f&changed != 0 || p.CompareAndSwap(f, f|changed):
			return true
		}
	}
}

// slot is find that makes nodes as needed, and a higher root: what is below the old
// one is found by both.
func (o *Object) slot(index uint64) *atomic.Uint64 {
	r := o.root.Load()
	for index>>(nodeBits*r.high) != 0 {
		up := &pageRoot{newPageNode(r.high), r.high + 1}
		up.node.kids[0].Store(r.node)
		o.root.CompareAndSwap(r, up)
		r = o.root.Load()
	}
	n := r.node
	for level := r.high - 1; level > 0; level-- {
		kid := &n.kids[index>>(nodeBits*level)%nodeSize]
		if kid.Load() == nil {
			kid.CompareAndSwap(nil, newPageNode(level-1))
		}
		n = kid.Load()
	}
	return &n.pages[index%nodeSize]
}

// each calls fn for every page that is there.
func (o *Object) each(fn func(addr.PFN)) {
	o.eachSlot(0, math.MaxUint64>>nodeBits, func(_ uint64, p *atomic.Uint64) {
		if f := p.Load(); f != 0 {
			fn(addr.PFN(f &^ pageMarks))
		}
	})
}

// eachSlot calls fn where pages of a run are kept, if there is a place for them.
func (o *Object) eachSlot(first, n uint64, fn func(index uint64, p *atomic.Uint64)) {
	end := first + n
	if end < first {
		end = math.MaxUint64
	}
	r := o.root.Load()
	r.node.eachSlot(r.high-1, 0, first, end, fn)
}

func (n *pageNode) eachSlot(level int, at, first, end uint64, fn func(uint64, *atomic.Uint64)) {
	size := uint64(1) << (nodeBits * level)
	for i := range uint64(nodeSize) {
		from := at + i*size
		if from+size <= first || from >= end {
			continue
		}
		if level == 0 {
			fn(from, &n.pages[i])
		} else if kid := n.kids[i].Load(); kid != nil {
			kid.eachSlot(level-1, from, first, end, fn)
		}
	}
}

// ioError names what a source or sink has failed with.
func (o *Object) ioError(what string, off uint64, err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %s %s at %#x: %w", ErrIO, what, o.name, off, err)
}
