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
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
)

const hugeAway = remapTarget + 4*addr.GVA(hugeLen) // tables of its own, and 2 MiB aligned

func asWhole(from addr.GVA, length uint64, to addr.GVA, fl RemapFlags) RemapOptions {
	return RemapOptions{Addr: from, OldLength: length, NewLength: length, Flags: RemapMayMove | fl, NewAddr: to}
}

// Leaves of 2 MiB move whole: the same entry, no table of leaves, nothing copied or
// zeroed; there and back, and in place of what was there.
func TestRemapMovesHugeLeavesWhole(t *testing.T) {
	for name, view := range map[string]bool{"without a view": false, "with a view": true} {
		t.Run(name, func(t *testing.T) {
			m := newMemory(t, 32<<20)
			var r *recorder
			if view {
				r = attachRecorder(t, m)
			}
			as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: HugeLeavesAlways})
			mustDo(t, err)
			mapAt(t, as, hugeAddr, 2*hugeLen, rw)
			mustWrite(t, as, hugeAddr+5*page, []byte("first"))
			mustWrite(t, as, hugeAddr+addr.GVA(hugeLen), []byte("second"))
			was := [2]pagetable.Entry{as.leafEntry(hugeAddr), as.leafEntry(hugeAddr + addr.GVA(hugeLen))}
			mapAt(t, as, hugeAway, 2*hugeLen, rw)
			mustDo(t, as.Advise(ctx, hugeAway, 2*hugeLen, AdviceNoHugePage))
			mustWrite(t, as, hugeAway+7*page, []byte("a table of leaves"))
			before := m.Stats()
			mustRemap(t, as, asWhole(hugeAddr, 2*hugeLen, hugeAway, RemapFixed))
			look := func(at addr.GVA) {
				t.Helper()
				if r != nil {
					r.settle(t)
				}
				for i, e := range was {
					if got := as.leafEntry(at + addr.GVA(i)*addr.GVA(hugeLen)); got != e {
						t.Errorf("leaf %d is %#x, was %#x", i, uint64(got), uint64(e))
					}
				}
				if s := m.Stats(); s.HugeLeaves != 2 || s.HugeSplit != 0 || s.Zeroed != before.Zeroed || s.Copied != before.Copied {
					t.Errorf("%+v, was %+v", s, before)
				}
				if n := nResident(t, as, at, 2*hugeLen); n != 1024 {
					t.Errorf("%d pages are there", n)
				}
				mustSee(t, as, at+5*page, []byte("first"))
				mustSee(t, as, at+addr.GVA(hugeLen), []byte("second"))
				mustCheck(t, m)
			}
			look(hugeAway)
			if s := m.Stats(); s.Tables >= before.Tables+2 {
				t.Errorf("%d tables, were %d: one of leaves should have gone", s.Tables, before.Tables)
			}
			mustRemap(t, as, asWhole(hugeAway, 2*hugeLen, hugeAddr, RemapFixed))
			look(hugeAddr)
			if r != nil {
				for _, e := range r.errs {
					t.Error(e)
				}
			}
		})
	}
}

// With RemapDontUnmap the leaf goes whole too, and the source reads as zeroes, for
// which another leaf of 2 MiB comes.
func TestRemapLeavesNothingOfAHugeLeaf(t *testing.T) {
	m, as := hugeMemory(t, 16<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustWrite(t, as, hugeAddr+page, []byte("there"))
	e := as.leafEntry(hugeAddr)
	at := mustRemap(t, as, asWhole(hugeAddr, hugeLen, hugeAway, RemapFixed|RemapDontUnmap))
	if got := as.leafEntry(at); got != e {
		t.Errorf("leaf %#x, was %#x", uint64(got), uint64(e))
	}
	if n := nResident(t, as, hugeAddr, hugeLen); n != 0 {
		t.Errorf("%d pages are at the source", n)
	}
	mustSee(t, as, hugeAddr+page, make([]byte, 8))
	mustSee(t, as, at+page, []byte("there"))
	if s := m.Stats(); s.HugeLeaves != 2 || s.HugeSplit != 0 || s.HugeInstalled != 2 {
		t.Errorf("%+v", s)
	}
}

// Part of a leaf, or one that goes elsewhere by no multiple of 2 MiB, is split; the
// whole ones of the same range are not.
func TestRemapSplitsHugeLeaves(t *testing.T) {
	m, as := hugeMemory(t, 32<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, 3*hugeLen, rw)
	for i := range addr.GVA(3) {
		mustWrite(t, as, hugeAddr+i*addr.GVA(hugeLen)+9*page, []byte{byte(i + 1)})
	}
	from, length := hugeAddr+addr.GVA(hugeLen)/2, 2*hugeLen // half, whole, half
	mustRemap(t, as, asWhole(from, length, hugeAway+addr.GVA(hugeLen)/2, RemapFixed))
	if s := m.Stats(); s.HugeLeaves != 1 {
		t.Errorf("%d leaves of 2 MiB, want the one in the middle", s.HugeLeaves)
	}
	mustSee(t, as, hugeAddr+9*page, []byte{1})
	mustSee(t, as, hugeAway+addr.GVA(hugeLen)+9*page, []byte{2})
	mustSee(t, as, hugeAway+2*addr.GVA(hugeLen)+9*page, []byte{3})
	mustCheck(t, m)
	mustRemap(t, as, asWhole(hugeAway+addr.GVA(hugeLen), hugeLen, hugeAway-4*addr.GVA(hugeLen)+page, RemapFixed))
	if s := m.Stats(); s.HugeLeaves != 0 {
		t.Errorf("moved by a page, and %d leaves of 2 MiB", s.HugeLeaves)
	}
	mustSee(t, as, hugeAway-4*addr.GVA(hugeLen)+10*page, []byte{2})
	mustCheck(t, m)
}

// A leaf that relatives have too moves in one of them alone, and the last who has
// it writes in place.
func TestR6RemapOfAHugeLeafInAFamily(t *testing.T) {
	m, as := hugeMemory(t, 32<<20, HugeLeavesAlways)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustWrite(t, as, hugeAddr+page, []byte("parent"))
	block := as.leafEntry(hugeAddr).Frame()
	child := mustFork(t, as)
	mustRemap(t, as, asWhole(hugeAddr, hugeLen, hugeAway, RemapFixed))
	if f, n := as.leafEntry(hugeAway).Frame(), m.pool.BlockOf(block); f != block || n != 2 {
		t.Errorf("the leaf leads to %v, and %d to %v", f, n, block)
	}
	mustCheck(t, m)
	mustWrite(t, child, hugeAddr+page, []byte("child!"))
	mustSee(t, as, hugeAway+page, []byte("parent"))
	mustDo(t, child.Close())
	splits := m.Stats().HugeSplit
	mustWrite(t, as, hugeAway+2*page, []byte("more"))
	if s := m.Stats(); as.leafEntry(hugeAway).Frame() != block || s.HugeSplit != splits || s.HugeReused != 1 {
		t.Errorf("the last owner of %v has leaf %#x: %+v", block, uint64(as.leafEntry(hugeAway)), s)
	}
}

// As TestR1RemapPutsInAfterWhoWalkedToTheSource and TestR1RemapWaitsTwice, where
// what moves is 2 MiB: a copier that walked to it has stored before the entry can be
// found at the target.
func TestR1RemapOfAHugeLeafWaits(t *testing.T) {
	for _, late := range []bool{false, true} { // walks after the first grace period
		t.Run(fmt.Sprintf("late=%v", late), func(t *testing.T) {
			m, as := hugeMemory(t, 16<<20, HugeLeavesAlways)
			gva := mapAt(t, as, hugeAddr, hugeLen, rw)
			mustWrite(t, as, gva+3*page, []byte("before"))
			var k *walker
			walked := make(chan struct{})
			if late {
				takeHook = func() {
					takeHook = nil
					k = walkTo(t, as, gva+3*page)
					close(walked)
				}
				defer func() { takeHook = nil }()
			} else {
				k = walkTo(t, as, gva+3*page)
				close(walked)
			}
			done := inBackground(func() {
				if _, err := as.Remap(ctx, asWhole(gva, hugeLen, hugeAway, RemapFixed)); err != nil {
					t.Error(err)
				}
			})
			mustEnd(t, "the walk", walked)
			if !parked(done) {
				t.Error("remap returned beside a copier that had walked to its source")
			}
			if e := as.leafEntry(hugeAway); e != 0 {
				t.Errorf("the entry is at the target (%#x) beside a copier that walked to the source", uint64(e))
			}
			k.leave(t, "stored")
			mustEnd(t, "remap", done)
			mustSee(t, as, hugeAway+3*page, []byte("stored"))
			if s := m.Stats(); s.HugeLeaves != 1 || s.HugeSplit != 0 {
				t.Errorf("%+v", s)
			}
			mustCheck(t, m)
		})
	}
}

// Views forget every page of a leaf of 2 MiB before it is at the target.
func TestR8RemapOfAHugeLeafTellsViews(t *testing.T) {
	m := newMemory(t, 16<<20)
	r := attachRecorder(t, m)
	as, err := m.NewAddressSpace(SpaceOptions{HugeLeaves: HugeLeavesAlways})
	mustDo(t, err)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustWrite(t, as, hugeAddr+page, []byte("there"))
	block := as.leafEntry(hugeAddr).Frame()
	r.settle(t)
	child := mustFork(t, as)
	r.settle(t)
	for i, s := range []*AddressSpace{as, child} {
		to := hugeAway + addr.GVA(i)*addr.GVA(hugeLen)
		mustRemap(t, s, asWhole(hugeAddr, hugeLen, to, RemapFixed))
		r.mu.Lock()
		forgot := 0
		for f := range addr.PFN(pagetable.HugeFrames) {
			if r.invalid[s][block+f] {
				forgot++
			}
		}
		r.mu.Unlock()
		if forgot != pagetable.HugeFrames {
			t.Errorf("space %d: views forgot %d pages of the leaf", i, forgot)
		}
		r.settle(t)
		mustSee(t, s, to+page, []byte("there"))
	}
	for _, e := range r.errs {
		t.Error(e)
	}
	mustCheck(t, m)
}

const nMovers = 2

// moverTest is goroutines that store to words of their own in blocks of 2 MiB, each
// of which another moves to and fro meanwhile:
//
//	keeper                     mover
//	stores v at A + i
//	  or finds nothing there   moves the block from A to B, or back
//	  and stores it at B + i
//	loads v from where it is
type moverTest struct {
	t      *testing.T
	as     *AddressSpace
	places [2]addr.GVA
	stop   atomic.Bool
	stored atomic.Uint64
}

// somewhere does fn at the one place or the other, whichever is there.
func (x *moverTest) somewhere(off addr.GVA, fn func(gva addr.GVA) error) error {
	for i := 0; ; i = 1 - i {
		if err := fn(x.places[i] + off); !errors.Is(err, ErrNotMapped) {
			return err
		}
	}
}

func (x *moverTest) keeper(k int) {
	off := addr.GVA(k%nMovers)*addr.GVA(hugeLen) + addr.GVA(100+k)*page + 8
	for v := uint64(1); !x.stop.Load(); v++ {
		err := x.somewhere(off, func(gva addr.GVA) error { return x.as.Store64(ctx, gva, v) })
		var got uint64
		if err == nil {
			err = x.somewhere(off, func(gva addr.GVA) (err error) {
				got, err = x.as.Load64(ctx, gva)
				return err
			})
		}
		if err != nil || got != v {
			x.t.Errorf("keeper %d reads %d, %v, and has stored %d", k, got, err, v)
			return
		}
		x.stored.Add(1)
	}
}

// mover moves one block there and back; with fn it does something at either place,
// too.
func (x *moverTest) mover(off addr.GVA, rounds int, fn func(here addr.GVA) error) error {
	for i := range 2 * rounds {
		from, to := x.places[i%2]+off, x.places[1-i%2]+off
		if _, err := x.as.Remap(ctx, asWhole(from, hugeLen, to, RemapFixed)); err != nil {
			return err
		}
		if err := fn(to); err != nil {
			return err
		}
	}
	return nil
}

func testMovers(t *testing.T, fn func(as *AddressSpace, rng *rand.Rand, here addr.GVA) error) *Memory {
	m, as := hugeMemory(t, 64<<20, HugeLeavesAlways)
	x := &moverTest{t: t, as: as, places: [2]addr.GVA{hugeAddr, hugeAway}}
	mapAt(t, as, x.places[0], nMovers*hugeLen, rw)
	for b := range addr.GVA(nMovers) {
		mustWrite(t, as, x.places[0]+b*addr.GVA(hugeLen), []byte{1})
	}
	rounds := 150
	switch {
	case *soak:
		rounds = 30_000
	case invariants.Enabled:
		rounds = 30
	}
	var keepers, movers sync.WaitGroup
	for k := range nMovers + 1 {
		keepers.Go(func() { x.keeper(k) })
	}
	for b := range addr.GVA(nMovers) {
		movers.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(b), 11))
			if err := x.mover(b*addr.GVA(hugeLen), rounds, func(here addr.GVA) error { return fn(as, rng, here) }); err != nil {
				t.Errorf("mover %d: %v", b, err)
			}
		})
	}
	testutil.Within(t, 5*time.Minute, movers.Wait)
	x.stop.Store(true)
	testutil.Within(t, 5*time.Minute, keepers.Wait)
	t.Logf("%d stores beside %d moves", x.stored.Load(), 2*nMovers*rounds)
	mustCheck(t, m)
	return m
}

// No store to a leaf of 2 MiB that moves is lost, and the leaves are as many as
// there were, and the same: nothing was split, zeroed or copied.
func TestR1HugeLeavesMoveBesideStores(t *testing.T) {
	m := testMovers(t, func(*AddressSpace, *rand.Rand, addr.GVA) error { return nil })
	if s := m.Stats(); s.HugeLeaves != nMovers || s.HugeInstalled != nMovers || s.HugeSplit != 0 || s.Zeroed != nMovers*512 || s.Copied != 0 {
		t.Errorf("%+v", s)
	}
}

// The same where they are split, shared and made whole again between the moves.
func TestR1HugeLeavesMoveAndSplitBesideStores(t *testing.T) {
	testMovers(t, func(as *AddressSpace, rng *rand.Rand, here addr.GVA) error {
		aside := here + 0x1000_0000
		switch rng.IntN(5) {
		case 0:
			return as.Discard(here+addr.GVA(200+rng.IntN(300))*page, page)
		case 1:
			if err := as.Advise(ctx, here, hugeLen, AdviceCollapse); !errors.Is(err, ErrAgain) {
				return err
			}
		case 2: // the child's goes its own way
			child, err := as.Fork()
			if err != nil {
				return err
			}
			defer child.Close()
			if rng.IntN(2) == 0 {
				if err := child.Store64(ctx, here+addr.GVA(300+rng.IntN(100))*page, 1); err != nil {
					return err
				}
			}
			_, err = child.Remap(ctx, asWhole(here, hugeLen, aside, RemapFixed))
			return err
		case 3: // the half that no keeper is in goes away, and comes back
			half := here + addr.GVA(hugeLen)/2
			if _, err := as.Remap(ctx, asWhole(half, hugeLen/2, aside, RemapFixed)); err != nil {
				return err
			}
			_, err := as.Remap(ctx, asWhole(aside, hugeLen/2, half, RemapFixed))
			return err
		}
		return nil
	})
}
