package guestmem

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// BenchmarkReadAreas reads 8 bytes at random of many areas.
func BenchmarkReadAreas(b *testing.B) {
	for _, areas := range []int{1, 1000, 30000} {
		b.Run(fmt.Sprintf("areas=%d", areas), func(b *testing.B) {
			m := newMemory(b, 256<<20)
			as := newSpace(b, m)
			base := manyAreas(b, as, areas)
			mustDo(b, as.Populate(ctx, addr.Range{Start: base, End: base + addr.GVA(areas)*page}, Read))
			h := m.NewHandle()
			defer h.Close()
			a := as.With(h)
			rng := rand.New(rand.NewPCG(1, 2))
			var order [4096]addr.GVA
			for i := range order {
				order[i] = base + addr.GVA(rng.IntN(areas))*page + addr.GVA(rng.IntN(500))*8
			}
			var buf [8]byte
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				a.ReadAt(ctx, buf[:], order[i%len(order)])
				i++
			}
		})
	}
}

// BenchmarkProtect takes write permission from a page in the middle of a touched
// area, which splits it, and gives it back, which merges it.
func BenchmarkProtect(b *testing.B) {
	for _, areas := range []int{1, 1000} {
		b.Run(fmt.Sprintf("areas=%d", areas), func(b *testing.B) {
			m := newMemory(b, 64<<20)
			as := newSpace(b, m)
			manyAreas(b, as, areas)
			gva := mapAnon(b, as, 16*page)
			mustDo(b, as.Populate(ctx, addr.Range{Start: gva, End: gva + 16*page}, Write))
			b.ReportAllocs()
			for b.Loop() {
				if err := as.Protect(gva+5*page, page, ProtRead); err != nil {
					b.Fatal(err)
				}
				if err := as.Protect(gva+5*page, page, ProtRead|ProtWrite); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHugeFault is a first touch of 2 MiB in recycled memory, and a write to a
// block that a child shares.
func BenchmarkHugeFault(b *testing.B) {
	m := newMemory(b, 64<<20)
	as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: HugeLeavesAlways})
	mustDo(b, err)
	mapAt(b, as, 1<<30, 2<<20, rw)
	b.Run("touch", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := as.Fault(ctx, 1<<30, Write); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			mustDo(b, as.Discard(1<<30, 2<<20))
			b.StartTimer()
		}
	})
	b.Run("split", func(b *testing.B) {
		mustDo(b, as.Fault(ctx, 1<<30, Write))
		b.ReportAllocs()
		for b.Loop() {
			b.StopTimer()
			child := mustFork(b, as)
			b.StartTimer()
			if err := child.Fault(ctx, 1<<30, Write); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			child.Close()
			b.StartTimer()
		}
	})
}
