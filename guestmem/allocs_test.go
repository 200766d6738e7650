package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

// What is done for every access, and for every page, allocates nothing on the heap:
// a pause of the collector would be a guest's.
func TestHotPathsAllocateNothing(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checking allocates")
	}
	m := newMemory(t, 128<<20)
	as := newSpace(t, m)
	const areas = 1000
	base := manyAreas(t, as, areas)
	one := mapAnon(t, as, 64*page)
	cow := mapAnon(t, as, 512*page)
	fresh := mapAnon(t, as, 4096*page)
	for _, r := range []addr.Range{{Start: base, End: base + areas*page}, {Start: fresh, End: fresh + 4096*page}} {
		mustDo(t, as.Populate(ctx, r, Read)) // so that the pool has frames again below
	}
	mustDo(t, as.Populate(ctx, addr.Range{Start: cow, End: cow + 512*page}, Write))
	mustDo(t, as.Populate(ctx, addr.Range{Start: one, End: one + 64*page}, Write))
	child := mustFork(t, as)
	mustDo(t, as.Discard(fresh, 4096*page))
	h := m.NewHandle()
	defer h.Close()
	a, c := as.With(h), child.With(h)
	var word [8]byte
	all := make([]byte, areas*page)
	i := addr.GVA(0)
	for name, fn := range map[string]func() error{
		"read 8 bytes, owned handle":  func() error { _, err := a.ReadAt(ctx, word[:], one+24); return err },
		"read 8 bytes, pooled handle": func() error { _, err := as.ReadAt(ctx, word[:], one+24); return err },
		"write 8 bytes":               func() error { _, err := a.WriteAt(ctx, word[:], one+24); return err },
		"write 8 bytes, pooled":       func() error { _, err := as.WriteAt(ctx, word[:], one+24); return err },
		"read over two pages":         func() error { _, err := a.ReadAt(ctx, word[:], one+page-4); return err },
		"read over 1 000 areas":       func() error { _, err := a.ReadAt(ctx, all, base); return err },
		"write over 64 pages":         func() error { _, err := as.WriteAt(ctx, all[:64*page], one); return err },
		"load":                        func() error { _, err := a.Load64(ctx, one); return err },
		"store":                       func() error { return as.Store64(ctx, one, 5) },
		"compare and swap":            func() error { _, err := a.CompareAndSwap64(ctx, one, 5, 5); return err },
		"scattered words of 1 000 areas": func() error {
			for k := range addr.GVA(areas) {
				if _, err := a.ReadAt(ctx, word[:], base+k*page+k%500*8); err != nil {
					return err
				}
			}
			return nil
		},
	} {
		if n := testing.AllocsPerRun(20, func() { mustDo(t, fn()) }); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	// Each page once: the first fault of a table takes its frames, which is not
	// asked here. A batch of what is retired is handed over once in 64 pages.
	mustDo(t, a.Fault(ctx, fresh, Write))
	if n := testing.AllocsPerRun(400, func() { i++; mustDo(t, a.Fault(ctx, fresh+i*page, Write)) }); n != 0 {
		t.Errorf("first touch: %v allocations", n)
	}
	i = 0
	mustDo(t, c.Fault(ctx, cow, Write))
	if n := testing.AllocsPerRun(400, func() { i++; mustDo(t, c.Fault(ctx, cow+i*page, Write)) }); n != 0 {
		t.Errorf("copy on write: %v allocations", n)
	}
}

// Changes of areas allocate what they publish: areas, which are immutable, and a view
// of them for each change. Where a guest goes to and fro, they have both already.
func TestChangesToAndFroAllocateNothing(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checking allocates")
	}
	m := newMemory(t, 64<<20)
	as := newSpace(t, m)
	manyAreas(t, as, 1000)
	gva := mapAnon(t, as, 16*page)
	mustDo(t, as.Populate(ctx, addr.Range{Start: gva, End: gva + 16*page}, Write))
	if n := testing.AllocsPerRun(200, func() {
		mustDo(t, as.Protect(gva+5*page, page, ProtRead))
		mustDo(t, as.Protect(gva+5*page, page, ProtRead|ProtWrite))
	}); n > 0 {
		t.Errorf("protect, split and merge: %v allocations", n)
	}
	if n := testing.AllocsPerRun(200, func() {
		at, err := as.Map(ctx, MapOptions{Length: page, Prot: ProtRead | ProtWrite | ProtExec, Flags: MapPrivate | MapAnonymous})
		mustDo(t, err)
		mustDo(t, as.Unmap(at, page))
	}); n > 0 {
		t.Errorf("map and unmap: %v allocations", n)
	}
}
