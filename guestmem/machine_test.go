package guestmem

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
)

var machineProts = rapid.SampledFrom([]Prot{ProtNone, ProtRead, ProtRead | ProtWrite, ProtRead | ProtWrite, ProtRead | ProtWrite, ProtRead | ProtExec, ProtWrite})

// machineFile is a source of a few pages, the last of them not whole.
type machineFile struct{ *bytes.Reader }

func (f *family) newFile(rt *rapid.T, seed byte) *modelObject {
	const whole, rest = 5, 100
	content := make([]byte, whole*page+rest)
	o := &modelObject{}
	for i := range whole + 1 {
		words := new(pageWords)
		for k, off := range modelWords {
			if at := i*int(page) + int(off); at+8 <= len(content) {
				words[k] = uint64(seed)<<32 | uint64(i)<<8 | uint64(k) | 0xf11e<<48
				binary.LittleEndian.PutUint64(content[at:], words[k])
			}
		}
		o.pages = append(o.pages, words)
	}
	var err error
	o.object, err = f.m.NewFileObject(machineFile{bytes.NewReader(content)}, int64(len(content)), string('a'+rune(seed)))
	if err != nil {
		rt.Fatal(err)
	}
	return o
}

func TestFamilyAgainstModel(t *testing.T) { testFamily(t, nil) }

// testFamily drives a family of address spaces by random operations beside the
// model. After each, every structure is checked and every count compared with a
// full walk. prepare, if not nil, is told of its memory, and returns what is to
// be called after each operation.
func testFamily(t *testing.T, prepare func(*rapid.T, *Memory) (after func(*rapid.T))) {
	rapid.Check(t, func(rt *rapid.T) {
		m, err := NewMemory(MemoryOptions{Size: 8 << 20, Grow: 64 << 10, KeepFree: 128 << 10})
		if err != nil {
			rt.Fatal(err)
		}
		after := func(*rapid.T) {}
		if prepare != nil {
			after = prepare(rt, m)
		}
		f := &family{m: m, pins: make(map[int]*modelPin)}
		place := rapid.SampledFrom([]Placement{TopDown, BottomUp}).Draw(rt, "placement")
		first, err := m.NewAddressSpace(SpaceOptions{Lowest: at(0), Highest: at(modelPages), Placement: place})
		if err != nil {
			rt.Fatal(err)
		}
		f.spaces = []*modelSpace{{as: first, place: place}}
		f.files = []*modelObject{f.newFile(rt, 0), f.newFile(rt, 1)}
		defer f.end(rt)
		actions := f.actions()
		actions[""] = func(rt *rapid.T) {
			after(rt)
			f.compare(rt)
			if err := m.Check(); err != nil {
				rt.Fatal(err)
			}
			after(rt)
		}
		rt.Repeat(actions)
	})
}

// compare looks at all areas, at all pins, and at some of the pages: not all of
// them each time, so that pages stay untouched too.
func (f *family) compare(rt *rapid.T) {
	looks := make([]uint32, len(f.spaces))
	for i, s := range f.spaces {
		s.compareAreas(rt)
		looks[i] = rapid.Uint32().Draw(rt, "look")
	}
	// In a goroutine of its own, for its short stack: under the invariants tag
	// each section looks at the whole of it, and rapid's is deep.
	done := make(chan error)
	go func() {
		var errs []error
		for i, s := range f.spaces {
			errs = append(errs, s.comparePages(looks[i]))
		}
		done <- errors.Join(errs...)
	}()
	if err := <-done; err != nil {
		rt.Fatal(err)
	}
	for _, p := range f.pins {
		p.compare(rt, f.m)
	}
}

// end closes everything, after which nothing may be left.
func (f *family) end(rt *rapid.T) {
	for i, s := range f.spaces {
		if i == 1 { // some pins outlive their spaces
			f.releaseAll()
		}
		s.as.Close()
	}
	f.releaseAll()
	for _, o := range f.files {
		o.object.Close()
	}
	if err := f.m.Check(); err != nil {
		rt.Error(err)
	}
	if st := f.m.Stats(); st.FramesInUse != 0 {
		rt.Errorf("left in use: %+v", st)
	}
	if err := f.m.Close(); err != nil {
		rt.Error(err)
	}
}

func (f *family) releaseAll() {
	for k, p := range f.pins {
		p.pin.Release()
		delete(f.pins, k)
	}
}

func (f *family) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"map": f.map_, "map over": f.mapOver, "unmap": f.unmap, "protect": f.protect, "discard": f.discard, "remap": f.remap, "shrink": f.shrink,
		"fault": f.fault, "load": f.load, "store": f.store, "swap": f.swap, "write": f.write, "read": f.read,
		"fork": f.fork, "close": f.close,
		"advise": f.advise, "populate": f.populate, "lock": f.lock, "unlock": f.unlock,
		"pin": f.pin, "device": f.device, "release": f.release,
	}
}

// drawWhat draws what is to be mapped.
func (f *family) drawWhat(rt *rapid.T, n int) (MapOptions, modelPage) {
	o := MapOptions{Length: uint64(n) * page, Prot: machineProts.Draw(rt, "prot")}
	p := modelPage{mapped: true, prot: o.Prot}
	switch rapid.SampledFrom([]string{"private", "private", "shared", "file"}).Draw(rt, "what") {
	case "private":
		o.Flags = MapPrivate | MapAnonymous
	case "shared":
		o.Flags, p.shared = MapShared|MapAnonymous, true
		p.object = &modelObject{}
		for range n {
			p.object.pages = append(p.object.pages, new(pageWords))
		}
	case "file":
		o.Flags = MapPrivate
		p.object = rapid.SampledFrom(f.files).Draw(rt, "file")
		p.index = rapid.IntRange(0, 4).Draw(rt, "offset")
		o.Object, o.Offset = p.object.object, uint64(p.index)*page
	}
	return o, p
}

// put maps n pages like p in the model.
func (s *modelSpace) put(i, n int, p modelPage) {
	for k := range n {
		q := p
		q.index += k
		if q.object == nil {
			q.index = 0
		}
		q.words = q.fresh()
		s.pages[i+k] = q
	}
}

// map_ maps where the library likes.
func (f *family) map_(rt *rapid.T) {
	s, n := f.drawSpace(rt), rapid.IntRange(1, 6).Draw(rt, "pages")
	o, p := f.drawWhat(rt, n)
	i, ok := s.gap(n)
	if rapid.Bool().Draw(rt, "hint") {
		hint := rapid.IntRange(0, modelPages-1).Draw(rt, "at")
		o.Addr = at(hint) + 5
		if hint+n <= modelPages && s.isFree(hint, n) {
			i, ok = hint, true
		}
	}
	got, err := s.as.Map(ctx, o)
	switch {
	case !ok && !errors.Is(err, ErrNoSpace):
		rt.Fatalf("Map without a hole: %v, %v", got, err)
	case ok && (err != nil || got != at(i)):
		rt.Fatalf("Map of %d pages: %v, %v; want %v", n, got, err, at(i))
	case ok:
		s.put(i, n, p)
	}
}

// mapOver maps where it is told to.
func (f *family) mapOver(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	o, p := f.drawWhat(rt, n)
	o.Addr = at(i)
	o.Flags |= rapid.SampledFrom([]MapFlags{MapFixed, MapFixed, MapFixed, MapFixedNoReplace}).Draw(rt, "fixed")
	refused := o.Flags&MapFixedNoReplace != 0 && !s.isFree(i, n)
	if rapid.IntRange(0, 3).Draw(rt, "populate") == 0 {
		o.Flags |= MapPopulate
	}
	_, err := s.as.Map(ctx, o)
	if refused != errors.Is(err, ErrExists) || !refused && err != nil {
		rt.Fatalf("Map at pages [%d, %d): %v; refused: %v", i, i+n, err, refused)
	}
	if err == nil {
		s.put(i, n, p)
	}
}

func (f *family) unmap(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	if err := s.as.Unmap(at(i), uint64(n)*page); err != nil {
		rt.Fatal(err)
	}
	clear(s.pages[i : i+n])
}

// protect has the partial effect of mprotect at a hole.
func (f *family) protect(rt *rapid.T) {
	s, prot := f.drawSpace(rt), machineProts.Draw(rt, "prot")
	i, n := f.drawPages(rt)
	err := s.as.Protect(at(i), uint64(n)*page, prot)
	head := s.head(i, n)
	for k := range head {
		s.pages[i+k].prot = prot
	}
	if (head == n) != (err == nil) || head < n && !errors.Is(err, ErrNoSpace) {
		rt.Fatalf("Protect of pages [%d, %d): %v; %d of them are mapped", i, i+n, err, head)
	}
}

// remap moves pages, with the holes between them, and leaves what is at the target
// under a hole.
func (f *family) remap(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	j := rapid.IntRange(0, modelPages-n).Draw(rt, "to")
	flags := rapid.SampledFrom([]RemapFlags{0, 0, RemapDontUnmap}).Draw(rt, "flags")
	got, err := s.as.Remap(ctx, RemapOptions{Addr: at(i), OldLength: uint64(n) * page, NewLength: uint64(n) * page,
		Flags: RemapMayMove | RemapFixed | flags, NewAddr: at(j)})
	switch {
	case i < j+n && j < i+n:
		if !errors.Is(err, ErrInvalid) {
			rt.Fatalf("Remap of pages [%d, %d) into themselves, at %d: %v", i, i+n, j, err)
		}
		return
	case !s.pages[i].mapped:
		if !errors.Is(err, ErrNotMapped) {
			rt.Fatalf("Remap of pages [%d, %d), which begin in a hole: %v", i, i+n, err)
		}
		return
	case err != nil || got != at(j):
		rt.Fatalf("Remap of pages [%d, %d) to %d: %v, %v", i, i+n, j, got, err)
	}
	s.move(i, j, n, flags)
}

// move moves pages area by area, as Remap does.
func (s *modelSpace) move(i, j, n int, flags RemapFlags) {
	for k := 0; k < n; {
		if !s.pages[i+k].mapped {
			k++
			continue
		}
		end := k + 1
		for end < n && s.pages[i+end-1].continues(&s.pages[i+end]) {
			end++
		}
		area := append([]modelPage(nil), s.pages[i+k:i+end]...)
		clear(s.pages[j+k : j+end])
		if flags&RemapDontUnmap != 0 {
			s.unlockSource(i + k)
		}
		copy(s.pages[j+k:], area)
		for ; k < end; k++ {
			if p := &s.pages[i+k]; flags&RemapDontUnmap == 0 {
				*p = modelPage{}
			} else {
				p.words, p.guard = p.fresh(), false
			}
		}
	}
}

// shrink cuts off what lies above.
func (f *family) shrink(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	keep := rapid.IntRange(1, n).Draw(rt, "keep")
	got, err := s.as.Remap(ctx, RemapOptions{Addr: at(i), OldLength: uint64(n) * page, NewLength: uint64(keep) * page})
	if there := s.pages[i].mapped; there != (err == nil) || !there && !errors.Is(err, ErrNotMapped) || there && got != at(i) {
		rt.Fatalf("Remap of pages [%d, %d) to %d pages: %v, %v; mapped: %v", i, i+n, keep, got, err, there)
	} else if there {
		clear(s.pages[i+keep : i+n])
	}
}

func (f *family) discard(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	var want error
	for k := range n {
		p := &s.pages[i+k]
		if !p.mapped {
			want = ErrNoSpace
			continue
		}
		if p.locked {
			want = ErrInvalid
			break
		}
		p.words = p.fresh()
	}
	if err := s.as.Discard(at(i), uint64(n)*page); !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("Discard of pages [%d, %d): %v, want %v", i, i+n, err, want)
	}
}

func (f *family) fault(rt *rapid.T) {
	s, access := f.drawSpace(rt), rapid.SampledFrom([]Access{Read, Write, Execute}).Draw(rt, "access")
	i, _ := f.drawPages(rt)
	want := s.pages[i].err(access)
	if err := s.as.Fault(ctx, at(i)+11, access); !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: fault for %v in page %d (%v): %v, want %v", s.as.id, access, i, s.pages[i], err, want)
	}
}

func (f *family) load(rt *rapid.T) {
	s, k := f.drawSpace(rt), rapid.IntRange(0, len(modelWords)-1).Draw(rt, "word")
	i, _ := f.drawPages(rt)
	p := &s.pages[i]
	want := p.err(Read)
	w, err := s.as.Load64(ctx, at(i)+modelWords[k])
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: load from page %d (%v): %v, want %v", s.as.id, i, p, err, want)
	}
	if err == nil && w != p.words[k] {
		rt.Fatalf("space %d: word %d of page %d is %#x, want %#x", s.as.id, k, i, w, p.words[k])
	}
}

func (f *family) store(rt *rapid.T) {
	s, k := f.drawSpace(rt), rapid.IntRange(0, len(modelWords)-1).Draw(rt, "word")
	i, _ := f.drawPages(rt)
	w, want := f.next(), s.pages[i].err(Write)
	err := s.as.Store64(ctx, at(i)+modelWords[k], w)
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: store to page %d (%v): %v, want %v", s.as.id, i, s.pages[i], err, want)
	}
	if err == nil {
		s.pages[i].words[k] = w
	}
}

func (f *family) swap(rt *rapid.T) {
	s, k := f.drawSpace(rt), rapid.IntRange(0, len(modelWords)-1).Draw(rt, "word")
	i, _ := f.drawPages(rt)
	p := &s.pages[i]
	want := p.err(Write)
	old, w := uint64(0), f.next()
	if p.words != nil && rapid.Bool().Draw(rt, "right") {
		old = p.words[k]
	}
	swapped, err := s.as.CompareAndSwap64(ctx, at(i)+modelWords[k], old, w)
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: compare and swap in page %d (%v): %v, want %v", s.as.id, i, p, err, want)
	}
	if err != nil {
		return
	}
	if swapped != (p.words[k] == old) {
		rt.Fatalf("compare and swap of %#x for %#x: %v", p.words[k], old, swapped)
	}
	if swapped {
		p.words[k] = w
	}
}

// write writes several pages in one call: as far as they may be written.
func (f *family) write(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	done, want := s.reach(i, n, Write)
	buf, words := make([]byte, n*int(page)), make([]pageWords, n)
	for k := range n {
		for j, off := range modelWords {
			words[k][j] = f.next()
			binary.LittleEndian.PutUint64(buf[k*int(page)+int(off):], words[k][j])
		}
	}
	got, err := s.as.WriteAt(ctx, buf, at(i))
	if got != done*int(page) || !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: write of pages [%d, %d): %d, %v; want %d pages, %v", s.as.id, i, i+n, got, err, done, want)
	}
	for k := range done {
		*s.pages[i+k].words = words[k]
	}
}

func (f *family) read(rt *rapid.T) {
	s := f.drawSpace(rt)
	i, n := f.drawPages(rt)
	s.compareRange(rt, i, n)
}

func (f *family) fork(rt *rapid.T) {
	if len(f.spaces) == 5 {
		rt.Skip("the family is large enough")
	}
	s := f.drawSpace(rt)
	child, err := s.as.Fork()
	if err != nil {
		rt.Fatal(err)
	}
	f.spaces = append(f.spaces, s.fork(child))
}

func (f *family) close(rt *rapid.T) {
	if len(f.spaces) == 1 {
		rt.Skip("the last one")
	}
	i := rapid.IntRange(0, len(f.spaces)-1).Draw(rt, "space")
	if err := f.spaces[i].as.Close(); err != nil {
		rt.Fatal(err)
	}
	f.spaces = append(f.spaces[:i], f.spaces[i+1:]...)
}

// pin holds pages for later: across forks, unmaps and the end of the space.
func (f *family) pin(rt *rapid.T) {
	if len(f.pins) == 4 {
		rt.Skip("enough is pinned")
	}
	s, access := f.drawSpace(rt), rapid.SampledFrom([]Access{Read, Write}).Draw(rt, "access")
	i, n := f.drawPages(rt)
	_, want := s.reach(i, n, access)
	pin, err := s.as.Pin(ctx, addr.Range{Start: at(i) + 9, End: at(i+n) - 9}, access)
	if !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: pin of pages [%d, %d): %v, want %v", s.as.id, i, i+n, err, want)
	}
	if err != nil {
		return
	}
	p := &modelPin{pin: pin}
	for k := range n {
		p.words = append(p.words, s.pages[i+k].words)
	}
	f.lastPin++
	f.pins[f.lastPin] = p
}

// device writes to pinned frames: whoever has the page sees it.
func (f *family) device(rt *rapid.T) {
	p := f.drawPin(rt)
	for i, frame := range p.pin.Frames() {
		for k, off := range modelWords {
			w := f.next()
			*f.m.arena.Word64(frame, uint64(off)) = w
			p.words[i][k] = w
		}
	}
}

func (f *family) release(rt *rapid.T) {
	p := f.drawPin(rt)
	p.compare(rt, f.m)
	p.pin.Release()
	for k, q := range f.pins {
		if q == p {
			delete(f.pins, k)
		}
	}
}
