package guestmem

import (
	"errors"
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// slotModel keeps the set of regions that it was given.
type slotModel struct {
	regions []*Region
	refuse  error
	calls   int
}

func (s *slotModel) UpdateRegions(regions []*Region) error {
	s.calls++
	if s.refuse != nil {
		return s.refuse
	}
	s.regions = regions
	return nil
}

func (s *slotModel) mustEqual(t *testing.T, m *Memory) {
	t.Helper()
	if got, want := fmt.Sprint(s.regions), fmt.Sprint(m.Regions()); got != want {
		t.Errorf("the listener has %s, the memory %s", got, want)
	}
}

// R13: listeners have the regions that the memory has, also where one of them
// refuses a change: then nobody has it.
func TestR13ListenersHaveTheRegions(t *testing.T) {
	m := newPhys(t)
	first := mustAdd(t, m, RegionOptions{Size: page})
	a, b := &slotModel{}, &slotModel{}
	mustDo(t, m.AttachListener(a))
	a.mustEqual(t, m)
	if err := m.AttachListener(a); !errors.Is(err, ErrBusy) {
		t.Errorf("attached twice: %v", err)
	}
	b.refuse = errRefused
	if err := m.AttachListener(b); !errors.Is(err, errRefused) {
		t.Errorf("attaching one that refuses: %v", err)
	}
	b.refuse = nil
	mustDo(t, m.AttachListener(b))
	check := func() {
		t.Helper()
		a.mustEqual(t, m)
		b.mustEqual(t, m)
	}
	second := mustAdd(t, m, RegionOptions{Base: 1 << 20, Size: page})
	mustWritePhys(t, m, 1<<20, []byte("second"))
	check()
	b.refuse = errRefused
	if _, err := m.AddRegion(RegionOptions{Base: 2 << 20, Size: page}); !errors.Is(err, errRefused) {
		t.Errorf("an addition that is refused: %v", err)
	}
	b.refuse = nil
	check()
	if n := len(m.Regions()); n != 2 {
		t.Errorf("there are %d regions", n)
	}
	b.refuse = errRefused
	if err := m.RemoveRegion(second); !errors.Is(err, errRefused) {
		t.Errorf("a removal that is refused: %v", err)
	}
	b.refuse = nil
	check()
	if got := mustReadPhys(t, m, 1<<20, 6); string(got) != "second" {
		t.Errorf("after it reads %q", got)
	}
	s, err := m.Slice(1<<20, 1, Read) // slices can be held again
	mustDo(t, err)
	s.Release()
	if err := m.Close(); !errors.Is(err, ErrBusy) {
		t.Errorf("Close with listeners: %v", err)
	}
	mustDo(t, m.RemoveRegion(second))
	check()
	m.DetachListener(b)
	m.DetachListener(b)
	mustDo(t, m.RemoveRegion(first))
	a.mustEqual(t, m)
	if len(b.regions) != 1 {
		t.Error("a detached listener was told")
	}
	m.DetachListener(a)
}

// dirtyModel is a source of dirty pages.
type dirtyModel struct {
	pages []uint64
	fail  error
}

func (d *dirtyModel) CollectDirty(r *Region, bitmap []uint64) error {
	if d.fail != nil {
		return d.fail
	}
	for _, p := range d.pages {
		bitmap[p/64] |= 1 << (p % 64)
	}
	d.pages = nil
	return nil
}

// A harvest has what was stored and what the sources know, once, in runs; one
// that fails loses nothing.
func TestCollectDirty(t *testing.T) {
	m := newPhys(t)
	const n = 3 * 64
	r := mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: n * page})
	other := mustAdd(t, m, RegionOptions{Base: 0, Size: page})
	a, b := &dirtyModel{}, &dirtyModel{}
	mustDo(t, m.AttachDirtySource(a))
	mustDo(t, m.AttachDirtySource(b))
	if err := m.AttachDirtySource(a); !errors.Is(err, ErrBusy) {
		t.Errorf("attached twice: %v", err)
	}
	mustWritePhys(t, m, r.Base()+63*page+5, make([]byte, page)) // pages 63 and 64
	mustDo(t, m.Store8(r.Base()+191*page, 1))
	a.pages, b.pages = []uint64{0, 62}, []uint64{62, 65, 130}
	b.fail = errRefused
	collect := func() (runs [][2]uint64, err error) {
		err = m.CollectDirty(r, func(start addr.GPA, k uint64) {
			runs = append(runs, [2]uint64{uint64(start-r.Base()) / page, k})
		})
		return runs, err
	}
	if runs, err := collect(); !errors.Is(err, errRefused) || runs != nil {
		t.Errorf("with a source that fails: %v, %v", runs, err)
	}
	b.fail = nil
	runs, err := collect()
	if want := "[[0 1] [62 4] [130 1] [191 1]]"; err != nil || fmt.Sprint(runs) != want {
		t.Errorf("harvested %v, %v, want %s", runs, err, want)
	}
	if runs, err := collect(); err != nil || runs != nil {
		t.Errorf("harvested again %v, %v", runs, err)
	}
	for p := range uint64(n) {
		mustDo(t, m.Store8(r.gpaOf(p), 1))
	}
	if runs, _ := collect(); fmt.Sprint(runs) != "[[0 192]]" {
		t.Errorf("all of it: %v", runs)
	}
	m.DetachDirtySource(b)
	b.pages = []uint64{1}
	mustDo(t, m.Discard(r.Base()+7*page, 2*page))
	if runs, _ := collect(); fmt.Sprint(runs) != "[[7 2]]" {
		t.Errorf("after a discard: %v", runs)
	}
	if got := harvestOf(t, m, other); len(got) != 0 {
		t.Errorf("another region: %v", got)
	}
	if err := newPhys(t).CollectDirty(r, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a region of another memory: %v", err)
	}
}

// The stores of address spaces count in the pool's region, once asked for; what
// is pinned counts always.
func TestCollectDirtyFrames(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	gva := mapAnon(t, as, 8*page)
	mustWrite(t, as, gva, make([]byte, 8*page))
	r := m.Region()
	if got := harvestOf(t, m, r); len(got) != 0 {
		t.Errorf("without tracking: %v", got)
	}
	mustDo(t, m.TrackFrames())
	pin, err := as.Pin(ctx, addr.Range{Start: gva + 6*page, End: gva + 7*page}, Write)
	mustDo(t, err)
	frameOf := func(i addr.GVA) uint64 {
		f, ok := as.pt.Translate(gva+i*page, 0)
		if !ok {
			t.Fatalf("page %d is absent", i)
		}
		return r.pageOf(f.GPA())
	}
	want := func(what string, pages ...addr.GVA) {
		t.Helper()
		got := harvestOf(t, m, r)
		ok := len(got) == len(pages)
		for _, p := range pages {
			ok = ok && got[frameOf(p)]
		}
		if !ok {
			t.Errorf("%s: %v", what, got)
		}
	}
	want("a pin", 6)
	mustWrite(t, as, gva+page, []byte("x"))
	mustDo(t, as.Store64(ctx, gva+3*page, 1))
	mustRead(t, as, gva, 8*page)
	want("stores", 1, 3, 6)
	pin.Release()
	want("the end of a pin", 6)
	want("nothing")
	child := mustFork(t, as)
	mustWrite(t, as, gva+5*page, []byte("copied"))
	got := harvestOf(t, m, r)
	if !got[frameOf(5)] {
		t.Errorf("a copy on write: %v lacks %d", got, frameOf(5))
	}
	mustDo(t, child.Close())

	// By guest-physical address: frames that somebody has.
	gpa := r.gpaOf(frameOf(2))
	mustWrite(t, as, gva+2*page, []byte("by gva"))
	if b := mustReadPhys(t, m, gpa, 6); string(b) != "by gva" {
		t.Errorf("the frame reads %q", b)
	}
	mustWritePhys(t, m, gpa, []byte("by gpa"))
	mustSee(t, as, gva+2*page, []byte("by gpa"))
	if _, err := m.ReadAt(make([]byte, 1), r.End()-1); !errors.Is(err, ErrNotMapped) {
		t.Errorf("a free frame: %v", err)
	}
	for what, err := range map[string]error{"Discard": m.Discard(gpa, page), "RemoveRegion": m.RemoveRegion(r)} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("%s of the pool's region: %v", what, err)
		}
	}
}

type listenerFunc func([]*Region) error

func (f listenerFunc) UpdateRegions(r []*Region) error { return f(r) }

type sourceFunc func(*Region, []uint64) error

func (f sourceFunc) CollectDirty(r *Region, b []uint64) error { return f(r, b) }

// What == panics over is refused when it is attached, and not met when another
// one is.
func TestListenersThatCannotBeCompared(t *testing.T) {
	m := newPhys(t)
	l := listenerFunc(func([]*Region) error { t.Error("it was told"); return nil })
	s := sourceFunc(func(*Region, []uint64) error { t.Error("it was asked"); return nil })
	for what, err := range map[string]error{
		"a function":     m.AttachListener(l),
		"nil":            m.AttachListener(nil),
		"a source":       m.AttachDirtySource(s),
		"nil for source": m.AttachDirtySource(nil),
	} {
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	m.DetachListener(l)
	m.DetachListener(nil)
	m.DetachDirtySource(s)
	mustDo(t, m.AttachListener(&silentListener{}))
	m.DetachListener(l)
	m.DetachListener(&silentListener{})
	for _, x := range m.listeners {
		m.DetachListener(x)
	}
}

// silentListener is told everything and does nothing; a byte, so that two are two.
type silentListener struct{ _ byte }

func (*silentListener) UpdateRegions([]*Region) error { return nil }
