package guestmem

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// The write-back model: a random sequence of all that stores to the pages of an object,
// moves them about, takes them out, or writes them back to a sink that fails now and
// then. The model is the bytes that the object holds, the tail of its last page
// included, and for each address space which page is where. What it holds the library to:
//
//   - After a Sync of a range that returned nil, the sink has the bytes of that range.
//   - When the last area, pin and reference has gone, it has all of them.
//   - Every read finds the model's bytes, through areas and by ReadAt.

const (
	wbBase     addr.GVA = 0x40000000
	wbSlots             = 8
	wbMost              = 40 // pages of the object, at most
	wbFar      addr.GVA = 1 << 30
	wbHuge              = wbBase + 4*wbFar // a leaf of 2 MiB around a slot
	wbRestless          = 24               // the last operations, for who reads a failure
)

var errWbSink = errors.New("the sink is broken")

// wbFile is a file that fails when it is told to.
type wbFile struct {
	memFile
	failing int // a call fails once this is 1, and counts it down
	how     int // how it fails

	broken bool // every write fails; memFile.mu
}

func (f *wbFile) fails() bool {
	if f.failing > 0 {
		f.failing--
		return f.failing == 0
	}
	return false
}

func (f *wbFile) WriteAt(p []byte, off int64) (int, error) {
	f.mu.Lock()
	broken := f.broken
	f.mu.Unlock()
	if broken {
		return 0, errWbSink
	}
	if f.fails() {
		switch f.how % 3 {
		case 0:
			return 0, errWbSink
		case 1:
			n, _ := f.memFile.WriteAt(p[:len(p)/2], off)
			return n, errWbSink
		default: // against the contract
			return f.memFile.WriteAt(p[:len(p)-1], off)
		}
	}
	return f.memFile.WriteAt(p, off)
}

func (f *wbFile) Truncate(size int64) error {
	if f.fails() {
		return errWbSink
	}
	return f.memFile.Truncate(size)
}

// wbUntold is a wbFile without its Truncate.
type wbUntold struct{ f *wbFile }

func (s wbUntold) ReadAt(p []byte, off int64) (int, error)  { return s.f.ReadAt(p, off) }
func (s wbUntold) WriteAt(p []byte, off int64) (int, error) { return s.f.WriteAt(p, off) }

// wbPage is a page of the object in an address space.
type wbPage struct {
	index uint64
	prot  Prot
}

type wbSpace struct {
	as    *AddressSpace
	pages map[addr.GVA]wbPage // of shared areas
	snaps []wbSnap
}

type wbSnap struct {
	s     *SpaceSnapshot
	pages map[addr.GVA]wbPage
}

// wbPin is a pin, and which pages of the object it holds, by the generation of each:
// who takes a page out begins another.
type wbPin struct {
	pin         *Pin
	write       bool
	first, gens []uint64
}

type wbWorld struct {
	tb       testing.TB
	g        *rand.Rand
	m        *Memory
	o        *Object
	sink     *wbFile
	told     bool // of truncations
	same     bool // the source is the sink
	released bool
	content  [wbMost * page]byte
	size     uint64
	gen      [wbMost]uint64
	spaces   []*wbSpace
	pins     []wbPin
	log      []string
	clock    uint64
}

func newWbWorld(tb testing.TB, seed uint64) *wbWorld {
	w := &wbWorld{tb: tb, g: rand.New(rand.NewPCG(seed, 604)), told: seed%2 == 0, same: seed%3 != 0, sink: &wbFile{}}
	around := 1
	if seed%4 < 2 {
		around = 16
	}
	m, err := NewMemory(MemoryOptions{Size: 64 << 20, FaultAround: around})
	mustDo(tb, err)
	w.m = m
	w.size = uint64(w.g.IntN(20)) * page
	if w.g.IntN(2) == 0 {
		w.size += uint64(w.g.IntN(int(page)))
	}
	for i := range w.size {
		w.content[i] = byte(i*7 + i/page)
	}
	w.sink.data = slices.Clone(w.content[:w.size])
	opts := ObjectOptions{Source: w.sink, Sink: w.sink, Size: int64(w.size), Name: "file",
		Lost: func(err error) { tb.Errorf("lost: %v", err) }, Released: func() { w.released = true }}
	if !w.told {
		opts.Sink = wbUntold{w.sink}
		opts.Source = opts.Sink.(wbUntold)
	}
	if !w.same {
		opts.Source = &memFile{data: slices.Clone(w.sink.data)}
	}
	w.o, err = m.NewObject(opts)
	mustDo(tb, err)
	w.addSpace(newSpace(tb, m), nil)
	return w
}

func (w *wbWorld) addSpace(as *AddressSpace, pages map[addr.GVA]wbPage) {
	if pages == nil {
		pages = map[addr.GVA]wbPage{}
	}
	w.spaces = append(w.spaces, &wbSpace{as: as, pages: pages})
}

func (w *wbWorld) note(format string, args ...any) {
	if len(w.log) == wbRestless {
		w.log = w.log[1:]
	}
	w.log = append(w.log, fmt.Sprintf(format, args...))
}

func (w *wbWorld) fatal(format string, args ...any) {
	w.tb.Helper()
	w.tb.Fatalf("%s\nafter\n\t%s", fmt.Sprintf(format, args...), strings.Join(w.log, "\n\t"))
}

// may fails the test on an error that is neither nil nor among those that may be.
func (w *wbWorld) may(err error, these ...error) {
	w.tb.Helper()
	if err == nil || slices.ContainsFunc(these, func(t error) bool { return errors.Is(err, t) }) {
		return
	}
	w.fatal("%v", err)
}

func (w *wbWorld) space() *wbSpace { return w.spaces[w.g.IntN(len(w.spaces))] }

// somePage returns a page that is mapped and lies in the object, with one of rights.
func (w *wbWorld) somePage(s *wbSpace, right Prot) (at addr.GVA, p wbPage, ok bool) {
	var can []addr.GVA
	for _, at := range slices.Sorted(maps.Keys(s.pages)) {
		if p := s.pages[at]; p.prot&right != 0 && p.index < pageCount(w.size) {
			can = append(can, at)
		}
	}
	if len(can) == 0 {
		return 0, p, false
	}
	at = can[w.g.IntN(len(can))]
	return at, s.pages[at], true
}

// run returns how many pages from at on follow one another in the object too.
func (s *wbSpace) run(at addr.GVA, right Prot, most uint64) (n uint64) {
	first := s.pages[at].index
	for n < most {
		if p, ok := s.pages[at+addr.GVA(n)*page]; !ok || p.prot&right == 0 || p.index != first+n {
			break
		}
		n++
	}
	return n
}

func (w *wbWorld) bytes(n uint64) []byte {
	p := make([]byte, n)
	w.clock++
	for i := range p {
		p[i] = byte(w.clock*31 + uint64(i))
	}
	return p
}

// stored takes what was stored to the object into the model.
func (w *wbWorld) stored(off uint64, p []byte) { copy(w.content[off:], p) }

// slot is where an area may begin: eight near one another, some far away, one within
// a leaf of 2 MiB.
func (w *wbWorld) slot() addr.GVA {
	switch i := w.g.IntN(wbSlots + 3); {
	case i < wbSlots:
		return wbBase + addr.GVA(i)*48*page
	case i < wbSlots+2:
		return wbBase + addr.GVA(i-wbSlots+1)*wbFar
	}
	return wbHuge + 100*page
}

// place maps n pages of the object at a place in the model, over what is there.
func (s *wbSpace) place(at addr.GVA, first, n uint64, prot Prot) {
	for i := range n {
		s.pages[at+addr.GVA(i)*page] = wbPage{first + i, prot}
	}
}

func (s *wbSpace) clear(at addr.GVA, n uint64) {
	for i := range n {
		delete(s.pages, at+addr.GVA(i)*page)
	}
}

// sinkHas compares a range of the sink with the model.
func (w *wbWorld) sinkHas(off, end uint64, when string) {
	w.tb.Helper()
	got := w.sink.bytes()
	for i := off; i < min(end, w.size); i++ {
		if i < uint64(len(got)) && got[i] != w.content[i] || i >= uint64(len(got)) && w.content[i] != 0 {
			w.fatal("%s: byte %#x of the sink is not %#x (it has %#x bytes, of %#x)", when, i, w.content[i], len(got), w.size)
		}
	}
	if w.told && uint64(len(got)) > w.size {
		w.fatal("%s: the sink has %#x bytes, the object %#x", when, len(got), w.size)
	}
}

// compare reads everything.
func (w *wbWorld) compare() {
	w.tb.Helper()
	p := make([]byte, w.size)
	if n, err := w.o.ReadAt(ctx, p, 0); n != len(p) {
		w.fatal("ReadAt: %d, %v", n, err)
	}
	for i := range p {
		if p[i] != w.content[i] {
			w.fatal("byte %#x of the object is %#x, want %#x", i, p[i], w.content[i])
		}
	}
	for i, s := range w.spaces {
		for at, p := range s.pages {
			if p.prot == ProtNone || p.index >= pageCount(w.size) {
				continue
			}
			got := make([]byte, page)
			if n, err := s.as.ReadAt(ctx, got, at); n != len(got) {
				w.fatal("space %d at %v, page %d: %d, %v", i, at, p.index, n, err)
			}
			if string(got) != string(w.content[p.index*page:][:page]) {
				w.fatal("space %d at %v: page %d reads something else", i, at, p.index)
			}
		}
	}
	w.may(w.m.Check())
}

// end closes everything in a random order, and compares what the sink has.
func (w *wbWorld) end() {
	w.sink.failing = 0
	if n, err := w.o.ReadAt(ctx, make([]byte, w.size), 0); n != int(w.size) { // while it can be read
		w.fatal("ReadAt: %d, %v", n, err)
	}
	var last []func()
	for _, s := range w.spaces {
		last = append(last, func() { w.may(s.as.Close()) })
		for _, k := range s.snaps {
			last = append(last, func() { w.may(k.s.Close()) })
		}
	}
	for _, p := range w.pins {
		last = append(last, func() {
			w.device(p)
			w.may(p.pin.Release())
		})
	}
	last = append(last, w.o.Close)
	w.g.Shuffle(len(last), func(i, k int) { last[i], last[k] = last[k], last[i] })
	for _, fn := range last {
		if w.released {
			w.note("released early")
		}
		fn()
	}
	if !w.released {
		w.fatal("the object has not ended")
	}
	w.sinkHas(0, w.size, "at the end")
	w.may(w.m.Check())
	if s := w.m.Stats(); s.FramesInUse != 0 || s.ObjectPages != 0 {
		w.fatal("left in use: %+v", s)
	}
	w.may(w.m.Close())
}

func TestObjectWriteBackAgainstModel(t *testing.T) {
	ops, seeds := 1500, uint64(12)
	if invariants.Enabled { // each section looks at its stack, each freed frame is filled
		ops, seeds = 250, 8
	}
	if *soak {
		ops, seeds = 20_000, 60
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWbWorld(t, seed)
			for i := range ops {
				w.step()
				if i%50 == 49 {
					w.sink.failing = 0
					w.compare()
				}
			}
			w.end()
		})
	}
}
