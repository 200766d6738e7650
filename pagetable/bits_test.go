package pagetable_test

import (
	"runtime"
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
	wanted atomic.Int32 // what it is to do: paused, running or halted
	does   atomic.Int32 // what it does
	done   <-chan struct{}
	tally  []uint64 // by leaf; its own while it runs
	dirty  []bool   // by leaf: dirty was set; its own while it runs
}

const (
	paused int32 = iota
	running
	halted
)

const (
	tallyShift = 53 // above the software bits that mean something
	tallyMask  = 0x3ff
)

func tallyOf(e pagetable.Entry) uint64 { return uint64(e) >> tallyShift & tallyMask }

func newCPU(t *testing.T, leaves []*uint64) *aCPU {
	c := &aCPU{tally: make([]uint64, len(leaves)), dirty: make([]bool, len(leaves))}
	c.done = testutil.Go(func() {
		for {
			switch w := c.wanted.Load(); w {
			case halted:
				return
			case running:
				c.does.Store(w)
				for i, p := range leaves {
					c.touch(i, p)
				}
			default:
				c.does.Store(w)
				runtime.Gosched()
			}
		}
	})
	t.Cleanup(func() { c.wanted.Store(halted); <-c.done })
	return c
}

func (c *aCPU) touch(i int, p *uint64) {
	e := atomic.LoadUint64(p)
	if !pagetable.Entry(e).Has(present) {
		return
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

// run has it change leaves, beginning with none changed.
func (c *aCPU) run() {
	clear(c.tally)
	clear(c.dirty)
	c.turn(running)
}

func (c *aCPU) pause() { c.turn(paused) }

func (c *aCPU) turn(to int32) {
	c.wanted.Store(to)
	for c.does.Load() != to {
		runtime.Gosched()
	}
}

// lost reports what of the CPU's changes to leaf i is not in e.
func (c *aCPU) lost(i int, e pagetable.Entry) bool {
	return tallyOf(e) != c.tally[i] || c.dirty[i] && !e.Has(pagetable.Dirty)
}

const (
	bitsPages  = 16 // few, so that both are often at the same one
	bitsRounds = 3000
)

// bitsWorld is a space with some pages, and its leaves.
func bitsWorld(t *testing.T) (s *space, r addr.Range, leaves []*uint64, pageOf map[addr.PFN]int) {
	s = newWorld(t, 1024, false).newSpace()
	r = addr.Range{Start: aPage, End: aPage + bitsPages*page}
	leaves, pageOf = make([]*uint64, bitsPages), make(map[addr.PFN]int)
	for i := range leaves {
		gva := aPage + addr.GVA(i)*page
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
	cpu, out := newCPU(t, leaves), pagetable.NewZapped()
	for round := range bitsRounds {
		out.Reset()
		cpu.run()
		s.change(func(tok pagetable.Token) {
			s.t.Zap(tok, r, r, pagetable.ZapPlan{}, new(pagetable.ZapSpare), out)
		})
		cpu.pause()
		if len(out.Leaves) != bitsPages || len(out.Tables) != 0 {
			t.Fatalf("round %d: %d leaves, %d tables, want %d", round, len(out.Leaves), len(out.Tables), bitsPages)
		}
		for _, e := range out.Leaves {
			i := pageOf[e.Frame()]
			if cpu.lost(i, e) {
				t.Fatalf("round %d: page %d: %#x; the CPU changed it %d times, dirty %v", round, i, uint64(e), cpu.tally[i], cpu.dirty[i])
			}
			if !s.t.Find(r.Start + addr.GVA(i)*page).Install(pagetable.LeafEntry(e.Frame(), userRW)) {
				t.Fatal("Install lost")
			}
		}
	}
}

// Taking a permission away leaves the CPU's bits in place, and takes it for
// good: no change of the CPU's brings it back.
func TestR1ProtectKeepsAccessedAndDirty(t *testing.T) {
	s, r, leaves, _ := bitsWorld(t)
	cpu, stale := newCPU(t, leaves), make([]addr.PFN, 0, bitsPages)
	for round := range bitsRounds {
		cpu.run()
		s.change(func(tok pagetable.Token) {
			stale = s.t.Protect(tok, r, pagetable.User, pagetable.PathPlan{}, new(pagetable.Spare), new(pagetable.Retired), stale[:0])
		})
		cpu.pause()
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
	cpu := newCPU(t, leaves)
	for round := range bitsRounds {
		cpu.run()
		for gva := r.Start; gva < r.End; gva += page {
			for l := s.t.Find(gva); !l.Allow(pagetable.Writable); l = s.t.Find(gva) {
			}
		}
		cpu.pause()
		for i, p := range leaves {
			e := pagetable.Entry(*p)
			if cpu.lost(i, e) || !e.Has(userRW) {
				t.Fatalf("round %d: page %d: %#x; the CPU changed it %d times, dirty %v", round, i, uint64(e), cpu.tally[i], cpu.dirty[i])
			}
			*p = uint64(pagetable.LeafEntry(e.Frame(), pagetable.User))
		}
	}
}
