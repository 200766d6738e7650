package guestmem

import (
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

func BenchmarkCopy8(b *testing.B) {
	m := newMemory(b, 64<<20)
	as := newSpace(b, m)
	gva := mapAnon(b, as, 4<<20)
	var buf [8]byte
	mustWrite(b, as, gva, buf[:])
	b.Run("handle=pooled", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			as.ReadAt(ctx, buf[:], gva)
		}
	})
	h := m.NewHandle()
	defer h.Close()
	a := as.With(h)
	b.Run("handle=owned", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			a.ReadAt(ctx, buf[:], gva)
		}
	})
}

// BenchmarkFault is a first touch of a page in a working set of 16 MiB, whose
// frames are recycled: the pages are discarded beside the clock.
func BenchmarkFault(b *testing.B) {
	m := newMemory(b, 256<<20)
	as := newSpace(b, m)
	const n = 4096
	gva := mapAnon(b, as, n*page)
	h := m.NewHandle()
	defer h.Close()
	a := as.With(h)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if i == n {
			b.StopTimer()
			as.Discard(gva, n*page)
			i = 0
			b.StartTimer()
		}
		if err := a.Fault(ctx, gva+addr.GVA(i)*page, Write); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkMapUnmap(b *testing.B) {
	for _, areas := range []int{10, 1000, 30000} {
		b.Run(fmt.Sprintf("areas=%d", areas), func(b *testing.B) {
			m := newMemory(b, 256<<20)
			as := newSpace(b, m)
			manyAreas(b, as, areas)
			b.ReportAllocs()
			for b.Loop() {
				gva, err := as.Map(ctx, MapOptions{Length: page, Prot: ProtRead | ProtWrite | ProtExec, Flags: MapPrivate | MapAnonymous})
				if err != nil {
					b.Fatal(err)
				}
				if err := as.Unmap(gva, page); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// manyAreas maps n areas of a page that cannot merge.
func manyAreas(tb testing.TB, as *AddressSpace, n int) addr.GVA {
	const base addr.GVA = 0x100000000
	for i := range n {
		prot := ProtRead
		if i%2 == 0 {
			prot |= ProtWrite
		}
		mapAt(tb, as, base+addr.GVA(i)*page, page, prot)
	}
	return base
}

func BenchmarkFork(b *testing.B) {
	run := func(name string, prepare func(*AddressSpace)) {
		b.Run(name, func(b *testing.B) {
			m := newMemory(b, 3<<30)
			as := newSpace(b, m)
			prepare(as)
			b.ReportAllocs()
			for b.Loop() {
				child, err := as.Fork()
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				child.Close()
				b.StartTimer()
			}
		})
	}
	for _, mib := range []uint64{1, 256, 1024} {
		run(fmt.Sprintf("MiB=%d", mib), func(as *AddressSpace) {
			gva := mapAnon(b, as, mib<<20)
			if err := as.Populate(ctx, addr.Range{Start: gva, End: gva + addr.GVA(mib<<20)}, Write); err != nil {
				b.Fatal(err)
			}
		})
	}
	run("areas=30000", func(as *AddressSpace) { manyAreas(b, as, 30000) })
}

// BenchmarkCOW is a write to a page shared with a child, one a leaf table.
func BenchmarkCOW(b *testing.B) {
	m := newMemory(b, 1<<30)
	as := newSpace(b, m)
	const tables = 64
	gva := mapAnon(b, as, tables<<21)
	if err := as.Populate(ctx, addr.Range{Start: gva, End: gva + tables<<21}, Write); err != nil {
		b.Fatal(err)
	}
	for _, bench := range []struct {
		name   string
		stride addr.GVA
		n      int
	}{{"stride=2MiB", 2 << 20, tables}, {"stride=4KiB", page, tables * 512}} {
		b.Run(bench.name, func(b *testing.B) {
			b.ReportAllocs()
			child := mustFork(b, as)
			i := 0
			for b.Loop() {
				if i == bench.n {
					b.StopTimer()
					child.Close()
					child = mustFork(b, as)
					i = 0
					b.StartTimer()
				}
				if err := child.Fault(ctx, gva+addr.GVA(i)*bench.stride, Write); err != nil {
					b.Fatal(err)
				}
				i++
			}
			child.Close()
		})
	}
}
