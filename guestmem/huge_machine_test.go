package guestmem

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// A machine like that of TestFamilyAgainstModel for memory that comes 2 MiB at a
// time: a few blocks, whose borders and middles are what ranges begin and end at,
// against a naive copy of every page.

const (
	hugeBlocks = 3
	hugePages  = hugeBlocks * pagetable.HugeFrames
)

// hugeBase has a border of 1 GiB tables after the first block.
const hugeBase addr.GVA = 0x80000000 - pagetable.HugeSpan

func hugeAt(i int) addr.GVA { return hugeBase + addr.GVA(i)*page }

// hugeEnds are where ranges begin and end, hugeLooks the pages on both sides.
var hugeEnds, hugeLooks = func() (ends, looks []int) {
	for b := range hugeBlocks {
		for _, i := range []int{0, 1, 2, 100, 256, 510, 511} {
			ends = append(ends, b*pagetable.HugeFrames+i)
		}
	}
	ends = append(ends, hugePages)
	for _, i := range ends {
		for _, k := range []int{i - 1, i} {
			if k >= 0 && k < hugePages && !slices.Contains(looks, k) {
				looks = append(looks, k)
			}
		}
	}
	return ends, looks
}()

type hugePage struct {
	mapped, guard bool
	prot          Prot
	word          *uint64 // what it holds; nobody else's but a pin's
}

func (p *hugePage) err(access Access) error {
	switch {
	case !p.mapped, p.guard && p.prot&access != 0, p.guard && access == Read && p.prot != ProtNone:
		return ErrNotMapped
	case access == Write && p.prot&ProtWrite == 0, access == Read && p.prot == ProtNone:
		return ErrAccess
	}
	return nil
}

type hugeSpace struct {
	as    *AddressSpace
	pages [hugePages]hugePage
}

type hugePin struct {
	pin   *Pin
	words []*uint64
}

type hugeMachine struct {
	m      *Memory
	spaces []*hugeSpace
	pins   []*hugePin
	last   uint64
}

func (h *hugeMachine) space(rt *rapid.T) *hugeSpace {
	return h.spaces[rapid.IntRange(0, len(h.spaces)-1).Draw(rt, "space")]
}

// pagesOf draws a range, often of whole blocks.
func (h *hugeMachine) pagesOf(rt *rapid.T) (i, n int) {
	if rapid.IntRange(0, 3).Draw(rt, "whole") == 0 {
		b := rapid.IntRange(0, hugeBlocks-1).Draw(rt, "block")
		k := rapid.IntRange(1, hugeBlocks-b).Draw(rt, "blocks")
		return b * pagetable.HugeFrames, k * pagetable.HugeFrames
	}
	x := rapid.IntRange(0, len(hugeEnds)-2).Draw(rt, "start")
	y := rapid.IntRange(x+1, len(hugeEnds)-1).Draw(rt, "end")
	return hugeEnds[x], hugeEnds[y] - hugeEnds[x]
}

func (s *hugeSpace) head(i, n int) int {
	for k := range n {
		if !s.pages[i+k].mapped {
			return k
		}
	}
	return n
}

func (s *hugeSpace) eachMapped(i, n int, fn func(p *hugePage)) {
	for k := range n {
		if p := &s.pages[i+k]; p.mapped {
			fn(p)
		}
	}
}

// wantHole fails unless err is that of a range with a hole, if it has one.
func wantHole(rt *rapid.T, what string, whole bool, err error) {
	if whole != (err == nil) || !whole && !errors.Is(err, ErrNoSpace) {
		rt.Fatalf("%s: %v; all of it mapped: %v", what, err, whole)
	}
}

func (h *hugeMachine) map_(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	prot := rapid.SampledFrom([]Prot{rw, rw, rw, r_}).Draw(rt, "prot")
	h.put(rt, s, i, n, prot)
}

func (h *hugeMachine) put(rt *rapid.T, s *hugeSpace, i, n int, prot Prot) {
	o := MapOptions{Addr: hugeAt(i), Length: uint64(n) * page, Prot: prot, Flags: MapPrivate | MapAnonymous | MapFixed}
	if _, err := s.as.Map(ctx, o); err != nil {
		rt.Fatal(err)
	}
	for k := range n {
		s.pages[i+k] = hugePage{mapped: true, prot: prot, word: new(uint64)}
	}
}

func (h *hugeMachine) unmap(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	if err := s.as.Unmap(hugeAt(i), uint64(n)*page); err != nil {
		rt.Fatal(err)
	}
	clear(s.pages[i : i+n])
}

func (h *hugeMachine) protect(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	prot := rapid.SampledFrom([]Prot{rw, rw, r_, ProtNone}).Draw(rt, "prot")
	err := s.as.Protect(hugeAt(i), uint64(n)*page, prot)
	head := s.head(i, n)
	for k := range head {
		s.pages[i+k].prot = prot
	}
	wantHole(rt, "protect", head == n, err)
}

func (h *hugeMachine) discard(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	wantHole(rt, "discard", s.head(i, n) == n, s.as.Discard(hugeAt(i), uint64(n)*page))
	s.eachMapped(i, n, func(p *hugePage) { p.word = new(uint64) })
}

func (h *hugeMachine) guard(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	install := rapid.Bool().Draw(rt, "install")
	advice := AdviceGuardRemove
	if install {
		advice = AdviceGuardInstall
	}
	wantHole(rt, "guard", s.head(i, n) == n, s.as.Advise(ctx, hugeAt(i), uint64(n)*page, advice))
	s.eachMapped(i, n, func(p *hugePage) {
		if install {
			p.word = new(uint64)
		}
		p.guard = install
	})
}

func (h *hugeMachine) advise(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	advice := rapid.SampledFrom([]Advice{AdviceHugePage, AdviceHugePage, AdviceNoHugePage, AdviceWipeOnFork, AdviceKeepOnFork, AdviceDontFork, AdviceDoFork}).Draw(rt, "advice")
	if advice == AdviceWipeOnFork || advice == AdviceDontFork {
		defer func() { // the model forks all of it
			_ = s.as.Advise(ctx, hugeBase, hugePages*uint64(page), AdviceKeepOnFork)
			_ = s.as.Advise(ctx, hugeBase, hugePages*uint64(page), AdviceDoFork)
		}()
		if child, err := func() (*AddressSpace, error) {
			_ = s.as.Advise(ctx, hugeAt(i), uint64(n)*page, advice)
			return s.as.Fork()
		}(); err != nil {
			rt.Fatal(err)
		} else if err := child.Close(); err != nil {
			rt.Fatal(err)
		}
		return
	}
	wantHole(rt, "advise", s.head(i, n) == n, s.as.Advise(ctx, hugeAt(i), uint64(n)*page, advice))
}

// collapse changes nothing that can be read.
func (h *hugeMachine) collapse(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	err := s.as.Advise(ctx, hugeAt(i), uint64(n)*page, AdviceCollapse)
	if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrNoSpace) && !errors.Is(err, ErrAgain) && !errors.Is(err, ErrNoMemory) {
		rt.Fatalf("collapse: %v", err)
	}
}

func (h *hugeMachine) remap(rt *rapid.T) {
	s := h.space(rt)
	i, n := h.pagesOf(rt)
	to := rapid.SampledFrom(hugeEnds).Draw(rt, "to")
	if to+n > hugePages || to < i+n && i < to+n {
		rt.Skip("does not fit")
	}
	flags := rapid.SampledFrom([]RemapFlags{0, 0, RemapDontUnmap}).Draw(rt, "flags") | RemapMayMove | RemapFixed
	_, err := s.as.Remap(ctx, RemapOptions{Addr: hugeAt(i), OldLength: uint64(n) * page, NewLength: uint64(n) * page,
		Flags: flags, NewAddr: hugeAt(to)})
	if !s.pages[i].mapped {
		if !errors.Is(err, ErrNotMapped) {
			rt.Fatalf("remap that begins in a hole: %v", err)
		}
		return
	}
	if err != nil {
		rt.Fatal(err)
	}
	for k := range n {
		if p := &s.pages[i+k]; p.mapped {
			s.pages[to+k] = *p
			if flags&RemapDontUnmap != 0 {
				*p = hugePage{mapped: true, prot: p.prot, word: new(uint64)}
			} else {
				*p = hugePage{}
			}
		}
	}
}

func (h *hugeMachine) look(rt *rapid.T) int { return rapid.SampledFrom(hugeLooks).Draw(rt, "page") }

func (h *hugeMachine) write(rt *rapid.T) {
	s, i := h.space(rt), h.look(rt)
	h.last++
	err := s.as.Store64(ctx, hugeAt(i)+8, h.last)
	if want := s.pages[i].err(Write); !errors.Is(err, want) || want == nil && err != nil {
		rt.Fatalf("store to page %d (%+v): %v, want %v", i, s.pages[i], err, want)
	}
	if err == nil {
		*s.pages[i].word = h.last
	}
}

func (h *hugeMachine) read(rt *rapid.T) {
	s, i := h.space(rt), h.look(rt)
	if err := s.compare(i); err != nil {
		rt.Fatal(err)
	}
}

func (s *hugeSpace) compare(i int) error {
	p := &s.pages[i]
	got, err := s.as.Load64(ctx, hugeAt(i)+8)
	want := p.err(Read)
	if !errors.Is(err, want) || want == nil && err != nil {
		return errors.Join(errors.New("load"), err, want)
	}
	if err == nil && got != *p.word {
		return errors.New("page holds something else")
	}
	return nil
}

func (h *hugeMachine) fork(rt *rapid.T) {
	if len(h.spaces) == 4 {
		rt.Skip("enough")
	}
	s := h.space(rt)
	child, err := s.as.Fork()
	if err != nil {
		rt.Fatal(err)
	}
	c := &hugeSpace{as: child, pages: s.pages}
	for i := range c.pages {
		if p := &c.pages[i]; p.mapped {
			w := *p.word
			p.word = &w
		}
	}
	h.spaces = append(h.spaces, c)
}

func (h *hugeMachine) close(rt *rapid.T) {
	if len(h.spaces) == 1 {
		rt.Skip("the last one")
	}
	i := rapid.IntRange(0, len(h.spaces)-1).Draw(rt, "space")
	if err := h.spaces[i].as.Close(); err != nil {
		rt.Fatal(err)
	}
	h.spaces = slices.Delete(h.spaces, i, i+1)
}

func (h *hugeMachine) pin(rt *rapid.T) {
	if len(h.pins) == 3 {
		rt.Skip("enough")
	}
	s, i := h.space(rt), h.look(rt)
	n := min(rapid.IntRange(1, 3).Draw(rt, "n"), hugePages-i)
	access := rapid.SampledFrom([]Access{Read, Write}).Draw(rt, "access")
	var want error
	for k := 0; k < n && want == nil; k++ {
		want = s.pages[i+k].err(access)
	}
	pin, err := s.as.Pin(ctx, addr.Range{Start: hugeAt(i), End: hugeAt(i + n)}, access)
	if !errors.Is(err, want) || want == nil && err != nil {
		rt.Fatalf("pin of pages [%d, %d): %v, want %v", i, i+n, err, want)
	}
	if err != nil {
		return
	}
	p := &hugePin{pin: pin}
	for k := range n {
		p.words = append(p.words, s.pages[i+k].word)
	}
	h.pins = append(h.pins, p)
}

// device writes through a pin, and lets it go.
func (h *hugeMachine) device(rt *rapid.T) {
	if len(h.pins) == 0 {
		rt.Skip("none")
	}
	p := h.pins[0]
	for k, f := range p.pin.Frames() {
		if got := *h.m.arena.Word64(f, 8); got != *p.words[k] {
			rt.Fatalf("pinned frame %v holds %d, want %d", f, got, *p.words[k])
		}
		h.last++
		*h.m.arena.Word64(f, 8) = h.last
		*p.words[k] = h.last
	}
	if rapid.Bool().Draw(rt, "release") {
		h.pins = h.pins[1:]
		p.pin.Release()
	}
}

func (h *hugeMachine) check(rt *rapid.T) {
	looks := rapid.SliceOfN(rapid.SampledFrom(hugeLooks), 0, 8).Draw(rt, "looks")
	done := make(chan error)
	go func() { // on a stack of its own: see compare of machine_test.go
		var errs []error
		for _, s := range h.spaces {
			for _, i := range looks {
				errs = append(errs, s.compare(i))
			}
		}
		done <- errors.Join(errs...)
	}()
	if err := <-done; err != nil {
		rt.Fatal(err)
	}
	if err := h.m.Check(); err != nil {
		rt.Fatal(err)
	}
}

func (h *hugeMachine) end(rt *rapid.T) {
	for _, p := range h.pins {
		p.pin.Release()
	}
	for _, s := range h.spaces {
		for _, i := range hugeLooks {
			if err := s.compare(i); err != nil {
				rt.Error(err)
			}
		}
		s.as.Close()
	}
	if err := h.m.Check(); err != nil {
		rt.Error(err)
	}
	if st := h.m.Stats(); st.FramesInUse != 0 || st.HugeLeaves != 0 {
		rt.Errorf("left in use: %+v", st)
	}
	if err := h.m.Close(); err != nil {
		rt.Error(err)
	}
}

// TestR6HugeLeavesAgainstModel drives a family whose memory comes 2 MiB at a time
// by random operations beside the model, with counts compared after each; in some
// of the runs with so little memory that most blocks are not to be had.
func TestR6HugeLeavesAgainstModel(t *testing.T) { testHugeFamily(t, nil) }

// testHugeFamily is testFamily for this machine.
func testHugeFamily(t *testing.T, prepare func(*rapid.T, *Memory) (after func(*rapid.T))) {
	var seen MemoryStats
	rapid.Check(t, func(rt *rapid.T) {
		size := rapid.SampledFrom([]uint64{8, 14, 96}).Draw(rt, "MiB") << 20
		m, err := NewMemory(MemoryOptions{Size: size, KeepFree: 5 << 20})
		if err != nil {
			rt.Fatal(err)
		}
		after := func(*rapid.T) {}
		if prepare != nil {
			after = prepare(rt, m)
		}
		policy := rapid.SampledFrom([]HugeLeafPolicy{HugeLeavesAlways, HugeLeavesAlways, HugeLeavesAdvised}).Draw(rt, "policy")
		as, err := m.NewAddressSpace(SpaceOptions{Lowest: hugeBase, Highest: hugeAt(hugePages), HugeLeaves: policy})
		if err != nil {
			rt.Fatal(err)
		}
		h := &hugeMachine{m: m, spaces: []*hugeSpace{{as: as}}}
		defer h.end(rt)
		h.put(rt, h.spaces[0], 0, hugePages, rw)
		rt.Repeat(map[string]func(*rapid.T){
			"map": h.map_, "unmap": h.unmap, "protect": h.protect, "discard": h.discard, "guard": h.guard,
			"advise": h.advise, "collapse": h.collapse, "remap": h.remap,
			"write": h.write, "write2": h.write, "write3": h.write, "write4": h.write, "read": h.read, "read2": h.read,
			"fork": h.fork, "close": h.close, "pin": h.pin, "device": h.device,
			"": func(rt *rapid.T) {
				after(rt)
				h.check(rt)
				after(rt)
			},
		})
		st := m.Stats()
		seen.HugeInstalled += st.HugeInstalled
		seen.HugeCollapsed += st.HugeCollapsed
		seen.HugeSplit += st.HugeSplit
		seen.HugeReused += st.HugeReused
		seen.HugeFellBack += st.HugeFellBack
	})
	if !t.Failed() && seen.HugeInstalled > 150 && (seen.HugeCollapsed == 0 || seen.HugeSplit == 0 || seen.HugeReused == 0 || seen.HugeFellBack == 0) {
		t.Errorf("something never happened: %+v", seen)
	}
	t.Logf("installed %d, collapsed %d, split %d, reused %d, fell back %d",
		seen.HugeInstalled, seen.HugeCollapsed, seen.HugeSplit, seen.HugeReused, seen.HugeFellBack)
}
