package pagetable_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
)

// raw returns the leaf entry of gva as the CPU would set bits in it.
func (s *space) raw(gva addr.GVA) *uint64 { return s.a.Entry(s.pathOf(gva)[1], index(gva, 1)) }

func TestLeafEdits(t *testing.T) {
	w := newWorld(t, 64, false)
	s := w.newSpace()
	f1, f2 := w.alloc(), w.alloc()
	ro := pagetable.LeafEntry(f1, pagetable.User|pagetable.NoExec)
	if ro != entryTo(f1, present|pagetable.Accessed|pagetable.User|pagetable.NoExec) {
		t.Fatalf("LeafEntry = %#x", uint64(ro))
	}
	absent := s.leaf(page)
	if !absent.Install(ro) {
		t.Fatal("Install of an absent leaf lost")
	}
	late := absent
	if late.Install(pagetable.LeafEntry(f2, userRW)) {
		t.Fatal("a late Install won")
	}
	if l := s.t.Find(page); !invariants.Enabled && l.Install(pagetable.LeafEntry(f2, userRW)) {
		t.Fatal("an Install of a present leaf won")
	}

	// Bits that the CPU sets meanwhile are never overwritten.
	for _, bit := range []pagetable.Entry{pagetable.Dirty, 1 << 10} {
		l := s.t.Find(page)
		atomic.OrUint64(s.raw(page), uint64(bit))
		if l.Allow(pagetable.Writable) || l.Replace(pagetable.LeafEntry(f2, userRW)) {
			t.Fatalf("an edit won against the setting of bit %#x", uint64(bit))
		}
		if got := l.Reload(); got != l.Entry|bit {
			t.Fatalf("after the lost edits: %#x, want %#x", uint64(got), uint64(l.Entry|bit))
		}
	}

	for _, c := range []struct{ grant, want pagetable.Entry }{
		{0, 0},
		{pagetable.Writable, pagetable.Writable},
		{pagetable.User | pagetable.Dirty, pagetable.User | pagetable.Dirty},
		{pagetable.Shared | pagetable.Huge | entryTo(f2, 0), 0}, // not its business
	} {
		l := s.t.Find(page)
		if !l.Allow(c.grant) {
			t.Fatal("Allow lost")
		}
		want := l.Entry | c.want
		if c.want.Has(pagetable.Writable) {
			want &^= pagetable.Armed // what may be written is armed no more
		}
		if got := s.t.Find(page).Entry; got != want {
			t.Errorf("Allow(%#x): %#x became %#x", uint64(c.grant), uint64(l.Entry), uint64(got))
		}
	}
	l := s.t.Find(page)
	if !l.Allow(pagetable.NoExec) || s.t.Find(page).Entry != l.Entry&^pagetable.NoExec {
		t.Errorf("Allow(NoExec) made %#x of %#x", uint64(s.t.Find(page).Entry), uint64(l.Entry))
	}

	s.protect(addr.Range{Start: page, End: 2 * page}, pagetable.User)
	if !s.t.Find(page).Replace(pagetable.LeafEntry(f2, userRW)) {
		t.Fatal("Replace lost")
	}
	s.drop(pagetable.Dropped{Frame: f1})
	if got, ok := s.t.Translate(page, userRW); !ok || got != f2 {
		t.Errorf("after Replace: %v, %v", got, ok)
	}
}

func TestLeafEditsAreChecked(t *testing.T) {
	if !invariants.Enabled {
		t.Skip("checked under invariants only; run with -tags invariants or -race")
	}
	w := newWorld(t, 64, false)
	s := w.newSpace()
	s.write(page, 1)
	e := s.t.Find(page).Entry
	testutil.Panics(t, "Install of a present leaf", func() { s.t.Find(page).Install(e) })
	testutil.Panics(t, "Install of what is not present", func() { s.t.Find(2 * page).Install(0) })
	testutil.Panics(t, "Allow on an absent leaf", func() { s.t.Find(2 * page).Allow(userRW) })
	testutil.Panics(t, "Replace of a writable leaf", func() { s.t.Find(page).Replace(e) })
	s.fork()
	testutil.Panics(t, "Allow on a leaf that is not owned", func() { s.t.Find(page).Allow(userRW) })
}

// Of all who install in one leaf, one wins, and nobody's frame is lost.
func TestInstallHasOneWinner(t *testing.T) {
	w := newWorld(t, 512, false)
	s := w.newSpace()
	s.write(0, 1)
	const workers = 4
	for gva := addr.GVA(page); gva < 40*page; gva += page {
		var frames [workers]addr.PFN
		for i := range frames {
			frames[i] = w.alloc()
		}
		var won [workers]bool
		l := s.t.Find(gva)
		var wg sync.WaitGroup
		for i := range workers {
			wg.Go(func() { won[i] = l.Install(pagetable.LeafEntry(frames[i], userRW)) })
		}
		wg.Wait()
		n := 0
		for i := range workers {
			if won[i] {
				n++
				if got, _ := s.t.Translate(gva, userRW); got != frames[i] {
					t.Fatalf("%v won, and %v is there", frames[i], got)
				}
			} else {
				w.free(frames[i])
			}
		}
		if n != 1 {
			t.Fatalf("%d installs of one leaf won", n)
		}
	}
}
