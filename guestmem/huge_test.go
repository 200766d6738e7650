package guestmem

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/pagetable"
)

const (
	hugeLen           = uint64(pagetable.HugeSpan)
	hugeAddr addr.GVA = 0x4020_0000
)

func hugeMemory(t *testing.T, size uint64, policy HugeLeafPolicy) (*Memory, *AddressSpace) {
	t.Helper()
	m := newMemory(t, size)
	as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: policy})
	mustDo(t, err)
	return m, as
}

func nResident(t *testing.T, as *AddressSpace, at addr.GVA, length uint64) (n int) {
	t.Helper()
	vec := make([]bool, length/page)
	if _, err := as.Resident(at, length, vec); err != nil {
		t.Fatal(err)
	}
	for _, there := range vec {
		if there {
			n++
		}
	}
	return n
}

// One fault brings 2 MiB, with one entry and no table of leaves; where a part of it
// is to differ, it is split, and pages come and go by themselves.
func TestHugeLeafIsInstalledAndSplit(t *testing.T) {
	m, as := hugeMemory(t, 16<<20, HugeLeavesAdvised)
	mapAt(t, as, hugeAddr-page, hugeLen*2, rw)
	mustWrite(t, as, hugeAddr-page, []byte("below"))
	mustDo(t, as.Advise(ctx, hugeAddr-page, 2*hugeLen, AdviceHugePage))
	before := m.Stats()
	mustSee(t, as, hugeAddr+5*page, make([]byte, 8))
	mustWrite(t, as, hugeAddr+9*page, []byte("within"))
	s := m.Stats()
	if s.HugeLeaves != 1 || s.HugeInstalled != 1 || s.Tables != before.Tables || s.FramesInUse != before.FramesInUse+512 || s.Zeroed != before.Zeroed+512 {
		t.Errorf("after a fault: %+v", s)
	}
	if e := as.leafEntry(hugeAddr + 100*page); !e.Has(pagetable.Huge | pagetable.Writable) {
		t.Errorf("leaf %#x", uint64(e))
	}
	if n := nResident(t, as, hugeAddr, hugeLen); n != 512 {
		t.Errorf("%d pages are there", n)
	}
	// The rest of the area has no room for another.
	mustWrite(t, as, hugeAddr+addr.GVA(hugeLen)+page, []byte("above"))
	if s := m.Stats(); s.HugeLeaves != 1 {
		t.Errorf("2 MiB where the area has less: %+v", s)
	}
	mustDo(t, as.Discard(hugeAddr+20*page, 10*page))
	if s, n := m.Stats(), nResident(t, as, hugeAddr, hugeLen); s.HugeLeaves != 0 || n != 502 {
		t.Errorf("%d pages are there after a discard of ten: %+v", n, s)
	}
	mustSee(t, as, hugeAddr+9*page, []byte("within"))
	mustSee(t, as, hugeAddr-page, []byte("below"))
	mustDo(t, as.Discard(hugeAddr, hugeLen))
	if s := m.Stats(); s.FramesInUse > before.FramesInUse+3 {
		t.Errorf("a whole discard leaves %+v", s)
	}
}

// Permission over all of a leaf changes in its one entry, and comes back; over a
// part, it splits; and what an area of its own may do is not what its neighbour gets.
func TestHugeLeafAndPermissions(t *testing.T) {
	m, as := hugeMemory(t, 16<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustWrite(t, as, hugeAddr+3*page, []byte("here"))
	mustDo(t, as.Protect(hugeAddr, hugeLen, r_))
	if _, err := as.WriteAt(ctx, []byte("x"), hugeAddr); !errors.Is(err, ErrAccess) {
		t.Errorf("write to what is read-only: %v", err)
	}
	if s := m.Stats(); s.HugeLeaves != 1 || s.HugeSplit != 0 {
		t.Errorf("split by a change of the whole: %+v", s)
	}
	mustDo(t, as.Protect(hugeAddr, hugeLen/2, rw))
	mustWrite(t, as, hugeAddr, []byte("x"))
	if _, err := as.WriteAt(ctx, []byte("x"), hugeAddr+addr.GVA(hugeLen)-page); !errors.Is(err, ErrAccess) {
		t.Errorf("write to the half that is read-only: %v", err)
	}
	mustSee(t, as, hugeAddr+3*page, []byte("here"))
	mapAt(t, as, hugeAddr+addr.GVA(hugeLen), hugeLen, rw)
	at := hugeAddr + addr.GVA(hugeLen)
	mustWrite(t, as, at, []byte("y"))
	mustDo(t, as.Protect(at, hugeLen, ProtNone))
	if _, err := as.ReadAt(ctx, make([]byte, 1), at); !errors.Is(err, ErrAccess) {
		t.Errorf("read of what allows nothing: %v", err)
	}
	mustDo(t, as.Protect(at, hugeLen, rw))
	splits := m.Stats().HugeSplit
	mustWrite(t, as, at+page, []byte("z"))
	mustSee(t, as, at, []byte("y"))
	if s := m.Stats(); s.HugeSplit != splits || s.HugeLeaves != 1 {
		t.Errorf("split by what allows the whole: %+v", s)
	}
}

// A fork shares a leaf of 2 MiB with its table; a write copies one frame; and
// whoever is left writes in place (R6).
func TestR6HugeLeafIsSharedAndTakenBack(t *testing.T) {
	m, as := hugeMemory(t, 32<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, 2*hugeLen, rw)
	mustWrite(t, as, hugeAddr+page, []byte("old"))
	mustWrite(t, as, hugeAddr+addr.GVA(hugeLen), []byte("old"))
	before := m.Stats()
	child := mustFork(t, as)
	s := m.Stats()
	if s.FramesInUse != before.FramesInUse+1 || s.HugeLeaves != 2 {
		t.Errorf("a fork takes %d frames: %+v", s.FramesInUse-before.FramesInUse, s)
	}
	mustWrite(t, child, hugeAddr+page, []byte("new"))
	mustSee(t, as, hugeAddr+page, []byte("old"))
	mustSee(t, child, hugeAddr+addr.GVA(hugeLen), []byte("old"))
	s = m.Stats()
	// A directory pointer table, a directory, a table of leaves, and one page.
	if s.FramesInUse != before.FramesInUse+1+4 || s.Copied != before.Copied+1 || s.HugeSplit != 1 || s.HugeLeaves != 3 {
		t.Errorf("a write took %d frames: %+v", s.FramesInUse-before.FramesInUse-1, s)
	}
	mustCheck(t, m)
	mustDo(t, child.Close())
	mustWrite(t, as, hugeAddr+2*page, []byte("again"))
	mustWrite(t, as, hugeAddr+addr.GVA(hugeLen), []byte("again"))
	s = m.Stats()
	if s.Copied != before.Copied+1 || s.HugeReused != 2 || s.HugeLeaves != 2 || s.FramesInUse != before.FramesInUse {
		t.Errorf("taken back: %+v, was %+v", s, before)
	}
}

// Where there is no block, pages do; and what they were made of is a block again.
func TestHugeFaultFallsBack(t *testing.T) {
	m, as := hugeMemory(t, 5<<20, HugeLeavesAlways) // one block beside what tables take
	mapAt(t, as, hugeAddr, 3*hugeLen, rw)
	for i := range addr.GVA(3) {
		mustWrite(t, as, hugeAddr+i*addr.GVA(hugeLen), []byte{byte(i)})
	}
	if s := m.Stats(); s.HugeInstalled != 1 || s.HugeFellBack == 0 {
		t.Errorf("%+v", s)
	}
	for i := range addr.GVA(3) {
		mustSee(t, as, hugeAddr+i*addr.GVA(hugeLen), []byte{byte(i)})
	}
	mustDo(t, as.Discard(hugeAddr, 3*hugeLen))
	mustWrite(t, as, hugeAddr, []byte("again"))
	mustSee(t, as, hugeAddr+page, make([]byte, page))
	if s := m.Stats(); s.HugeInstalled != 2 {
		t.Errorf("%+v", s)
	}
}

// The errors of AdviceCollapse, and what it leaves.
func TestAdviceCollapse(t *testing.T) {
	m, as := hugeMemory(t, 32<<20, HugeLeavesAdvised)
	want := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) || want == nil && err != nil {
			t.Errorf("%s: %v, want %v", what, err, want)
		}
	}
	collapse := func(at addr.GVA, length uint64) error { return as.Advise(ctx, at, length, AdviceCollapse) }
	second := hugeAddr + addr.GVA(hugeLen)
	mapAt(t, as, hugeAddr, 2*hugeLen, rw)
	want("of nothing", collapse(hugeAddr, hugeLen), ErrInvalid)
	for i := range addr.GVA(40) {
		mustWrite(t, as, hugeAddr+i*13*page, []byte{byte(i + 1)})
	}
	want("of half a block", collapse(hugeAddr+page, page), ErrInvalid)
	want("of less than a block, which is none", collapse(hugeAddr, page), nil)
	want("with a block of which nothing is there", collapse(hugeAddr, 2*hugeLen), ErrInvalid)
	if s := m.Stats(); s.HugeLeaves != 1 || s.HugeCollapsed != 1 {
		t.Errorf("the other block was not made: %+v", s)
	}
	want("again", collapse(hugeAddr, hugeLen), nil)
	want("over a hole", collapse(hugeAddr, 4*hugeLen), ErrInvalid)
	for i := range addr.GVA(40) {
		mustSee(t, as, hugeAddr+i*13*page, []byte{byte(i + 1)})
		mustSee(t, as, hugeAddr+(i*13+1)*page, make([]byte, page))
	}
	mustWrite(t, as, second, []byte("x"))
	want("over a hole", collapse(hugeAddr, 4*hugeLen), ErrNoSpace)
	if s := m.Stats(); s.HugeLeaves != 2 {
		t.Errorf("%+v", s)
	}
	pin := mustPin(t, as, second, 1, Write)
	want("of a pinned page", collapse(second, hugeLen), ErrAgain)
	mustDo(t, pin.Release())
	want("of one that was pinned", collapse(second, hugeLen), nil)
	mustSee(t, as, second, []byte("x"))
	mustDo(t, as.Advise(ctx, second+page, page, AdviceGuardInstall))
	want("of a guard", collapse(second, hugeLen), ErrInvalid)
	mustDo(t, as.Advise(ctx, second, hugeLen, AdviceNoHugePage))
	want("of what is not to be huge", collapse(second, hugeLen), ErrInvalid)
	far := mustMap(t, as, MapOptions{Length: 2 * hugeLen, Prot: rw, Flags: MapShared | MapAnonymous})
	want("of shared memory", collapse(far, 2*hugeLen), ErrInvalid)
	small := mustMap(t, as, MapOptions{Length: hugeLen - page, Prot: rw, Flags: anon})
	want("of an area without room", collapse(small, hugeLen-page), ErrInvalid)
	// What relatives share is copied: each has its own after.
	child := mustFork(t, as)
	mustDo(t, child.Unmap(hugeAddr+page, page))
	mustDo(t, child.Discard(hugeAddr+5*page, page))
	mustDo(t, child.Protect(hugeAddr+addr.GVA(hugeLen), hugeLen, rw))
	mustSee(t, child, hugeAddr, []byte{1})
	mustCheck(t, m)
}

// Several goroutines each keep a word of their own in memory that comes 2 MiB at a
// time, while others fork it, take permissions away and give them back, split it and
// make it whole again, and discard its neighbours. A word that was stored is there,
// and a child has one from its own time.
func TestR1HugeLeavesBesideChanges(t *testing.T) {
	const blocks, keepers = 2, 3
	m, as := hugeMemory(t, 64<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, (blocks+1)*hugeLen, rw)
	word := func(k int) addr.GVA { // no two in one page; in all blocks but the last
		return hugeAddr + addr.GVA(k%blocks)*addr.GVA(hugeLen) + addr.GVA(100+k)*page + 8
	}
	var stored [keepers]atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for k := range keepers {
		wg.Go(func() {
			h := m.NewHandle()
			defer h.Close()
			a := as.With(h)
			for v := uint64(1); !stop.Load(); v++ {
				if err := a.Store64(ctx, word(k), v); err != nil {
					t.Errorf("store: %v", err)
					return
				}
				stored[k].Store(v)
				if got, err := a.Load64(ctx, word(k)); err != nil || got != v {
					t.Errorf("keeper %d reads %d, %v, and has stored %d", k, got, err, v)
					return
				}
			}
		})
	}
	change := func(rng *rand.Rand) error {
		b := hugeAddr + addr.GVA(rng.IntN(blocks))*addr.GVA(hugeLen)
		switch rng.IntN(8) {
		case 0, 1:
			var low [keepers]uint64
			for k := range low {
				low[k] = stored[k].Load()
			}
			child, err := as.Fork()
			if err != nil {
				return err
			}
			defer child.Close()
			for k := range low {
				got, err := child.Load64(ctx, word(k))
				if high := stored[k].Load() + 1; err != nil || got < low[k] || got > high {
					return fmt.Errorf("a child has %d, %v; want %d to %d", got, err, low[k], high)
				}
				if err := child.Store64(ctx, word(k), 1<<60); err != nil {
					return err
				}
			}
			return nil
		case 2:
			return as.Advise(ctx, b, hugeLen, AdviceCollapse)
		case 3:
			return as.Discard(b+addr.GVA(200+rng.IntN(300))*page, uint64(1+rng.IntN(10))*page)
		case 4: // keepers meanwhile wait for who gives it back: they retry by hand
			return as.Protect(b+addr.GVA(300)*page, 50*page, []Prot{r_, rw, ProtNone}[rng.IntN(3)])
		case 5:
			pin, err := as.Pin(ctx, addr.Range{Start: word(0) - 8, End: word(0)}, Write)
			if err != nil {
				return err
			}
			return pin.Release()
		case 6:
			last := hugeAddr + addr.GVA(blocks)*addr.GVA(hugeLen)
			if _, err := as.Map(ctx, MapOptions{Addr: last, Length: hugeLen, Prot: rw, Flags: anon | MapFixed}); err != nil {
				return err
			}
			_, err := as.WriteAt(ctx, []byte("w"), last+addr.GVA(rng.IntN(512))*page)
			return err
		}
		return as.Advise(ctx, b+addr.GVA(400+rng.IntN(10))*page, page, []Advice{AdviceGuardInstall, AdviceGuardRemove}[rng.IntN(2)])
	}
	rounds := 400
	switch {
	case *soak:
		rounds = 100_000
	case invariants.Enabled:
		rounds = 60
	}
	for worker := range 2 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 7))
			for range rounds {
				err := change(rng)
				if err != nil && !errors.Is(err, ErrInvalid) && !errors.Is(err, ErrAgain) && !errors.Is(err, ErrAccess) {
					t.Errorf("change: %v", err)
					break
				}
				if worker == 0 && rng.IntN(16) == 0 { // whole again, to be split anew
					b := hugeAddr + addr.GVA(rng.IntN(blocks))*addr.GVA(hugeLen)
					_ = as.Protect(b, hugeLen, rw)
					_ = as.Advise(ctx, b, hugeLen, AdviceGuardRemove)
					_ = as.Advise(ctx, b, hugeLen, AdviceCollapse)
				}
			}
			stop.Store(true)
		})
	}
	done := inBackground(wg.Wait)
	select {
	case <-done:
	case <-time.After(5 * time.Minute):
		t.Fatal("it does not end")
	}
	s := m.Stats()
	t.Logf("%d installed, %d collapsed, %d split, %d reused, %d copied, %d forks", s.HugeInstalled, s.HugeCollapsed, s.HugeSplit, s.HugeReused, s.Copied, s.Forks)
	if rounds >= 400 && (s.HugeCollapsed == 0 || s.HugeSplit == 0) {
		t.Errorf("something never happened: %+v", s)
	}
}
