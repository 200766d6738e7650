package guestmem

import (
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"slices"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// wbOps are the operations of the write-back model, the more often the more stores.
var wbOps = slices.Concat(
	slices.Repeat([]func(*wbWorld){(*wbWorld).storeBytes, (*wbWorld).deviceStores}, 5),
	slices.Repeat([]func(*wbWorld){(*wbWorld).storeWord, (*wbWorld).storeAsCPU, (*wbWorld).mapSome, (*wbWorld).syncRange}, 3),
	slices.Repeat([]func(*wbWorld){(*wbWorld).writeObject, (*wbWorld).protect, (*wbWorld).pinSome, (*wbWorld).release, (*wbWorld).syncSpace,
		(*wbWorld).fail, (*wbWorld).move}, 2),
	[]func(*wbWorld){(*wbWorld).truncate, (*wbWorld).remove, (*wbWorld).advise, (*wbWorld).unmap, (*wbWorld).fork, (*wbWorld).exit,
		(*wbWorld).snapshot, (*wbWorld).rollBack, (*wbWorld).rollBack, (*wbWorld).mapHuge, (*wbWorld).mapPrivate},
)

func (w *wbWorld) step() { wbOps[w.g.IntN(len(wbOps))](w) }

// fail has the sink fail at one of its next calls.
func (w *wbWorld) fail() {
	if w.sink.failing, w.sink.how = w.g.IntN(4), w.g.IntN(3); w.sink.failing > 0 {
		w.note("the sink will fail at call %d", w.sink.failing)
	}
}

func (w *wbWorld) storeBytes() {
	s := w.space()
	at, p, ok := w.somePage(s, ProtWrite)
	if !ok {
		return
	}
	in := uint64(w.g.IntN(int(page)))
	length := s.run(at, ProtWrite, 3)*page - in
	b := w.bytes(1 + w.g.Uint64N(length))
	var n int
	var err error
	if w.g.IntN(2) == 0 {
		n, err = s.as.WriteAt(ctx, b, at+addr.GVA(in))
	} else {
		h := w.m.NewHandle()
		n, err = s.as.With(h).WriteAt(ctx, b, at+addr.GVA(in))
		h.Close()
	}
	w.note("store %#x of %#x bytes at %v, page %d: %v", n, len(b), at+addr.GVA(in), p.index, err)
	w.stored(p.index*page+in, b[:n])
	w.may(err, ErrBus)
	if err != nil && p.index*page+in+uint64(n) < pageCount(w.size)*page {
		w.fatal("%v before the end", err)
	}
}

func (w *wbWorld) storeWord() {
	s := w.space()
	at, p, ok := w.somePage(s, ProtWrite)
	if !ok {
		return
	}
	in := uint64(w.g.IntN(int(page)/8)) * 8
	b := w.bytes(8)
	v := binary.LittleEndian.Uint64(b)
	old := binary.LittleEndian.Uint64(w.content[p.index*page+in:])
	w.note("store a word at %v, page %d", at+addr.GVA(in), p.index)
	switch w.g.IntN(3) {
	case 0:
		w.may(s.as.Store64(ctx, at+addr.GVA(in), v))
	case 1:
		w.may(s.as.Store32(ctx, at+addr.GVA(in), uint32(v)))
		b = b[:4]
	default:
		swapped, err := s.as.CompareAndSwap64(ctx, at+addr.GVA(in), old, v)
		if w.may(err); !swapped {
			w.fatal("%v has something else than %#x", at+addr.GVA(in), old)
		}
	}
	w.stored(p.index*page+in, b)
}

// storeAsCPU stores where the page table lets a CPU store, without a fault.
func (w *wbWorld) storeAsCPU() {
	s := w.space()
	at, p, ok := w.somePage(s, ProtWrite)
	if !ok {
		return
	}
	if s.as.leafEntry(at).Has(pagetable.Writable) {
		f, ok := s.as.pt.Translate(at, needFor(Write))
		if !ok {
			return // on a path that is shared
		}
		in, b := uint64(w.g.IntN(int(page)-8)), w.bytes(8)
		w.note("a CPU stores to page %d", p.index)
		copy(w.m.arena.Bytes(f)[in:], b)
		w.stored(p.index*page+in, b)
	}
}

func (w *wbWorld) writeObject() {
	off := w.g.Uint64N(min(w.size+2*page, wbMost*page-1) + 1)
	b := w.bytes(1 + w.g.Uint64N(min(2*page, wbMost*page-off)))
	n, err := w.o.WriteAt(ctx, b, int64(off))
	w.note("WriteAt %#x, %#x bytes: %d, %v", off, len(b), n, err)
	w.may(err)
	w.stored(off, b[:n])
	w.size = max(w.size, off+uint64(n))
}

func (w *wbWorld) mapSome() {
	s, at := w.space(), w.slot()
	first, n := w.g.Uint64N(wbMost-1), 1+w.g.Uint64N(16)
	prot := []Prot{rw, rw, rw, ProtRead, ProtWrite}[w.g.IntN(5)]
	w.note("map pages %d to %d at %v, %v", first, first+n, at, prot)
	_, err := s.as.Map(ctx, MapOptions{Addr: at, Length: n * page, Prot: prot, Flags: MapShared | MapFixed, Object: w.o, Offset: first * page})
	w.may(err)
	s.place(at, first, n, prot)
	if w.g.IntN(2) == 0 { // as a neighbour
		_, err := s.as.Map(ctx, MapOptions{Addr: at + addr.GVA(n)*page, Length: page, Prot: rw, Flags: MapPrivate | MapAnonymous | MapFixed})
		w.may(err)
		s.clear(at+addr.GVA(n)*page, 1)
		_, err = s.as.WriteAt(ctx, []byte("neighbour"), at+addr.GVA(n)*page)
		w.may(err)
	}
}

// mapPrivate stores to private copies, which are nobody else's.
func (w *wbWorld) mapPrivate() {
	s, at := w.space(), w.slot()
	w.note("a private view at %v", at)
	_, err := s.as.Map(ctx, MapOptions{Addr: at, Length: 8 * page, Prot: rw, Flags: MapPrivate | MapFixed, Object: w.o})
	w.may(err)
	s.clear(at, 8)
	_, err = s.as.WriteAt(ctx, make([]byte, 8*page), at)
	w.may(err, ErrBus)
}

// mapHuge maps 2 MiB, of which a part may be made the object's.
func (w *wbWorld) mapHuge() {
	s := w.space()
	w.note("2 MiB at %v", wbHuge)
	_, err := s.as.Map(ctx, MapOptions{Addr: wbHuge, Length: 2 << 20, Prot: rw, Flags: MapPrivate | MapAnonymous | MapFixed})
	w.may(err)
	s.clear(wbHuge, 512)
	w.may(s.as.Advise(ctx, wbHuge, 2<<20, AdviceHugePage))
	_, err = s.as.WriteAt(ctx, []byte("huge"), wbHuge+100*page)
	w.may(err)
	w.may(s.as.Advise(ctx, wbHuge, 2<<20, AdviceCollapse), ErrNoMemory)
}

func (w *wbWorld) protect() {
	s := w.space()
	at, _, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	n := s.run(at, protAll, 1+w.g.Uint64N(6))
	prot := []Prot{rw, rw, ProtRead, ProtWrite}[w.g.IntN(4)]
	w.note("protect %d pages at %v: %v", n, at, prot)
	w.may(s.as.Protect(at, n*page, prot))
	s.place(at, s.pages[at].index, n, prot)
}

func (w *wbWorld) unmap() {
	s := w.space()
	at, _, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	n := s.run(at, protAll, 1+w.g.Uint64N(6))
	w.note("unmap %d pages at %v", n, at)
	w.may(s.as.Unmap(at, n*page))
	s.clear(at, n)
}

// move moves pages, leaves the source mapped, or makes a second view.
func (w *wbWorld) move() {
	s, to := w.space(), w.slot()
	at, p, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	n := s.run(at, p.prot, 1+w.g.Uint64N(6))
	for i := range n { // one area
		if q := s.pages[at+addr.GVA(i)*page]; q.prot != p.prot {
			n = i
			break
		}
	}
	if (addr.Range{Start: at, End: at + addr.GVA(n)*page}).Overlaps(addr.Range{Start: to, End: to + addr.GVA(n)*page}) {
		return
	}
	o := RemapOptions{Addr: at, OldLength: n * page, NewLength: n * page, NewAddr: to, Flags: RemapMayMove | RemapFixed}
	keep := false
	switch w.g.IntN(3) {
	case 0:
		o.OldLength, keep = 0, true
	case 1:
		o.Flags, keep = o.Flags|RemapDontUnmap, true
	}
	_, err := s.as.Remap(ctx, o)
	w.note("move %d pages from %v to %v, kept: %v: %v", n, at, to, keep, err)
	w.may(err)
	if !keep {
		s.clear(at, n)
	}
	s.place(to, p.index, n, p.prot)
}

func (w *wbWorld) pinSome() {
	s := w.space()
	at, p, ok := w.somePage(s, ProtWrite)
	if !ok || len(w.pins) > 12 {
		return
	}
	n := min(s.run(at, ProtWrite, 3), pageCount(w.size)-p.index)
	access := []Access{Write, Write, Read}[w.g.IntN(3)]
	pin, err := s.as.Pin(ctx, addr.Range{Start: at, End: at + addr.GVA(n)*page}, access)
	w.note("pin %d pages at %v, from page %d on: %v: %v", n, at, p.index, access, err)
	w.may(err)
	k := wbPin{pin: pin, write: access == Write}
	for i := range n {
		k.first, k.gens = append(k.first, p.index+i), append(k.gens, w.gen[p.index+i])
	}
	w.pins = append(w.pins, k)
}

// device stores through a pin, if it may.
func (w *wbWorld) device(p wbPin) {
	if !p.write {
		return
	}
	i := w.g.IntN(len(p.first))
	in, b := w.g.Uint64N(page-64), w.bytes(1+w.g.Uint64N(64))
	w.note("a device stores to page %d", p.first[i])
	_, err := w.m.WriteAt(b, p.pin.Frames()[i].GPA()+addr.GPA(in))
	w.may(err)
	if w.gen[p.first[i]] == p.gens[i] {
		w.stored(p.first[i]*page+in, b)
	}
}

func (w *wbWorld) deviceStores() {
	if len(w.pins) > 0 {
		w.device(w.pins[w.g.IntN(len(w.pins))])
	}
}

func (w *wbWorld) release() {
	if len(w.pins) == 0 {
		return
	}
	i := w.g.IntN(len(w.pins))
	w.device(w.pins[i])
	w.note("release %v", w.pins[i].pin.Range())
	w.may(w.pins[i].pin.Release())
	w.pins = slices.Delete(w.pins, i, i+1)
}

func (w *wbWorld) syncRange() {
	off, n := uint64(0), ^uint64(0)
	if w.g.IntN(2) == 0 {
		off, n = w.g.Uint64N(wbMost*page), 1+w.g.Uint64N(8*page)
	}
	err := w.o.Sync(ctx, off, n)
	w.note("sync %#x, %#x bytes: %v", off, n, err)
	if w.may(err, errWbSink, io.ErrShortWrite); err == nil {
		w.sinkHas(off, max(off, off+n), "after Sync")
	}
}

func (w *wbWorld) syncSpace() {
	s := w.space()
	at, p, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	n := s.run(at, protAll, 8)
	err := s.as.Sync(at, n*page, SyncWait)
	w.note("msync %d pages at %v: %v", n, at, err)
	if w.may(err, errWbSink, io.ErrShortWrite); err == nil {
		w.sinkHas(p.index*page, (p.index+n)*page, "after msync")
	}
}

func (w *wbWorld) truncate() {
	size := w.g.Uint64N(wbMost * page)
	if w.g.IntN(3) == 0 {
		size &^= page - 1
	}
	err := w.o.Truncate(int64(size))
	w.note("truncate %#x to %#x: %v", w.size, size, err)
	if w.may(err, errWbSink); err != nil {
		return
	}
	if size < w.size {
		clear(w.content[size:])
		for i := pageCount(size); i < wbMost; i++ {
			w.gen[i]++
		}
	}
	w.size = size
}

func (w *wbWorld) remove() {
	s := w.space()
	at, p, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	n := s.run(at, protAll, 1+w.g.Uint64N(4))
	if !w.same {
		// A sink that fails half-way has part of what nobody has read zeroed, which the
		// source still has: the two differ from then on.
		w.sink.failing = 0
	} else if w.sink.failing > 0 {
		n = 1 // of several areas, those below the one that fails are done
	}
	there := [wbMost]bool{}
	for i := range uint64(wbMost) {
		_, there[i] = w.o.page(i)
	}
	before := slices.Clone(w.sink.bytes())
	err := s.as.Advise(ctx, at, n*page, AdviceRemove)
	w.note("remove %d pages from page %d on: %v", n, p.index, err)
	w.may(err, errWbSink, io.ErrShortWrite)
	for i := p.index; i < min(p.index+n, pageCount(w.size)); i++ {
		switch b := w.content[i*page:][:page]; {
		case err == nil:
			clear(b)
			w.gen[i]++
		case !there[i] && w.same:
			// Of what nobody has read, the file has what it has: part of it was zeroed.
			// Where it had something else than the object, it keeps what a truncation
			// has cut off, of which it was not told, and the object has zeroes.
			got := w.sink.bytes()
			for k := range b {
				if at := i*page + uint64(k); at < uint64(min(len(before), len(got))) && before[at] == b[k] {
					b[k] = got[at]
				}
			}
		}
	}
}

// advise drops leaves, and no page.
func (w *wbWorld) advise() {
	s := w.space()
	at, _, ok := w.somePage(s, protAll)
	if !ok {
		return
	}
	advice := []Advice{AdviceDontNeed, AdviceCold, AdvicePageOut, AdviceFree, AdviceCollapse, AdviceWillNeed, AdviceDontFork, AdviceDoFork,
		AdvicePopulateRead, AdvicePopulateWrite}[w.g.IntN(10)]
	if advice == AdviceDontFork {
		advice = AdviceDoFork // the children are as their parents here
	}
	err := s.as.Advise(ctx, at, s.run(at, protAll, 4)*page, advice)
	w.note("advice %d at %v: %v", advice, at, err)
	w.may(err, ErrInvalid, ErrBus)
}

func (w *wbWorld) fork() {
	if s := w.space(); len(w.spaces) < 4 {
		child, err := s.as.Fork()
		w.note("fork")
		w.may(err)
		w.addSpace(child, maps.Clone(s.pages))
	}
}

func (w *wbWorld) exit() {
	if len(w.spaces) < 2 {
		return
	}
	i := w.g.IntN(len(w.spaces))
	w.note("exit")
	w.may(w.spaces[i].as.Close())
	for _, k := range w.spaces[i].snaps {
		w.may(k.s.Close())
	}
	w.spaces = slices.Delete(w.spaces, i, i+1)
}

func (w *wbWorld) snapshot() {
	s := w.space()
	if len(s.snaps) == 3 {
		w.may(s.snaps[0].s.Close())
		s.snaps = s.snaps[1:]
	}
	k, err := s.as.Snapshot()
	w.note("snapshot")
	w.may(err)
	s.snaps = append(s.snaps, wbSnap{k, maps.Clone(s.pages)})
}

func (w *wbWorld) rollBack() {
	s := w.space()
	if len(s.snaps) == 0 {
		return
	}
	k := s.snaps[w.g.IntN(len(s.snaps))]
	w.note("rollback")
	w.may(s.as.Rollback(ctx, k.s))
	s.pages = maps.Clone(k.pages)
	for _, err := range Diff(s.as, k.s, ByContent) {
		if errors.Is(err, ErrClosed) {
			w.fatal("%v", err)
		}
	}
}
