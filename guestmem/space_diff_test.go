package guestmem

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func TestDiffListsWhatDiffers(t *testing.T) {
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, rw)
	for i := range addr.GVA(1024) {
		mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)))
	}
	s := mustSnapshot(t, as)
	defer s.Close()
	list := func(a, b Comparable, mode DiffMode) (out []Difference) {
		for d, err := range Diff(a, b, mode) {
			mustDo(t, err)
			out = append(out, d)
		}
		return out
	}
	if d := list(as, s, ByFrame); d != nil {
		t.Errorf("nothing was written, and there differs %v", d)
	}
	mustDo(t, as.Store64(ctx, gva+3*page, 3)) // what was there
	mustDo(t, as.Store64(ctx, gva+4*page, 1))
	mustDo(t, as.Store64(ctx, gva+600*page, 1))
	mustDo(t, as.Protect(gva+700*page, 2*page, ProtRead))
	mustDo(t, as.Unmap(gva+1000*page, page))
	mapAt(t, as, 0x60000000, page, rw)
	at := func(i, n addr.GVA) addr.Range { return addr.Range{Start: gva + i*page, End: gva + (i+n)*page} }
	mappings := []Difference{{at(700, 2), true}, {at(1000, 1), true}, {addr.Range{Start: 0x60000000, End: 0x60000000 + page}, true}}
	for _, c := range []struct {
		mode DiffMode
		want []Difference
	}{
		{ByFrame, append([]Difference{{at(3, 2), false}, {at(600, 1), false}}, mappings...)},
		{ByContent, append([]Difference{{at(4, 1), false}, {at(600, 1), false}}, mappings...)},
	} {
		if d := cmp.Diff(c.want, list(s, as, c.mode)); d != "" {
			t.Errorf("mode %d (-want +got):\n%s", c.mode, d)
		}
	}
	other := newSpace(t, newMemory(t, 1<<20))
	gone := mustSnapshot(t, as)
	mustDo(t, gone.Close())
	for _, c := range []struct {
		b    Comparable
		want error
	}{{other, ErrOtherSpace}, {gone, ErrClosed}, {nil, ErrInvalid}, {(*SpaceSnapshot)(nil), ErrInvalid}, {(*AddressSpace)(nil), ErrInvalid}} {
		n := 0
		for _, err := range Diff(as, c.b, ByFrame) {
			if n++; !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		}
		if n != 1 {
			t.Errorf("%d yields of an error", n)
		}
	}
	mustCheck(t, m)
}

// A guard page is no area and has no frame, and yet a program sees it.
func TestDiffListsGuards(t *testing.T) {
	m := newMemory(t, 64<<20)
	const base = addr.GVA(0x40000000)
	at := func(i, n addr.GVA) addr.Range { return addr.Range{Start: base + i*page, End: base + (i+n)*page} }
	guard := func(as *AddressSpace, i, n addr.GVA) {
		t.Helper()
		mustDo(t, as.Advise(ctx, at(i, n).Start, at(i, n).Len(), AdviceGuardInstall))
	}
	world := func(o SpaceOptions) (*AddressSpace, *AddressSpace) {
		t.Helper()
		as, err := m.NewAddressSpace(o)
		mustDo(t, err)
		t.Cleanup(func() { as.Close() })
		mapAt(t, as, base, 4<<20, rw)
		mustDo(t, as.Store64(ctx, base+5*page, 5))
		mustDo(t, as.Store64(ctx, base+6*page, 6))
		guard(as, 700, 2)
		child, err := as.Fork()
		mustDo(t, err)
		t.Cleanup(func() { child.Close() })
		return as, child
	}
	for _, c := range []struct {
		name string
		o    SpaceOptions
		do   func(child *AddressSpace)
		want []Difference
	}{
		{"none more", SpaceOptions{}, func(*AddressSpace) {}, nil},
		{"where nothing was", SpaceOptions{}, func(child *AddressSpace) { guard(child, 600, 1) }, []Difference{{at(600, 1), false}}},
		{"where a page was", SpaceOptions{}, func(child *AddressSpace) { guard(child, 5, 2) }, []Difference{{at(5, 2), false}}},
		{"the same in other tables", SpaceOptions{}, func(child *AddressSpace) {
			guard(child, 701, 2)
		}, []Difference{{at(702, 1), false}}},
		{"one less", SpaceOptions{}, func(child *AddressSpace) {
			mustDo(t, child.Advise(ctx, base+701*page, page, AdviceGuardRemove))
		}, []Difference{{at(701, 1), false}}},
		{"in 2 MiB", SpaceOptions{HugeLeaves: HugeLeavesAlways}, func(child *AddressSpace) { guard(child, 7, 1) }, []Difference{{at(7, 1), false}}},
	} {
		as, child := world(c.o)
		c.do(child)
		for _, mode := range []DiffMode{ByFrame, ByContent} {
			for _, pair := range [][2]*AddressSpace{{as, child}, {child, as}} {
				var got []Difference
				for d, err := range Diff(pair[0], pair[1], mode) {
					mustDo(t, err)
					got = append(got, d)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Errorf("%s, mode %d (-want +got):\n%s", c.name, mode, d)
				}
			}
		}
	}
	mustCheck(t, m)
}
