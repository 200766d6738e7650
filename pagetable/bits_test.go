package pagetable_test

import (
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
)

// aCPU changes leaves by compare-and-swap while they are present, as a vCPU's
// page walk does when it sets accessed and dirty. A bit can be set once only, so
// besides setting it counts, in bits that no one else uses, how often it has
// changed each leaf: whoever loses one of its changes loses the tally.
type aCPU struct {
	stop  atomic.Bool
	done  <-chan struct{}
	tally []uint64 // by leaf; read after halt
	dirty []bool   // by leaf: dirty was set; read after halt
}

const (
	tallyShift = 52
	tallyMask  = 0x3ff
)

func tallyOf(e pagetable.Entry) uint64 { return uint64(e) >> tallyShift & tallyMask }

func runCPU(leaves []*uint64) *aCPU {
	c := &aCPU{tally: make([]uint64, len(leaves)), dirty: make([]bool, len(leaves))}
	started := make(chan struct{})
	c.done = testutil.Go(func() {
		close(started)
		for !c.stop.Load() {
			for i, p := range leaves {
				e := atomic.LoadUint64(p)
				if !pagetable.Entry(e).Has(present) {
					continue
				}
				to := e&^(tallyMask<<tallyShift) | (tallyOf(pagetable.Entry(e))+1)&tallyMask<<tallyShift | uint64(pagetable.Accessed)
				if pagetable.Entry(e).Has(pagetable.Writable) {
					to |= uint64(pagetable.Dirty)
				}
				if atomic.CompareAndSwapUint64(p, e, to) {
					c.tally[i] = (c.tally[i] + 1) & tallyMask
					c.dirty[i] = c.dirty[i] || to&uint64(pagetable.Dirty) != 0
				}
			}
		}
	})
	<-started
	return c
}

func (c *aCPU) halt() { c.stop.Store(true); <-c.done }

// lost reports what of the CPU's changes to leaf i is not in e.
func (c *aCPU) lost(i int, e pagetable.Entry) bool {
	return tallyOf(e) != c.tally[i] || c.dirty[i] && !e.Has(pagetable.Dirty)
}

const bitsPages = 512

// bitsWorld is a space with a full leaf table, and its leaves.
func bitsWorld(t *testing.T) (s *space, r addr.Range, leaves []*uint64, pageOf map[addr.PFN]int) {
	s = newWorld(t, 1024, false).newSpace()
	base := aPage &^ (leafPT - 1)
	r = addr.Range{Start: base, End: base + bitsPages*page}
	leaves, pageOf = make([]*uint64, bitsPages), make(map[addr.PFN]int)
	for i := range leaves {
		gva := base + addr.GVA(i)*page
		s.write(gva, 1)
		leaves[i] = s.raw(gva)
		pageOf[s.pathOf(gva)[0]] = i
	}
	return s, r, leaves, pageOf
}

// Until the moment that an entry is taken away the CPU may set bits in it, and
// they are kept: they say whether the page must be saved.
//
//	sweep                     CPU
//	load e
//	                          e → e|D
//	store 0: D is lost        (swap 0 returns e|D)
func TestR1ZapKeepsAccessedAndDirty(t *testing.T) {
	s, r, leaves, pageOf := bitsWorld(t)
	for round := range 50 {
		cpu := runCPU(leaves)
		z := s.zap(r, r.Intersect(addr.Range{Start: r.Start + page, End: r.End}))
		cpu.halt()
		if len(z.Leaves) != bitsPages {
			t.Fatalf("round %d: %d leaves, want %d", round, len(z.Leaves), bitsPages)
		}
		for _, e := range z.Leaves {
			if i := pageOf[e.Frame()]; cpu.lost(i, e) {
				t.Fatalf("round %d: page %d: %#x; the CPU changed it %d times, dirty %v", round, i, uint64(e), cpu.tally[i], cpu.dirty[i])
			}
			again := pagetable.LeafEntry(e.Frame(), userRW)
			if !s.t.Find(r.Start + addr.GVA(pageOf[e.Frame()])*page).Install(again) {
				t.Fatal("Install lost")
			}
		}
	}
}

// Taking a permission away leaves the CPU's bits in place, and takes it for
// good: no change of the CPU's brings it back.
func TestR1ProtectKeepsAccessedAndDirty(t *testing.T) {
	s, r, leaves, _ := bitsWorld(t)
	for round := range 50 {
		cpu := runCPU(leaves)
		s.protect(r, pagetable.User)
		cpu.halt()
		for i, p := range leaves {
			e := pagetable.Entry(*p)
			if cpu.lost(i, e) || e.Has(pagetable.Writable) {
				t.Fatalf("round %d: page %d: %#x; the CPU changed it %d times, dirty %v", round, i, uint64(e), cpu.tally[i], cpu.dirty[i])
			}
			*p = uint64(pagetable.LeafEntry(e.Frame(), userRW))
		}
	}
}

// Adding one loses nothing either, and loses only to the CPU.
func TestR1AllowKeepsAccessedAndDirty(t *testing.T) {
	s, r, leaves, _ := bitsWorld(t)
	for _, p := range leaves {
		*p &^= uint64(pagetable.Writable)
	}
	for round := range 50 {
		cpu := runCPU(leaves)
		for gva := r.Start; gva < r.End; gva += page {
			for l := s.t.Find(gva); !l.Allow(pagetable.Writable); l = s.t.Find(gva) {
			}
		}
		cpu.halt()
		for i, p := range leaves {
			e := pagetable.Entry(*p)
			if cpu.lost(i, e) || !e.Has(userRW) {
				t.Fatalf("round %d: page %d: %#x; the CPU changed it %d times, dirty %v", round, i, uint64(e), cpu.tally[i], cpu.dirty[i])
			}
			*p = uint64(pagetable.LeafEntry(e.Frame(), pagetable.User))
		}
	}
}
