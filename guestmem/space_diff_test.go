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
