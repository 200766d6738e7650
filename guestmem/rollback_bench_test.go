package guestmem

import (
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// BenchmarkRollback is a rollback after n pages were written, without the
// writing: next to each other, and one in each 2 MiB.
func BenchmarkRollback(b *testing.B) {
	for _, bench := range []struct {
		name   string
		stride addr.GVA
	}{{"stride=4KiB", page}, {"stride=2MiB", 2 << 20}} {
		for _, n := range []int{0, 1, 10, 100} {
			b.Run(fmt.Sprintf("%s/pages=%d", bench.name, n), func(b *testing.B) {
				as, gva := newPopulated(b, 256<<20)
				s := mustSnapshot(b, as)
				defer s.Close()
				b.ReportAllocs()
				for b.Loop() {
					b.StopTimer()
					for i := range n {
						mustDo(b, as.Store64(ctx, gva+addr.GVA(i)*bench.stride, uint64(i)))
					}
					b.StartTimer()
					if err := as.Rollback(ctx, s); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkRollbackLoop is one turn of a fuzzer: n pages written, and back.
func BenchmarkRollbackLoop(b *testing.B) {
	for _, n := range []int{1, 10, 100} {
		b.Run(fmt.Sprintf("pages=%d", n), func(b *testing.B) {
			as, gva := newPopulated(b, 256<<20)
			s := mustSnapshot(b, as)
			defer s.Close()
			b.ReportAllocs()
			for b.Loop() {
				for i := range n {
					mustDo(b, as.Store64(ctx, gva+addr.GVA(i)*page, uint64(i)))
				}
				if err := as.Rollback(ctx, s); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkTakeBack is the first write to a page that a child had too, which is
// gone: nothing is copied but tables.
func BenchmarkTakeBack(b *testing.B) {
	for _, bench := range []struct {
		name   string
		stride addr.GVA
		pages  int
	}{{"stride=4KiB", page, 512 * 64}, {"stride=2MiB", 2 << 20, 64}} {
		b.Run(bench.name, func(b *testing.B) {
			as, gva := newPopulated(b, 128<<20)
			i := bench.pages
			for b.Loop() {
				if i == bench.pages {
					b.StopTimer()
					mustDo(b, mustFork(b, as).Close())
					i = 0
					b.StartTimer()
				}
				if err := as.Store64(ctx, gva+addr.GVA(i)*bench.stride, 1); err != nil {
					b.Fatal(err)
				}
				i++
			}
		})
	}
}

// newPopulated returns an address space of which size bytes, from gva on, are there.
func newPopulated(b *testing.B, size uint64) (as *AddressSpace, gva addr.GVA) {
	b.Helper()
	as = newSpace(b, newMemory(b, 1<<30))
	gva = mapAnon(b, as, size)
	mustDo(b, as.Populate(ctx, addr.Range{Start: gva, End: gva + addr.GVA(size)}, Write))
	return as, gva
}
