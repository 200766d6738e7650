package guestmem

import (
	"bytes"
	"context"
	"testing"

	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
)

// R7, interleaving 12: nobody is told of the stores of a device. What it may write is
// copied at the instant, and counts as written between any two.
func TestR7HeldForWritingIsCopiedAtTheInstant(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		m := newPhys(t)
		r := mustAdd(t, m, RegionOptions{Size: 16 * page, Backing: backing, HugePages: HugeNever})
		want := bytes.Repeat([]byte{9}, 16*page)
		mustWritePhys(t, m, 0, want)
		first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		held, err := m.Slice(5*page, 2*page, Write) // while a snapshot is open
		mustDo(t, err)
		held.Bytes()[0] = 1
		mustShow(t, first, 0, want, "the first")
		want[5*page] = 1
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		if n := s.Stats().PagesPinned; n != 2 {
			t.Errorf("%d pages were copied at the instant, want 2", n)
		}
		held.Bytes()[page] = 2
		mustDo(t, slotStore(r, 6*page+1, []byte{2}))
		mustShow(t, s, 0, want, "the second")
		want[6*page], want[6*page+1] = 2, 2
		s2 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		held.Bytes()[page] = 3
		mustShow(t, s2, 0, want, "the third")
		mustHaveChanged(t, s2, s, 0, "5 6")
		held.Release()
		s3 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		s4 := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		mustHaveChanged(t, s3, s2, 0, "5 6")
		mustHaveChanged(t, s4, s3, 0, "")
		mustHaveChanged(t, s4, s, 0, "5 6")
	}
}

// R7: a slice that is being made when a window opens, and has not disarmed its pages
// yet, has nobody who stores to them: they stay armed, and older snapshots get them
// when it does.
//
//	Slice                       second snapshot
//	is in the set
//	                            takes armed pages for pinned: not armed any more
//	finds them unarmed; a device stores: the first lacks them
func TestR7SliceThatIsBeingMade(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	held := &Slice{region: r, first: 1, n: 2, off: page, size: 2 * page, access: Write}
	mustDo(t, r.pins.hold(held))
	mustDo(t, slotStore(r, 5*page, []byte{1})) // so that the window writes the word of all of them
	want2 := bytes.Clone(want)
	want2[5*page] = 1
	second := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustDo(t, held.makeReady())
	if r.anyArmed(1, 2) {
		t.Error("pages of a slice for writing are armed")
	}
	held.Bytes()[5] = 99
	mustShow(t, first, r.base, want, "the first")
	mustShow(t, second, r.base, want2, "the second")
	mustSweep(t, first)
	mustSweep(t, second)
	held.Release()
}

// R7: a window that opens while a slice is about to be given out arms none of its pages
// for good: each is armed, and the slice disarms it yet; or it is disarmed, and the
// window sees who is about to have it.
//
//	Slice                       second snapshot         third snapshot
//	is in the set, brings its
//	pages, disarms them
//	                            arms them
//	is live
//	disarms the first page
//	                                                    copies the first page, and
//	                                                    leaves the others armed
//	disarms the others
//	     a device stores to all of them: untrapped, and each snapshot has them
func TestR7WindowsWhileASliceGoesLive(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	held := &Slice{region: r, first: 1, n: 3, off: page, size: 3 * page, access: Write}
	mustDo(t, r.pins.hold(held))
	mustDo(t, held.bring())
	second := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	if !r.anyArmed(1, 1) {
		t.Error("pages of a slice that nobody has are not armed")
	}
	disarms := haltAt(t, "snapshot: userfaultfd: disarm")
	live := testutil.Go(func() {
		if err := held.goLive(); err != nil {
			t.Error(err)
		}
	})
	testutil.Proceeds(t, disarms.reached, "the slice")
	var third *Snapshot
	window := testutil.Go(func() {
		var err error
		if third, err = m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		disarms.goOn()
		<-live
		<-window
		if third != nil {
			mustDo(t, third.Close())
		}
		held.Release()
	})
	testutil.Parked(t, window, "a window beside a claimed page")
	disarms.goOn()
	testutil.Proceeds(t, live, "the slice")
	testutil.Proceeds(t, window, "the window")
	if r.anyArmed(1, 3) {
		t.Error("pages of a slice for writing are armed")
	}
	device := hostPages(r.look, 1, 3)
	for i := range 3 {
		device[i*page] = 99
	}
	mustShow(t, second, r.base, want, "the second")
	mustShow(t, third, r.base, want, "the third")
}

// R10: a page that a slice holds for writing is left out of what is armed, also where it
// would be cheaper to arm those round it in one call: where the only mapping is the one
// that traps, a store to it would park its thread.
func TestR10HeldPagesAreNotArmed(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 16 * page, Backing: BackingAnonymous, HugePages: HugeNever})
	mustWritePhys(t, m, 0, bytes.Repeat([]byte{9}, 16*page))
	held, err := m.Slice(5*page, 2*page, Write)
	mustDo(t, err)
	defer held.Release()
	mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	run := inject.Start(inject.Plan{Match: inject.Only("snapshot: userfaultfd: disarm")})
	mustDo(t, run.During(func() error {
		held.Bytes()[0], held.Bytes()[page] = 1, 1
		if n := run.Passes(); n != 0 {
			t.Errorf("%d pages that are held were disarmed by a store to them", n)
		}
		return slotStore(r, 7*page, []byte{1})
	}))
	if n := run.Passes(); n != 1 {
		t.Errorf("a store to the page beside has disarmed %d", n)
	}
}
