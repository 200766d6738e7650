package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Operations as values: what the oracle, the corners, the fuzzers and the
// broken variants all run. An op names everything by number, so that a sequence
// can be stored, shortened and printed. What each kind does on this side, how
// it is drawn, and what it is on the kernel's side, is one entry of opTable.

// maxFamily is how many address spaces a sequence has at a time, maxCopy what
// it copies at a time.
const (
	maxFamily = 4
	maxCopy   = 12 << 10
)

// op is one operation. The zero value of a field means nothing to a kind that
// does not use it.
type op struct {
	kind   opKind
	space  int // which of the family
	at     addr.GVA
	length uint64
	prot   Prot // to allow; of touch, populate and pin: the access
	flags  MapFlags
	object int // 1 and up: of opWorld.objects; 0: anonymous
	off    uint64
	to     addr.GVA // of remap: where it goes
	data   uint64   // seed of the bytes written, or the word; of fork: which slot the child gets; of advise, lock and sync: what
}

// String is the op as Go source, with absolute addresses.
func (o op) String() string { return o.source(addr.Range{}) }

// source is the op as Go source; addresses in the window are given by their
// page in it.
func (o op) source(window addr.Range) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{kind: %v", o.kind)
	if o.at >= window.Start && o.at < window.End {
		fmt.Fprintf(&b, ", at: p(%d)", (o.at-window.Start)/page)
		if off := o.at.PageOffset(); off != 0 {
			fmt.Fprintf(&b, " + %#x", off)
		}
	} else if o.at != 0 {
		fmt.Fprintf(&b, ", at: %v", o.at)
	}
	if o.to >= window.Start && o.to < window.End {
		fmt.Fprintf(&b, ", to: p(%d)", (o.to-window.Start)/page)
		if off := o.to.PageOffset(); off != 0 {
			fmt.Fprintf(&b, " + %#x", off)
		}
	} else if o.to != 0 {
		fmt.Fprintf(&b, ", to: %v", o.to)
	}
	for _, f := range []struct {
		name string
		v    uint64
	}{
		{"space", uint64(o.space)}, {"length", o.length}, {"prot", uint64(o.prot)},
		{"flags", uint64(o.flags)}, {"object", uint64(o.object)}, {"off", o.off}, {"data", o.data},
	} {
		if f.v != 0 {
			fmt.Fprintf(&b, ", %s: %#x", f.name, f.v)
		}
	}
	return b.String() + "}"
}

// trouble is what a CPU's access is told.
type trouble uint8

const (
	noTrouble trouble = iota
	troubleMap
	troubleAccess
	troubleBus
)

func troubleOf(err error) trouble {
	switch {
	case errors.Is(err, ErrNotMapped):
		return troubleMap
	case errors.Is(err, ErrAccess):
		return troubleAccess
	case errors.Is(err, ErrBus):
		return troubleBus
	}
	return noTrouble
}

// result is what an op answers. Both sides fill in the same fields for a kind.
type result struct {
	skipped bool // the op did not apply: no such space, or the slot is taken
	errno   syscall.Errno
	trouble trouble
	value   uint64 // an address, a word, a count of bytes or pages
	data    []byte // bytes read

	pinned bool // a device wrote through a pin; not compared
}

func (r result) equal(s result) bool {
	return r.skipped == s.skipped && r.errno == s.errno && r.trouble == s.trouble && r.value == s.value && bytes.Equal(r.data, s.data)
}

func (r result) String() string {
	if r.skipped {
		return "skipped"
	}
	s := fmt.Sprintf("%#x", r.value)
	if r.errno != 0 {
		s += fmt.Sprintf(", errno %d (%v)", r.errno, r.errno)
	}
	if r.trouble != 0 {
		s += fmt.Sprintf(", %s", [...]string{"", "SEGV_MAPERR", "SEGV_ACCERR", "SIGBUS"}[r.trouble])
	}
	if len(r.data) > 0 {
		s += fmt.Sprintf(", %d bytes %.16x", len(r.data), r.data)
	}
	return s
}

// A file of the world, which both sides map.
type worldFile struct {
	name string
	data []byte
	// access says that shared mappings may write; view that it is the file of
	// another number, opened once more.
	access ObjectAccess
	view   int
	// sparse says that the object has neither a source nor a sink, as a memfd has none.
	sparse bool
}

// worldFiles are what an op's object 1 and up are: of no length, less than a
// page, whole pages, and pages and a bit, which can only be read; then three that can
// be written too, the last of them sparse, and the first of them as somebody has it who
// may only read.
var worldFiles = func() []worldFile {
	files := []worldFile{{name: "oracle-empty"}, {name: "oracle-short"}, {name: "oracle-pages"}, {name: "oracle-long"},
		{name: "oracle-written"}, {name: "oracle-new"}, {name: "oracle-sparse", sparse: true}, {name: "oracle-written", view: firstWritable}}
	for i, n := range []uint64{0, 100, 4 * page, 37*page + 1234, 9*page + 700, 0, 0, 0} {
		files[i].data = patternOf(uint64(i)+77, int(n))
		if files[i].access = ObjectReadOnly; i+1 >= firstWritable && i+1 < firstWritable+writableFiles {
			files[i].access = ObjectReadWrite
		}
	}
	return files
}()

// firstWritable is the number of the first of the files that can be written.
const (
	firstWritable = 5
	writableFiles = 3
)

// patternOf returns n bytes that are the seed's. Every 16th seed is all RET
// instructions, every 16th has no zero byte, and the others a few.
func patternOf(seed uint64, n int) []byte {
	p := make([]byte, n)
	x := seed*0x9e3779b97f4a7c15 + 1
	for i := range p {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		switch b := byte(x >> 24); {
		case seed%16 == 0:
			p[i] = retByte
		case seed%16 == 1:
			p[i] = b | 1
		case x>>32%32 == 0:
			p[i] = 0
		case x>>32%8 == 1:
			p[i] = retByte
		default:
			p[i] = b
		}
	}
	return p
}

// retByte is the one-byte instruction that an execute access runs.
const retByte = 0xc3

// worldOptions say what a world is made of; the zero value is usable.
type worldOptions struct {
	window    addr.Range // where areas may lie; defaultWindow if empty
	placement Placement
	maxAreas  int
	maxLocked int64
	size      uint64   // of the memory; 64 MiB if 0
	brk       addr.GVA // where the heap begins; 0: in the window's middle
	memory    MemoryOptions
}

// defaultWindow lies over the border of two 1 GiB tables.
var defaultWindow = addr.Range{Start: 0x2_0000_0000 - 16<<20, End: 0x2_0000_0000 + 16<<20}

// heapStart is where the heap of a window begins.
func heapStart(window addr.Range) addr.GVA {
	return (window.Start + offset(window.Len()/2)).RoundDown() + 40*page
}

// opWorld is this side of a sequence: a family of address spaces and the objects
// and pins of its operations. It is for one goroutine, but for several that
// apply only ops that neither fork, close, pin nor unpin.
type opWorld struct {
	mem     *Memory
	window  addr.Range
	spaces  [maxFamily]*AddressSpace
	objects []*Object
	sinks   []*memFile // of those that can be written, nil of the others
	pins    []*Pin
}

func newOpWorld(o worldOptions) (*opWorld, error) {
	if o.window.IsEmpty() {
		o.window = defaultWindow
	}
	if o.brk == 0 {
		o.brk = heapStart(o.window)
	}
	mo := o.memory
	if mo.Size = o.size; mo.Size == 0 {
		mo.Size = 64 << 20
	}
	m, err := NewMemory(mo)
	if err != nil {
		return nil, err
	}
	w := &opWorld{mem: m, window: o.window}
	for _, f := range worldFiles {
		if err := w.addFile(f); err != nil {
			return nil, errors.Join(err, w.close())
		}
	}
	as, err := m.NewAddressSpace(SpaceOptions{Lowest: o.window.Start, Highest: o.window.End, Placement: o.placement, MaxAreas: o.maxAreas, MaxLocked: o.maxLocked})
	if err != nil {
		return nil, errors.Join(err, w.close())
	}
	as.SetBreak(o.brk)
	w.spaces[0] = as
	return w, nil
}

// close ends everything, and reports what Check finds, before and after, and
// what is left in use.
func (w *opWorld) close() error {
	var errs []error
	errs = append(errs, w.mem.Check())
	for _, p := range w.pins {
		p.Release()
	}
	w.pins = nil
	for i, as := range w.spaces {
		if as != nil {
			errs = append(errs, as.Close())
			w.spaces[i] = nil
		}
	}
	errs = append(errs, w.closeFiles())
	w.objects = nil
	errs = append(errs, w.mem.Check())
	if s := w.mem.Stats(); s.FramesInUse != 0 || s.Tables != 0 || s.ObjectPages != 0 {
		errs = append(errs, fmt.Errorf("left in use: %+v", s))
	}
	return errors.Join(append(errs, w.mem.Close())...)
}

// alive returns how many spaces there are.
func (w *opWorld) alive() (n int) {
	for _, as := range w.spaces {
		if as != nil {
			n++
		}
	}
	return n
}

// pinnedPages lists the pages that are pinned, of spaces that are open.
func (w *opWorld) pinnedPages() (out []pinnedPage) {
	for _, p := range w.pins {
		for slot, as := range w.spaces {
			if as == p.as {
				for at := p.r.Start; at < p.r.End; at += page {
					out = append(out, pinnedPage{slot, at})
				}
			}
		}
	}
	return out
}

// applySoftware runs an op on this side.
func applySoftware(w *opWorld, o op) result {
	if o.space < 0 || o.space >= maxFamily || w.spaces[o.space] == nil || int(o.kind) >= len(opTable) {
		return result{skipped: true}
	}
	return opTable[o.kind].software(w, w.spaces[o.space], o)
}
