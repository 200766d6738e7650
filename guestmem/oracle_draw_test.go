package guestmem

import (
	"math/rand/v2"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Drawing operations. Addresses lie near one another, so that operations meet:
// a few hot pages over borders of tables, the ends of areas, what was mapped
// last; and some are odd: not aligned, of no or a huge length, overflowing, over
// holes, outside of the window.

// source is where the choices come from.
type source interface {
	intn(n int) int // below n; n > 0
	more() bool
}

type randomSource struct{ *rand.Rand }

func (s randomSource) intn(n int) int { return s.IntN(n) }
func (s randomSource) more() bool     { return true }

// byteSource takes choices from a fuzzer's bytes, and zero after their end.
type byteSource struct{ b []byte }

func (s *byteSource) more() bool { return len(s.b) > 0 }

func (s *byteSource) intn(n int) int {
	v := 0
	for top := n - 1; top > 0 && len(s.b) > 0; top >>= 8 {
		v = v<<8 | int(s.b[0])
		s.b = s.b[1:]
	}
	return v % n
}

// generator draws operations.
type generator struct {
	source
	window addr.Range
	hot    []addr.GVA
	top    addr.GVA // what is beyond every bound: the end of the lower half
	// below allows addresses under the window.
	below bool
	// What whoever draws knows of the family as it is now: slots in use, areas of
	// one of them, and pinned pages.
	slots []int
	areas []addr.Range
	pins  []pinnedPage

	recent [8]addr.Range // that were mapped last, if they were
	n      int
}

type pinnedPage struct {
	space int
	at    addr.GVA
}

const hotPages = 24

func newGenerator(s source, window addr.Range) *generator {
	g := &generator{source: s, window: window, top: 1 << 47}
	mid := (window.Start + offset(window.Len()/2)).RoundDown()
	for _, border := range []addr.GVA{1 << 30, 2 << 20} {
		at := (mid + border - 1) &^ (border - 1)
		if r := (addr.Range{Start: at - hotPages/2*page, End: at + hotPages/2*page}); window.ContainsRange(r) {
			g.hot = append(g.hot, r.Start)
			break
		}
	}
	if len(g.hot) == 0 {
		g.hot = append(g.hot, mid)
	}
	return g
}

// ops draws n operations, or fewer if the source ends.
func (g *generator) ops(n int) []op {
	var out []op
	for len(out) < n && g.more() {
		out = append(out, g.next())
	}
	return out
}

// decodeOps turns a fuzzer's bytes into operations, up to 500, on the default
// window.
//
// Limits are left to the oracle: the model has none.
func decodeOps(b []byte) []op {
	ops := newGenerator(&byteSource{b}, defaultWindow).ops(500)
	return slices.DeleteFunc(ops, func(o op) bool { return o.kind == opLimit })
}

// next draws one operation.
func (g *generator) next() op {
	sum := 0
	for _, k := range opTable {
		sum += k.weight
	}
	at := g.intn(sum)
	var o op
	for o.kind = 0; at >= opTable[o.kind].weight; o.kind++ {
		at -= opTable[o.kind].weight
	}
	switch n := g.intn(8); {
	case n == 0:
		o.space = g.intn(maxFamily)
	case n < 5 && len(g.slots) > 0:
		o.space = g.slots[g.intn(len(g.slots))]
	}
	o.data = uint64(g.intn(1 << 16))
	opTable[o.kind].draw(g, &o)
	o = withinMemory(g.window, o)
	if o.kind == opMap && o.at != 0 && o.length < 1<<30 {
		g.recent[g.n%len(g.recent)] = addr.Range{Start: o.at, End: o.at + addr.GVA(o.length)}
		g.n++
	}
	return o
}

// odd is true for one in twelve.
func (g *generator) odd() bool { return g.intn(12) == 11 }

// page draws the start of a page of the window, likely one where something is.
func (g *generator) page() addr.GVA {
	switch n := g.intn(24); {
	case n == 0:
		return g.window.Start + addr.GVA(g.intn(int(min(g.window.Len()/page, 1<<40))))*page
	case n == 1:
		if g.intn(2) == 0 {
			return g.window.Start + addr.GVA(g.intn(8))*page
		}
		return g.window.End - addr.GVA(1+g.intn(12))*page
	case n < 5:
		if r := g.recent[g.intn(len(g.recent))]; !r.IsEmpty() {
			return g.near(r)
		}
	case n < 16:
		if len(g.areas) > 0 {
			return g.near(g.areas[g.intn(len(g.areas))])
		}
	}
	return g.hot[g.intn(len(g.hot))] + addr.GVA(g.intn(hotPages))*page
}

// near draws a page of r, seldom one beside it, close to either end.
func (g *generator) near(r addr.Range) addr.GVA {
	start, n := r.Start.RoundDown(), int(min(r.Len()/page, 12))+1
	switch g.intn(8) {
	case 0:
		return g.inside(start - page)
	case 1, 2:
		return g.inside(r.End.RoundDown() - addr.GVA(g.intn(n))*page)
	}
	return g.inside(start + addr.GVA(g.intn(n))*page)
}

func (g *generator) inside(at addr.GVA) addr.GVA {
	return min(max(at, g.window.Start), g.window.End-page)
}

// outside draws an address that no area can have.
func (g *generator) outside() addr.GVA {
	list := []addr.GVA{g.window.End, g.window.End + 5, g.top, g.top + page, 1 << 63, ^addr.GVA(0), ^addr.GVA(0) &^ (page - 1)}
	if g.below {
		list = append(list, 0, 1, g.window.Start-page, g.window.Start-1)
	}
	return list[g.intn(len(list))]
}

// length draws a length of few pages, seldom of many, or of an odd number of
// bytes.
func (g *generator) length() uint64 {
	n := uint64(1+g.intn(8)) * page
	switch g.intn(24) {
	case 0:
		n = uint64(1+g.intn(64)) * page
	case 1:
		n = uint64(1+g.intn(3)) << 20
	case 2, 3:
		n -= uint64(g.intn(int(page)))
	}
	return n
}

// oddLength draws a length that fits nowhere, or nothing.
func (g *generator) oddLength(at addr.GVA) uint64 {
	list := []uint64{0, 0, ^uint64(0), ^uint64(0) &^ (page - 1), -uint64(at), 1 << 47, 1 << 63, g.window.Len(), g.window.Len() + page,
		uint64(g.window.End - at), uint64(g.window.End-at) + page}
	return list[g.intn(len(list))]
}

func drawNothing(*generator, *op) {}

// drawRange draws whole pages, seldom not.
func drawRange(g *generator, o *op) {
	o.at, o.length = g.page(), g.length()
	if end := g.window.End; o.at+addr.GVA(o.length) > end && g.intn(4) > 0 {
		o.length = uint64(end - o.at)
	}
	if !g.odd() {
		return
	}
	switch g.intn(4) {
	case 0:
		o.at += addr.GVA(1 + g.intn(int(page)-1))
	case 1:
		o.length = g.oddLength(o.at)
	case 2:
		o.at = g.outside()
	case 3:
		o.at, o.length = g.outside(), g.oddLength(o.at)
	}
}

func drawMap(g *generator, o *op) {
	drawRange(g, o)
	o.prot = g.prot()
	o.flags = MapPrivate
	switch n := g.intn(12); {
	case n < 4:
		o.object = 1 + g.intn(len(worldFiles))
		o.off = uint64(g.intn(12)) * page
		if o.object != 4 && o.object != firstWritable && o.object != len(worldFiles) {
			o.off = uint64(g.intn(3)) * page
		}
		switch {
		case o.object >= firstWritable && g.intn(3) > 0, n == 0 && g.intn(4) == 0:
			o.flags = MapShared
		case n == 0 && g.intn(4) == 0:
			o.flags = mapSharedValidate
		}
	case n < 7:
		o.flags = MapShared | MapAnonymous
	default:
		o.flags |= MapAnonymous
	}
	switch g.intn(12) {
	case 0, 1:
		o.at = 0
	case 2:
		o.at += addr.GVA(g.intn(int(page))) // a hint
	case 3:
		o.flags |= MapFixedNoReplace
	default:
		o.flags |= MapFixed
	}
	switch g.intn(16) {
	case 0:
		o.flags |= MapPopulate
	case 1:
		o.flags |= MapNoReserve
	case 2:
		o.flags |= MapStack
	case 3:
		o.flags |= MapFixedNoReplace
	}
	if n := g.intn(10); n == 0 || n < 3 && o.flags&mapType == MapPrivate && o.object == 0 {
		o.flags |= MapGrowsDown
	}
	if g.intn(24) == 0 {
		o.flags |= Map32Bit
	}
	if o.flags&(MapFixed|MapFixedNoReplace) == 0 && g.intn(6) == 0 {
		o.length = uint64(1+g.intn(3)) << 21
	}
	if !g.odd() {
		return
	}
	switch g.intn(6) {
	case 0:
		o.flags = o.flags&^mapType | [...]MapFlags{0, 3, 4, 5, 7, 15}[g.intn(6)]
	case 1:
		o.prot |= Prot(1+g.intn(15)) << 4
	case 2:
		o.off = []uint64{1, page + 1, 1<<63 - page, 1 << 63, ^uint64(0) &^ (page - 1), 1<<63 - 2*page}[g.intn(6)]
	case 3:
		o.flags |= []MapFlags{0x800, 0x1000, 0x10000 | MapPopulate, 0x200000, 0x800000}[g.intn(5)]
	case 4:
		o.flags ^= MapAnonymous // without a file, or with one that is not looked at
	}
}

func (g *generator) prot() Prot {
	return [...]Prot{rw, rw, rw, rw, rw, rw, r_, r_, r_, ProtNone, ProtWrite, ProtExec, rx, rw | ProtExec, rw | ProtExec, rw | ProtExec}[g.intn(16)]
}

func drawProtect(g *generator, o *op) {
	drawRange(g, o)
	o.prot = g.prot()
	if g.odd() {
		o.prot |= Prot(1+g.intn(31)) << 3
	}
	switch g.intn(24) {
	case 0, 1, 2:
		o.prot |= ProtGrowsDown
	case 3:
		o.prot |= [...]Prot{protGrowsUp, protGrows}[g.intn(2)]
	}
}

// drawBrk draws a break near the hot pages, where areas are in its way, and
// seldom one that is out of reach.
func drawBrk(g *generator, o *op) {
	o.at = g.window.Start + offset(g.window.Len()/2)
	o.at = o.at.RoundDown() + addr.GVA(30+g.intn(40))*page
	if g.intn(3) == 0 {
		o.at += addr.GVA(g.intn(int(page)))
	}
	if g.odd() {
		o.at = g.outside()
	}
}

// mostPopulated is how much a map populates, and mostHeap how much a break may
// ask for, of a memory that has an end.
const (
	mostPopulated = 4 << 20
	mostHeap      = 1 << 30
)

// withinMemory keeps an operation to what memory there is on both sides.
func withinMemory(window addr.Range, o op) op {
	switch {
	case o.kind == opMap && o.length > mostPopulated:
		o.flags &^= MapPopulate
	case o.kind == opAdvise && fillsTables(Advice(o.data)) && o.length > mostPopulated && uint64(o.at)+o.length >= o.length:
		// What does not wrap is done as far as there are areas, however long it is.
		o.length %= mostPopulated
	case o.kind == opBrk && window.Len() > mostHeap && o.at > window.End-page && o.at <= window.End:
		o.at = 1 << 63
	}
	return o
}

// fillsTables are advices that cost the kernel at least a table for 2 MiB.
func fillsTables(a Advice) bool {
	return a == AdvicePopulateRead || a == AdvicePopulateWrite || a == AdviceGuardInstall
}

// drawCopy draws bytes that may lie anywhere, and over the end of a page.
func drawCopy(g *generator, o *op) {
	o.at = g.page()
	o.length = uint64(1 + g.intn(64))
	switch g.intn(6) {
	case 0:
		o.length = uint64(1 + g.intn(int(3*page)))
	case 1:
		o.length = page
	case 2:
		o.length = uint64(1 << g.intn(4))
	}
	switch g.intn(4) {
	case 0:
		o.at += page - addr.GVA(g.intn(40))
	case 1, 2:
		o.at += addr.GVA(g.intn(int(page)))
	}
	if g.odd() {
		switch g.intn(3) {
		case 0:
			o.length = 0
		case 1:
			o.at = g.outside()
		case 2:
			o.at = g.window.End - addr.GVA(g.intn(100))
		}
	}
}

func drawString(g *generator, o *op) {
	drawCopy(g, o)
	if g.intn(3) == 0 {
		o.length = 4096
	}
}

func drawWord(g *generator, o *op) {
	o.at = g.page() + addr.GVA(g.intn(int(page)/8))*8
	if g.intn(3) == 0 {
		o.at = o.at.RoundDown() // the same words again
	}
	if g.odd() {
		o.at = g.outside()
	}
	o.at &^= 7
	o.data = uint64(g.intn(4)) * 0x0123456789abcdef
}

func drawTouch(g *generator, o *op) {
	drawCopy(g, o)
	o.prot = g.access()
}

func (g *generator) access() Access { return [...]Access{Read, Write, Execute}[g.intn(3)] }

// drawPages draws some pages to go through.
func drawPages(g *generator, o *op) {
	o.at, o.length = g.page(), uint64(1+g.intn(6))*page
	if g.intn(4) == 0 {
		o.at += addr.GVA(g.intn(int(page)))
		o.length -= uint64(g.intn(int(page)))
	}
	o.prot = [...]Access{Read, Write}[g.intn(2)]
}

// drawDevice draws a few bytes in one page.
func drawDevice(g *generator, o *op) {
	o.at, o.length = g.page(), 8
	if len(g.pins) > 0 && !g.odd() {
		p := g.pins[g.intn(len(g.pins))]
		o.space, o.at = p.space, p.at
	}
	o.at += addr.GVA(g.intn(int(page)/8)) * 8
}

func drawFork(g *generator, o *op) { o.data = uint64(g.intn(maxFamily)) }
