package guestmem

import (
	"encoding/binary"
	"syscall"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/vmarea"
)

type fuzzSpace struct {
	window addr.Range
	pages  []*fuzzPage
	brk    breakRange
}

// page returns the page that gva is in, nil for none.
func (s *fuzzSpace) page(gva addr.GVA) *fuzzPage {
	if !s.window.Contains(gva) {
		return nil
	}
	return s.pages[(gva-s.window.Start)/page]
}

func (s *fuzzSpace) set(r addr.Range, fn func(i uint64) *fuzzPage) {
	r = r.Intersect(s.window)
	for i := uint64(0); i < r.Len()/page; i++ {
		s.pages[uint64(r.Start-s.window.Start)/page+i] = fn(i)
	}
}

// mapped reports whether any, and whether every page of r is mapped.
func (s *fuzzSpace) mapped(r addr.Range) (anyone, all bool) {
	all = s.window.ContainsRange(r)
	in := r.Intersect(s.window)
	for gva := in.Start; gva < in.End; gva += page {
		is := s.page(gva) != nil
		anyone, all = anyone || is, all && is
	}
	return anyone, all
}

func (s *fuzzSpace) fork() *fuzzSpace {
	c := &fuzzSpace{window: s.window, pages: make([]*fuzzPage, len(s.pages)), brk: s.brk}
	for i, p := range s.pages {
		if p == nil || p.dontFork {
			continue
		}
		q := *p
		if q.wipeOnFork {
			q.own, q.guard = nil, false
		}
		if q.own != nil {
			b := *q.own
			q.own = &b
		}
		c.pages[i] = &q
	}
	return c
}

// fuzzFamily is the model of an opWorld.
type fuzzFamily struct {
	window addr.Range
	spaces [maxFamily]*fuzzSpace
	files  []*fuzzObject // of worldFiles
}

func newFuzzFamily(w *opWorld) *fuzzFamily {
	m := &fuzzFamily{window: w.window}
	for _, f := range worldFiles {
		if f.view > 0 {
			m.files = append(m.files, m.files[f.view-1])
		} else {
			m.files = append(m.files, fuzzFile(f.data))
		}
	}
	m.spaces[0] = &fuzzSpace{window: w.window, pages: make([]*fuzzPage, w.window.Len()/page), brk: w.spaces[0].brk}
	return m
}

// mayBeShort reports whether memory may have run out, for an op that the model
// has no other ENOMEM for.
func (m *fuzzFamily) mayBeShort(o op) bool {
	switch o.kind {
	case opMap, opProtect, opDiscard, opUnmap, opBrk, opRemap:
		return false
	case opAdvise:
		return Advice(o.data) == AdvicePopulateRead || Advice(o.data) == AdvicePopulateWrite
	}
	return true
}

// noteLocks has the pages of a space locked that the library says are; before an op.
func (m *fuzzFamily) noteLocks(w *opWorld, o op) {
	if o.space < 0 || o.space >= maxFamily || w.spaces[o.space] == nil || m.spaces[o.space] == nil {
		return
	}
	s := m.spaces[o.space]
	for _, p := range s.pages {
		if p != nil {
			p.locked = false
		}
	}
	w.spaces[o.space].tree.Snapshot().Ascend(0, func(a *vmarea.Area) bool {
		for gva := a.Start; gva < a.End && a.Flags&vmarea.Locked != 0; gva += page {
			if p := s.page(gva); p != nil {
				p.locked = true
			}
		}
		return true
	})
}

// apply runs an op on the model and returns what it must answer. Of what is the
// library's to choose (where an area goes, whether the break may move) it takes
// the answer that was got, if it is a possible one.
func (m *fuzzFamily) apply(w *opWorld, o op, got result) result {
	if o.space < 0 || o.space >= maxFamily || m.spaces[o.space] == nil {
		return result{skipped: true}
	}
	s := m.spaces[o.space]
	switch o.kind {
	case opMap:
		return s.mapAt(o, got, m.files)
	case opUnmap:
		return s.unmap(o)
	case opProtect:
		return s.protect(o)
	case opDiscard:
		return s.discard(o)
	case opAdvise:
		return s.advise(o)
	case opBrk:
		return s.moveBreak(o, got)
	case opRemap:
		return s.remap(o, got)
	case opReadAt, opLoad:
		p, why := s.read(o.at, min(o.length, maxCopy))
		return answer(o.kind == opReadAt, uint64(len(p)), p, why)
	case opWriteAt, opStore, opDevice:
		n, why := s.write(o.at, patternOf(o.data, int(min(o.length, maxCopy))))
		return answer(o.kind != opStore, n, nil, why)
	case opString:
		return s.cString(o)
	case opLoad32, opStore32, opSwap32, opLoad64, opStore64, opSwap64:
		return s.word(o)
	case opTouch:
		return s.touch(o)
	case opPopulate, opPin:
		return s.populate(o, got)
	case opTruncate:
		if int64(o.off) < 0 {
			return result{errno: syscall.EINVAL}
		}
		m.truncate(m.files[(o.object-1)%len(m.files)], o.off)
		return result{}
	case opFileWrite:
		data := patternOf(o.data, int(min(o.length, maxCopy)))
		m.files[(o.object-1)%len(m.files)].write(data, o.off)
		return result{value: uint64(len(data))}
	case opFileRead:
		data := m.files[(o.object-1)%len(m.files)].read(min(o.length, maxCopy), o.off)
		return result{value: uint64(len(data)), data: data}
	case opFork:
		slot := o.data % maxFamily
		if m.spaces[slot] != nil {
			return result{skipped: true}
		}
		m.spaces[slot] = s.fork()
		return result{}
	case opClose:
		alive := 0
		for _, s := range m.spaces {
			if s != nil {
				alive++
			}
		}
		if alive == 1 {
			return result{skipped: true}
		}
		m.spaces[o.space] = nil
		return result{}
	}
	return got // no effect on what the model knows
}

// answer puts a copy's result as a system call or as a CPU does.
func answer(call bool, n uint64, data []byte, why trouble) result {
	r := result{value: n, data: data}
	switch {
	case !call:
		r.trouble = why
	case n == 0 && why != noTrouble:
		r.errno = syscall.EFAULT
	}
	return r
}

// mapAt checks where an area came to lie; whether it had to fail is the
// oracle's to say, and here only that nothing changed then.
func (s *fuzzSpace) mapAt(o op, got result, files []*fuzzObject) result {
	n, ok := addr.RoundUpLength(o.length)
	if got.errno != 0 {
		return result{errno: got.errno}
	}
	at := addr.GVA(got.value)
	r := addr.Range{Start: at, End: at + addr.GVA(n)}
	shared := o.flags&mapType == MapShared || o.flags&mapType == mapSharedValidate && o.object > 0
	readOnly := shared && o.object > 0 && worldFiles[(o.object-1)%len(worldFiles)].access == ObjectReadOnly
	taken, _ := s.mapped(r)
	fixed := o.flags&(MapFixed|MapFixedNoReplace) != 0
	switch {
	case !ok, n == 0, !at.IsAligned(), !s.window.ContainsRange(r), shared == (o.flags&mapType == MapPrivate),
		fixed && at != o.at, taken && o.flags&MapFixed == 0, taken && o.flags&MapFixedNoReplace != 0, readOnly && o.prot&ProtWrite != 0,
		o.flags&MapGrowsDown != 0 && (shared || o.object > 0):
		return result{errno: syscall.EINVAL} // not possible
	}
	base := fuzzPage{prot: o.prot & protAll, growsDown: o.flags&MapGrowsDown != 0, readOnly: readOnly}
	switch {
	case o.object > 0 && shared:
		base.shared, base.index = files[(o.object-1)%len(files)], o.off/page
	case o.object > 0:
		base.file, base.index = files[(o.object-1)%len(files)], o.off/page
	case shared:
		base.shared = &fuzzObject{pages: make(map[uint64]*[page]byte), size: 1 << 62}
	}
	s.set(r, func(i uint64) *fuzzPage {
		p := base
		p.index += i
		return &p
	})
	return got
}

func (s *fuzzSpace) unmap(o op) result {
	n, ok := addr.RoundUpLength(o.length)
	r, ok2 := addr.RangeFrom(o.at, n)
	if !o.at.IsAligned() || o.length == 0 || !ok || !ok2 || r.End > s.window.End {
		return result{errno: syscall.EINVAL}
	}
	s.set(r, func(uint64) *fuzzPage { return nil })
	return result{}
}

func (s *fuzzSpace) protect(o op) result {
	n, ok := addr.RoundUpLength(o.length)
	r, ok2 := addr.RangeFrom(o.at, n)
	grows := o.prot & protGrows
	switch {
	case grows == protGrows, !o.at.IsAligned():
		return result{errno: syscall.EINVAL}
	case o.length == 0:
		return result{}
	case !ok, !ok2:
		return result{errno: syscall.ENOMEM}
	case o.prot&^(protAll|protSem|protGrows) != 0:
		return result{errno: syscall.EINVAL}
	}
	if grows != 0 {
		head, errno := s.growing(r, grows)
		if errno != 0 {
			return result{errno: errno}
		}
		r.Start = head
	}
	for gva := r.Start; gva < r.End; gva += page {
		p := s.page(gva)
		if p == nil {
			return result{errno: syscall.ENOMEM}
		}
		if p.readOnly && o.prot&ProtWrite != 0 {
			return result{errno: syscall.EACCES}
		}
		p.prot = o.prot & protAll
	}
	return result{}
}

func (s *fuzzSpace) discard(o op) result {
	n, ok := addr.RoundUpLength(o.length)
	r, ok2 := addr.RangeFrom(o.at, n)
	switch {
	case !o.at.IsAligned(), !ok, !ok2:
		return result{errno: syscall.EINVAL}
	case n == 0:
		return result{}
	}
	in := r.Intersect(s.window)
	for gva := in.Start; gva < in.End; gva += page {
		if p := s.page(gva); p != nil {
			if p.locked {
				return result{errno: syscall.EINVAL}
			}
			p.own = nil
		}
	}
	if _, all := s.mapped(r); !all {
		return result{errno: syscall.ENOMEM}
	}
	return result{}
}

func (s *fuzzSpace) moveBreak(o op, got result) result {
	now := addr.GVA(got.value)
	was, _ := s.brk.end.RoundUp()
	up, ok := now.RoundUp()
	if now == s.brk.end {
		return got
	}
	taken, _ := s.mapped(addr.Range{Start: was, End: max(was, up)})
	if !ok || now != o.at || now < s.brk.start || up > s.window.End || taken || got.errno != 0 {
		return result{value: uint64(s.brk.end)}
	}
	s.set(addr.Range{Start: min(was, up), End: was}, func(uint64) *fuzzPage { return nil })
	s.set(addr.Range{Start: was, End: max(was, up)}, func(uint64) *fuzzPage { return &fuzzPage{prot: rw} })
	s.brk.end = now
	return got
}

// read returns the bytes below the first that cannot be read, and why it cannot.
func (s *fuzzSpace) read(gva addr.GVA, n uint64) (out []byte, why trouble) {
	for uint64(len(out)) < n {
		at := gva + addr.GVA(len(out))
		p := s.met(at)
		if why = p.trouble(Read); why != noTrouble {
			return out, why
		}
		b := p.bytes()[at.PageOffset():]
		out = append(out, b[:min(uint64(len(b)), n-uint64(len(out)))]...)
	}
	return out, noTrouble
}

func (s *fuzzSpace) write(gva addr.GVA, data []byte) (n uint64, why trouble) {
	for n < uint64(len(data)) {
		at := gva + addr.GVA(n)
		p := s.met(at)
		if why = p.trouble(Write); why != noTrouble {
			return n, why
		}
		n += uint64(copy(p.writable()[at.PageOffset():], data[n:]))
	}
	return n, noTrouble
}

func (s *fuzzSpace) cString(o op) result {
	limit := min(o.length, maxCopy)
	b, why := s.read(o.at, limit)
	for i, c := range b {
		if c == 0 {
			return result{data: b[:i], value: uint64(i)}
		}
	}
	if why != noTrouble {
		return result{trouble: why}
	}
	return result{errno: syscall.ENAMETOOLONG}
}

func (s *fuzzSpace) word(o op) (r result) {
	size, access := addr.GVA(8), Write
	switch o.kind {
	case opLoad32, opStore32, opSwap32:
		size = 4
	}
	if o.kind == opLoad32 || o.kind == opLoad64 {
		access = Read
	}
	if o.at%size != 0 {
		return result{errno: syscall.EINVAL}
	}
	p := s.met(o.at)
	if why := p.trouble(access); why != noTrouble {
		return result{trouble: why}
	}
	var word [8]byte
	copy(word[:size], p.bytes()[o.at.PageOffset():])
	was := binary.LittleEndian.Uint64(word[:])
	mask := uint64(1)<<(8*size-1)<<1 - 1
	store := func(v uint64) {
		binary.LittleEndian.PutUint64(word[:], v)
		copy(p.writable()[o.at.PageOffset():], word[:size])
	}
	switch o.kind {
	case opLoad32, opLoad64:
		r.value = was
	case opStore32, opStore64:
		store(o.data)
	default:
		if was == o.data&mask {
			store(swapNew(o))
			r.value = 1
		}
	}
	return r
}

// touch is one access; one that executes looks first whether there is a RET.
func (s *fuzzSpace) touch(o op) (r result) {
	p := s.met(o.at)
	if o.prot == Execute {
		if why := p.trouble(Read); why != noTrouble {
			return result{trouble: why}
		}
		if r.value = uint64(p.bytes()[o.at.PageOffset()]); r.value != retByte {
			return r
		}
	}
	r.trouble = p.trouble(o.prot)
	return r
}

// populate meets the first page that cannot be had; it changes no content.
func (s *fuzzSpace) populate(o op, got result) result {
	r := pagesOf(o)
	if o.kind == opPin {
		end, ok := r.End.RoundUp()
		if r.IsEmpty() || !ok {
			return got
		}
		r.End = end
	}
	for gva := r.Start.RoundDown(); gva < r.End; gva += page {
		if why := s.met(gva).trouble(o.prot); why != noTrouble {
			return result{trouble: why}
		}
	}
	return result{}
}
