package cow

import (
	"errors"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
)

func mustBlock(tb testing.TB, p *Pool) (addr.PFN, bool) {
	tb.Helper()
	f, zero, err := p.AllocBlock()
	if err != nil {
		tb.Fatal(err)
	}
	if f%BlockFrames != 0 || p.BlockOf(f) != 1 || !p.ExclusiveBlock(f) {
		tb.Fatalf("block %v: %d leaves, exclusive %v", f, p.BlockOf(f), p.ExclusiveBlock(f))
	}
	for i := range addr.PFN(BlockFrames) {
		if p.Of(f+i) != 1 {
			tb.Fatalf("frame %v of a block has %d references", f+i, p.Of(f+i))
		}
	}
	return f, zero
}

// A block is cut from the top of what is not populated, frames from the bottom, and
// each becomes the other when it is free.
func TestBlocksAndFramesAreMadeOfOneAnother(t *testing.T) {
	const n = 4*BlockFrames + 300
	p, h := newPool(t, n, Options{GrowFrames: 64, KeepFree: n})
	frames := mustAlloc(t, p, 10)
	var blocks []addr.PFN
	for range 3 {
		f, zero := mustBlock(t, p)
		if !zero || !h.isZero(f) || !h.isZero(f+BlockFrames-1) {
			t.Errorf("block %v, never used, is not zero", f)
		}
		if len(blocks) > 0 && f != blocks[len(blocks)-1]-BlockFrames {
			t.Errorf("block %v comes after %v", f, blocks[len(blocks)-1])
		}
		blocks = append(blocks, f)
	}
	if _, _, err := p.AllocBlock(); !errors.Is(err, ErrNoBlock) || !errors.Is(err, ErrNoMemory) {
		t.Errorf("a block where frames have begun: %v", err)
	}
	// All that is left as frames, with a block broken up for it.
	p.DropBlock(blocks[0])
	free, bare := p.FreeFrames()
	if want := uint64(n - 10 - 2*BlockFrames); free+bare != want {
		t.Errorf("%d frames free, want %d", free+bare, want)
	}
	rest := mustAlloc(t, p, int(free+bare))
	if err := p.Alloc(make([]addr.PFN, 1)); !errors.Is(err, ErrNoMemory) {
		t.Errorf("one frame more: %v", err)
	}
	// In any order, the block is found again in pieces; with one frame away it is
	// not.
	all := append(frames, rest...)
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	k := 0
	for i, f := range all {
		if blockOf(f) == blockOf(blocks[0]) {
			k = i
		}
	}
	all[k], all[len(all)-1] = all[len(all)-1], all[k]
	last := all[len(all)-1]
	p.DropData(all[:len(all)-1])
	for {
		f, _, err := p.AllocBlock()
		if err != nil {
			break
		}
		if blockOf(f) == blockOf(last) {
			t.Fatalf("block %v has frame %v, which is not free", f, last)
		}
		blocks = append(blocks, f)
	}
	p.DropData([]addr.PFN{last})
	p.lookAgain = 0
	f, zero := mustBlock(t, p)
	if blockOf(f) != blockOf(last) || zero {
		t.Errorf("block %v, zero %v; want that of frame %v, which was used", f, zero, last)
	}
	for _, b := range append(blocks[1:], f) {
		p.DropBlock(b)
	}
}

// A block of which the host does not back a part is completed, and where the host
// cannot, everything is on the lists again.
func TestBlockOfBackedAndUnbackedFrames(t *testing.T) {
	p, h := newPool(t, 2*BlockFrames, Options{GrowFrames: 100, KeepFree: 10000})
	f := mustAlloc(t, p, 1)
	p.DropData(f) // 100 are backed, free, and at the beginning of what is there
	for {
		g := mustAlloc(t, p, 1)
		if g[0]%BlockFrames == 4 { // inside of the only block
			p.DropData(g)
			break
		}
		defer p.DropData(g)
	}
	refused := errors.New("refused")
	h.fails = func(_ int, populate bool, _ uint64) error {
		if populate {
			return refused
		}
		return nil
	}
	if _, _, err := p.AllocBlock(); !errors.Is(err, ErrNoMemory) || !errors.Is(err, refused) && !errors.Is(err, ErrNoBlock) {
		t.Errorf("a block that cannot be backed: %v", err)
	}
	h.fails = nil
}

func TestBlocksAreTrimmed(t *testing.T) {
	const n = 6 * BlockFrames
	p, h := newPool(t, n, Options{GrowFrames: 16, KeepFree: BlockFrames + 100})
	var blocks []addr.PFN
	for range 4 {
		f, _ := mustBlock(t, p)
		blocks = append(blocks, f)
	}
	for _, f := range blocks {
		p.DropBlock(f)
	}
	if free, _ := p.FreeFrames(); free > BlockFrames+100+16 {
		t.Errorf("%d frames are kept backed", free)
	}
	given := uint64(0)
	for _, r := range h.given {
		given += r.n
	}
	if given < 2*BlockFrames {
		t.Errorf("%d frames were given back", given)
	}
}

// Owners of one block, which let it go as a leaf or split it and let each page go,
// leave all frames free once, whoever comes first (R6): while one is left, nobody
// else finds a frame to be its own.
func TestR6BlockIsLetGoByManyAtOnce(t *testing.T) {
	const n = 2 * BlockFrames
	p, _ := newPool(t, n, Options{GrowFrames: 64, KeepFree: n})
	rounds := 60
	if invariants.Enabled {
		rounds = 12 // each poisons 2 MiB
	}
	for round := range rounds {
		block, _ := mustBlock(t, p)
		owners := 2 + round%4
		for range owners - 1 {
			p.ShareBlock(block)
		}
		if p.ExclusiveBlock(block) {
			t.Fatal("a block with several leaves is exclusive")
		}
		var wg sync.WaitGroup
		for k := range owners {
			wg.Go(func() {
				if (round>>k)&1 == 0 {
					p.DropBlock(block)
					return
				}
				p.SplitBlock(block)
				var frames [BlockFrames]addr.PFN
				for i := range frames {
					frames[i] = block + addr.PFN(i)
					if p.Of(frames[i]) == 0 {
						t.Errorf("frame %v has no references, and an owner", frames[i])
					}
				}
				p.DropData(frames[:])
			})
		}
		wg.Wait()
		if got := p.BlockOf(block); got != 0 {
			t.Fatalf("%d leaves are left", got)
		}
	}
	block, _ := mustBlock(t, p)
	p.DropBlock(block)
	testutil.Panics(t, "a leaf more", func() { p.dropBlock(block) })
	p.Counts.blocks.of(block).Store(0)
}

// One split by one of two owners: the pages are nobody's own until the other's leaf
// has gone, and the block is nobody's own while the pages have a second owner.
func TestR6SplitBlockIsSharedPageByPage(t *testing.T) {
	p, _ := newPool(t, 3*BlockFrames, Options{GrowFrames: 64, KeepFree: 10000})
	block, _ := mustBlock(t, p)
	p.ShareBlock(block)
	p.SplitBlock(block)
	if p.BlockOf(block) != 1 || p.ExclusiveBlock(block) || p.Exclusive(block+7) || p.Of(block+7) != 2 {
		t.Fatalf("%d leaves, frame has %d", p.BlockOf(block), p.Of(block+7))
	}
	for i := range addr.PFN(BlockFrames) {
		if i != 7 {
			p.DropData([]addr.PFN{block + i}) // copied on write
		}
	}
	if p.ExclusiveBlock(block) {
		t.Error("the block is exclusive, and a page of it has two owners")
	}
	p.DropBlock(block)
	if free, bare := p.FreeFrames(); free+bare != 3*BlockFrames-1 || !p.Exclusive(block+7) {
		t.Errorf("%d frames free; the last page is exclusive: %v", free+bare, p.Exclusive(block+7))
	}
	p.DropData([]addr.PFN{block + 7})
}
