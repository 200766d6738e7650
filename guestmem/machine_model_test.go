package guestmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The model of a family of address spaces: pages, each with what it allows and
// with a pointer to what it holds. Copies are naive: whoever must not see the
// other's writes has a pointer of its own. So a pointer is to the model what a
// frame is that nobody copies lazily, and a pin, which holds a frame, holds one.

const (
	modelBase  addr.GVA = 0x40000000 - 8*page // over the border of two leaf tables
	modelPages          = 24
)

func at(i int) addr.GVA { return modelBase + addr.GVA(i)*page }

// modelWords are the words of a page that the model knows of: the first, one in
// the middle, and the last.
var modelWords = [3]addr.GVA{0, 2048, page - 8}

type pageWords [3]uint64

// modelObject is what a shared area or a file holds.
type modelObject struct {
	object *Object // nil for shared anonymous memory
	pages  []*pageWords
}

// page returns what a page of the object holds, nil past its end.
func (o *modelObject) page(i int) *pageWords {
	if i >= len(o.pages) {
		return nil
	}
	return o.pages[i]
}

type modelPage struct {
	mapped bool
	prot   Prot
	shared bool
	object *modelObject // nil: private anonymous
	index  int          // which of the object's pages
	words  *pageWords   // nil: there is no such page in the object
	guard  bool
	marks
}

// fresh is what the page holds when it is touched for the first time.
func (p *modelPage) fresh() *pageWords {
	if p.object == nil {
		return new(pageWords)
	}
	words := p.object.page(p.index)
	if words == nil || p.shared {
		return words
	}
	own := *words
	return &own
}

// err is what an access meets.
func (p *modelPage) err(access Access) error {
	allowed := map[Access]bool{Read: p.prot != ProtNone, Write: p.prot&ProtWrite != 0, Execute: p.prot&ProtExec != 0}
	switch {
	case !p.mapped:
		return ErrNotMapped
	case access == Execute && !allowed[Execute] && p.err(Read) != nil: // brought first: see refuseFetch
		return p.err(Read)
	case !allowed[access]:
		return ErrAccess
	case p.guard:
		return ErrNotMapped
	case p.words == nil:
		return ErrBus
	}
	return nil
}

// continues reports whether q, the next page, is in the same area.
func (p *modelPage) continues(q *modelPage) bool {
	return p.mapped && q.mapped && p.prot == q.prot && p.shared == q.shared && p.object == q.object && p.marks == q.marks &&
		(p.object == nil || p.index+1 == q.index)
}

type modelSpace struct {
	as    *AddressSpace
	place Placement
	pages [modelPages]modelPage
}

func (s *modelSpace) fork(child *AddressSpace) *modelSpace {
	c := &modelSpace{as: child, place: s.place, pages: s.pages}
	for i := range c.pages {
		p := &c.pages[i]
		p.locked, p.onFault = false, false
		switch {
		case p.dontFork:
			*p = modelPage{}
		case p.wipe:
			p.words, p.guard = p.fresh(), false
		case p.words != nil && !p.shared:
			own := *p.words
			p.words = &own
		}
	}
	return c
}

// head returns how many of the pages from i on are mapped, n at most.
func (s *modelSpace) head(i, n int) int {
	for k := range n {
		if !s.pages[i+k].mapped {
			return k
		}
	}
	return n
}

func (s *modelSpace) isFree(i, n int) bool {
	return !slices.ContainsFunc(s.pages[i:i+n], func(p modelPage) bool { return p.mapped })
}

// gap returns where n pages go, by trying every place.
func (s *modelSpace) gap(n int) (int, bool) {
	for k := range modelPages - n + 1 {
		i := modelPages - n - k
		if s.place == BottomUp {
			i = k
		}
		if s.isFree(i, n) {
			return i, true
		}
	}
	return 0, false
}

// areas returns the areas that the pages make.
func (s *modelSpace) areas() (areas []AreaInfo) {
	for i := range s.pages {
		p := &s.pages[i]
		switch {
		case !p.mapped:
		case i > 0 && s.pages[i-1].continues(p):
			areas[len(areas)-1].End = at(i + 1)
		default:
			info := AreaInfo{Range: addr.Range{Start: at(i), End: at(i + 1)}, Prot: p.prot, Shared: p.shared}
			if p.object != nil {
				info.Offset = uint64(p.index) * page
				if p.object.object != nil {
					info.Name = p.object.object.name
				}
			}
			areas = append(areas, info)
		}
	}
	return areas
}

// compareAreas compares what the space says of its areas.
func (s *modelSpace) compareAreas(rt *rapid.T) {
	got := slices.Collect(s.as.Areas())
	if d := cmp.Diff(s.areas(), got); d != "" {
		rt.Fatalf("areas of space %d (-want +got):\n%s", s.as.id, d)
	}
}

// comparePages reads the pages of a set, each by itself.
func (s *modelSpace) comparePages(set uint32) error {
	var buf [page]byte
	for i := range s.pages {
		if set>>i&1 == 0 {
			continue
		}
		p := &s.pages[i]
		want := p.err(Read)
		_, err := s.as.ReadAt(ctx, buf[:], at(i))
		if !errors.Is(err, want) || (want == nil) != (err == nil) {
			return fmt.Errorf("space %d: read of page %d (%v): %w, want %w", s.as.id, i, p, err, want)
		}
		for k, off := range modelWords {
			if w := binary.LittleEndian.Uint64(buf[off:]); err == nil && w != p.words[k] {
				return fmt.Errorf("space %d: word %d of page %d is %#x, want %#x", s.as.id, k, i, w, p.words[k])
			}
		}
	}
	return nil
}

// compareRange reads n pages in one call.
func (s *modelSpace) compareRange(rt *rapid.T, i, n int) {
	done, want := s.reach(i, n, Read)
	buf := make([]byte, n*int(page))
	got, err := s.as.ReadAt(ctx, buf, at(i))
	if got != done*int(page) || !errors.Is(err, want) || (want == nil) != (err == nil) {
		rt.Fatalf("space %d: read of pages [%d, %d): %d, %v; want %d pages, %v", s.as.id, i, i+n, got, err, done, want)
	}
	for k := range done {
		for j, off := range modelWords {
			w := binary.LittleEndian.Uint64(buf[k*int(page)+int(off):])
			if w != s.pages[i+k].words[j] {
				rt.Fatalf("space %d: word %d of page %d reads %#x, want %#x", s.as.id, j, i+k, w, s.pages[i+k].words[j])
			}
		}
	}
}

// reach returns how many of n pages an access gets through, and what stops it.
func (s *modelSpace) reach(i, n int, access Access) (done int, err error) {
	for k := range n {
		if err := s.pages[i+k].err(access); err != nil {
			return k, err
		}
	}
	return n, nil
}

// modelPin is a pin, with what its pages hold.
type modelPin struct {
	pin   *Pin
	words []*pageWords
}

// compare looks at the frames as a device does.
func (p *modelPin) compare(rt *rapid.T, m *Memory) {
	for i, f := range p.pin.Frames() {
		for k, off := range modelWords {
			if w := *m.arena.Word64(f, uint64(off)); w != p.words[i][k] {
				rt.Fatalf("pin of %v: the device reads %#x in word %d of page %d, want %#x", p.pin.Range(), w, k, i, p.words[i][k])
			}
		}
	}
}

func (p modelPage) String() string {
	return fmt.Sprintf("mapped %v %v shared %v index %d", p.mapped, p.prot, p.shared, p.index)
}

// family is all that the machine has.
type family struct {
	m       *Memory
	spaces  []*modelSpace
	files   []*modelObject
	pins    map[int]*modelPin
	lastPin int
	last    uint64 // word written
}

func (f *family) next() uint64 { f.last++; return f.last<<56 | f.last*0x10001 }

func (f *family) drawSpace(rt *rapid.T) *modelSpace {
	return f.spaces[rapid.IntRange(0, len(f.spaces)-1).Draw(rt, "space")]
}

func (f *family) drawPages(rt *rapid.T) (first, n int) {
	i := rapid.IntRange(0, modelPages-1).Draw(rt, "page")
	return i, rapid.IntRange(1, min(6, modelPages-i)).Draw(rt, "pages")
}

func (f *family) drawPin(rt *rapid.T) *modelPin {
	if len(f.pins) == 0 {
		rt.Skip("nothing is pinned")
	}
	keys := slices.Sorted(maps.Keys(f.pins))
	return f.pins[rapid.SampledFrom(keys).Draw(rt, "pin")]
}
