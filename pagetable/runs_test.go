package pagetable_test

import (
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
)

// A copied leaf table has every entry of the original, without write permission where
// it is private, and each frame it leads to gains one reference: whatever the order of
// the frames, of which those that follow each other are counted as a run, and whatever
// else differs between neighbours.
func TestR6CopiedRunsAreExact(t *testing.T) {
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		both(t, 2048, func(w *world) {
			s := w.newSpace()
			base := aPage &^ (leafPT - 1)
			for i := range addr.GVA(512) {
				s.own(base+i*page, true)
				if !s.leaf(base + i*page).Install(pagetable.LeafEntry(s.alloc(), userRW)) {
					t.Fatal("Install lost, and nobody else is there")
				}
			}
			table := s.pathOf(base)[1]
			entry := func(i int) *uint64 { return w.a.Entry(table, uint64(i)) }
			for range rng.IntN(200) {
				// Near each other, so that much still looks like a run.
				i := rng.IntN(512)
				k := i&^3 | rng.IntN(4)
				if rng.IntN(2) == 0 {
					k = (i + 4*rng.IntN(3)) & 511
				}
				*entry(i), *entry(k) = *entry(k), *entry(i)
			}
			for range rng.IntN(200) {
				bits := []pagetable.Entry{
					pagetable.Writable, pagetable.Dirty, pagetable.Accessed, pagetable.User, pagetable.NoExec, pagetable.Shared, pagetable.Armed,
				}
				*entry(rng.IntN(512)) ^= uint64(bits[rng.IntN(len(bits))])
			}
			w.check()
			want := make([]pagetable.Entry, 512)
			for i := range want {
				e := pagetable.Entry(*entry(i))
				if !e.Has(pagetable.Shared) {
					e &^= pagetable.Writable
				}
				want[i] = e
			}
			c := s.fork()
			c.own(base, true)
			copied := c.pathOf(base)[1]
			if copied == table {
				t.Fatal("the table was not copied")
			}
			for i := range want {
				if got := pagetable.Entry(*w.a.Entry(copied, uint64(i))); got != want[i] {
					t.Errorf("seed %d: entry %d is %#x, want %#x", seed, i, got, want[i])
				}
			}
			w.check()
		})
	}
}
