package guestmem

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// Each range says what is there and with whom it is shared, and all totals are
// those of Stats.
func TestLayoutAgreesWithStats(t *testing.T) {
	m := newMemory(t, 32<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 8*page, rw)
	for _, i := range []addr.GVA{0, 1, 2, 4} {
		mustDo(t, as.Store64(ctx, gva+i*page, 1))
	}
	mapAt(t, as, gva+8*page, page, ProtRead)
	shm := mustMap(t, as, MapOptions{Addr: 0x50000000, Length: 4 * page, Prot: rw, Flags: MapShared | MapAnonymous | MapFixed})
	for i := range addr.GVA(3) {
		mustDo(t, as.Store64(ctx, shm+i*page, 1))
	}
	mustDo(t, as.Unmap(shm, page)) // a page of the object that is mapped nowhere
	pin, err := as.Pin(ctx, addr.Range{Start: gva + 4*page, End: gva + 5*page}, Write)
	mustDo(t, err)
	gone, err := as.Pin(ctx, addr.Range{Start: gva + 5*page, End: gva + 6*page}, Write)
	mustDo(t, err)
	mustDo(t, as.Unmap(gva+5*page, page)) // pinned, and led to by nothing else
	child := mustFork(t, as)
	s := mustSnapshot(t, as)
	defer s.Close()
	mustDo(t, as.Store64(ctx, gva+page, 2))

	me, kid, kept := uint32(as.id), uint32(child.id), uint32(s.frozen.id)
	r := func(from addr.GVA, n addr.GVA, prot Prot, state LayoutState, with ...uint32) LayoutRange {
		return LayoutRange{Range: addr.Range{Start: from, End: from + n*page}, Prot: prot, State: state, With: with}
	}
	shared := func(n int) LayoutRange {
		x := r(shm+addr.GVA(n)*page, 2, rw, LaidPresent|LaidShared, kid, kept)
		x.Name = "[shared]"
		return x
	}
	got, err := as.Layout()
	mustDo(t, err)
	for i := range got.Ranges {
		if got.Ranges[i].Start >= shm {
			got.Ranges[i].Name = "[shared]"
		}
	}
	tail := r(shm+3*page, 1, rw, 0)
	tail.Name = "[shared]"
	want := []LayoutRange{
		r(gva, 1, rw, LaidPresent|LaidShared, kid, kept),
		r(gva+page, 1, rw, LaidPresent),
		r(gva+2*page, 1, rw, LaidPresent|LaidShared, kid, kept),
		r(gva+3*page, 1, rw, 0),
		r(gva+4*page, 1, rw, LaidPresent|LaidPinned),
		r(gva+6*page, 2, rw, 0),
		r(gva+8*page, 1, ProtRead, 0),
		shared(1), tail,
	}
	if d := cmp.Diff(want, got.Ranges); d != "" {
		t.Errorf("ranges (-want +got):\n%s", d)
	}
	if n := got.Bytes(LaidPresent, LaidShared); n != 2*page {
		t.Errorf("%d bytes are private", n)
	}
	if n, want := got.Bytes(LaidPinned, 0)+page, as.Stats().PinnedBytes; n != want {
		t.Errorf("%d bytes are pinned, of %d", n, want)
	}

	f := m.Layout()
	stats := m.Stats()
	if sum := f.DataFrames + f.Tables + f.Unmapped + f.PinnedAway; sum != stats.FramesInUse || f.Tables != stats.Tables {
		t.Errorf("%d frames in %d, %d, %d and %d; %+v", sum, f.DataFrames, f.Tables, f.Unmapped, f.PinnedAway, stats)
	}
	if f.Unmapped != 1 || f.PinnedAway != 1 {
		t.Errorf("%d pages of objects are mapped nowhere, %d frames pinned away; want 1 and 1", f.Unmapped, f.PinnedAway)
	}
	ids := map[uint32]*AddressSpace{me: as, kid: child, kept: s.frozen}
	for _, l := range f.Spaces {
		a := ids[l.ID]
		if st := a.Stats(); l.Areas != st.Areas || l.Mapped != st.MappedBytes || l.Bytes(0, 0) != st.MappedBytes || l.Snapshot != a.frozen {
			t.Errorf("space %d: %d areas, %d bytes, ranges of %d; %+v", l.ID, l.Areas, l.Mapped, l.Bytes(0, 0), st)
		}
		delete(ids, l.ID)
	}
	if len(ids) != 0 {
		t.Errorf("missing: %v", ids)
	}
	mustDo(t, errors.Join(pin.Release(), gone.Release(), child.Close()))
	if _, err := child.Layout(); !errors.Is(err, ErrClosed) {
		t.Errorf("layout of a closed address space: %v", err)
	}
}
