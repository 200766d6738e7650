package guestmem

import (
	"encoding/binary"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The limit on pins, and what else is refused, with the books as before.
func TestR7PinsAreAccountedAndLimited(t *testing.T) {
	m := newMemory(t, 16<<20)
	as, err := m.NewAddressSpace(SpaceOptions{MaxPinned: 4 * page})
	mustDo(t, err)
	gva := mapAt(t, as, 0x40000000, 8*page, rw)
	pinned := func(want uint64) {
		t.Helper()
		if got := as.Stats().PinnedBytes; got != want*page {
			t.Errorf("%d bytes are counted as pinned, want %d pages", got, want)
		}
		mustCheck(t, m)
	}
	r := func(i, n addr.GVA) addr.Range { return addr.Range{Start: gva + i*page, End: gva + (i+n)*page} }
	p, err := as.Pin(ctx, r(0, 3), Write)
	mustDo(t, err)
	pinned(3)
	for _, c := range []struct {
		r    addr.Range
		want error
	}{
		{r(0, 2), ErrLimit}, {r(4, 2), syscall.ENOMEM}, {r(7, 1<<30), ErrLimit},
		{addr.Range{Start: gva + 8*page, End: gva + 9*page}, ErrNotMapped},
	} {
		if _, err := as.Pin(ctx, c.r, Write); !errors.Is(err, c.want) {
			t.Errorf("pin of %v: %v, want %v", c.r, err, c.want)
		}
		pinned(3)
	}
	mustDo(t, as.Unmap(gva+4*page, page))
	if _, err := as.Pin(ctx, r(4, 1), Write); !errors.Is(err, ErrNotMapped) {
		t.Errorf("pin over a hole: %v", err)
	}
	pinned(3)
	child := mustFork(t, as)
	if n := child.Stats().PinnedBytes; n != 0 {
		t.Errorf("a child has %d bytes pinned", n)
	}
	q, err := child.Pin(ctx, r(0, 4), Write)
	mustDo(t, errors.Join(err, q.Release()))
	mustDo(t, p.Release())
	pinned(0)
	if err := p.Release(); !errors.Is(err, ErrReleased) {
		t.Errorf("released twice: %v", err)
	}
	pinned(0)
	none, err := m.NewAddressSpace(SpaceOptions{MaxPinned: -1})
	mustDo(t, err)
	mapAt(t, none, gva, page, rw)
	if _, err := none.Pin(ctx, r(0, 1), Read); !errors.Is(err, ErrLimit) {
		t.Errorf("pin where none may be: %v", err)
	}
}

// Runs are the frames, and the bytes of the mapping that vCPUs use.
func TestR7PinRunsLeadToThePages(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 6*page, rw)
	for _, i := range []addr.GVA{0, 1, 2, 5, 3, 4} { // frames in another order than pages
		mustDo(t, as.Store64(ctx, gva+i*page, uint64(i)))
	}
	p := mustPin(t, as, gva, 6, Write)
	defer p.Release()
	var frames []addr.PFN
	for _, run := range p.Runs() {
		if want := m.Region().Slot() + addr.HVA(run.First.GPA()-m.Region().Base()); run.HVA != want {
			t.Errorf("run of %v is at %v, want %v", run.First, run.HVA, want)
		}
		for i := range run.N {
			frames = append(frames, run.First+addr.PFN(i))
		}
	}
	if d := cmp.Diff(p.Frames(), frames); d != "" {
		t.Errorf("frames of the runs (-want +got):\n%s", d)
	}
	runsOfFrames := 1
	for i, f := range p.Frames()[1:] {
		if f != p.Frames()[i]+1 {
			runsOfFrames++
		}
	}
	if n := len(p.Runs()); n != runsOfFrames || n < 2 {
		t.Errorf("%d runs, and %d of frames that follow each other", n, runsOfFrames)
	}
	part := addr.Range{Start: gva + page - 8, End: gva + 3*page + 100}
	runs, err := p.HostRuns(part)
	mustDo(t, err)
	total := uint64(0)
	for _, run := range runs {
		total += run.Length
	}
	if want := p.hva(p.Frames()[0]) + page - 8; runs[0].HVA != want || total != part.Len() {
		t.Errorf("%v: from %v on, %d bytes; want %v, %d", runs, runs[0].HVA, total, want, part.Len())
	}
	for _, bad := range []addr.Range{{}, {Start: gva - 1, End: gva + 1}, {Start: gva, End: gva + 7*page}} {
		if _, err := p.HostRuns(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("runs of %v: %v", bad, err)
		}
	}
}

// A device writes through its pins for the whole of a storm of forks, snapshots,
// rollbacks, moves and unmaps: it finds every write of its own, and nobody else
// finds one that was made after the pages were shared.
func TestR7DeviceWritesThroughAStorm(t *testing.T) {
	rounds := 150
	if *soak {
		rounds = 10_000
	}
	m := newMemory(t, 32<<20)
	as := newSpace(t, m)
	const n = 6
	gva := mapAt(t, as, 0x40000000-3*page, n*page, rw)
	other := mapAt(t, as, 0x50000000, page, rw)
	pin, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + n*page}, Write)
	mustDo(t, err)
	const offDevice, offGuest = 64, 128
	var stop atomic.Bool
	var clock [n]atomic.Uint64
	var pause sync.Mutex // a check is exact when nobody is in a section
	device := inBackground(func() {
		var b [8]byte
		for x := uint64(1); !stop.Load(); x++ {
			pause.Lock()
			for i, f := range pin.Frames() {
				binary.LittleEndian.PutUint64(b[:], x)
				if _, err := m.WriteAt(b[:], f.GPA()+offDevice); err != nil {
					t.Error(err)
				}
				clock[i].Store(x)
				if _, err := m.ReadAt(b[:], f.GPA()+offDevice); err != nil || binary.LittleEndian.Uint64(b[:]) != x {
					t.Errorf("the device wrote %d to page %d and reads %d (%v)", x, i, binary.LittleEndian.Uint64(b[:]), err)
				}
			}
			pause.Unlock()
		}
	})
	// latest is the most that a copy made by now may have of the device's.
	mustStand := func(a *AddressSpace, who string, latest, seen *[n]uint64) {
		for i := range addr.GVA(n) {
			got, err := a.Load64(ctx, gva+i*page+offDevice)
			switch {
			case err != nil || got > latest[i]:
				t.Fatalf("%s has %d of the device's writes to page %d (%v); the copy was made at %d", who, got, i, err, latest[i])
			case seen[i] != 0 && got != seen[i]:
				t.Fatalf("%s: page %d went from %d to %d by the device's hand", who, i, seen[i], got)
			}
			seen[i] = got
		}
	}
	now := func() (out [n]uint64) {
		for i := range out {
			out[i] = clock[i].Load() + 1
		}
		return out
	}
	for round := range rounds {
		child := mustFork(t, as)
		latest, seen := now(), [n]uint64{}
		mustStand(child, "a child", &latest, &seen)
		// The pinner's own CPU and its device have the same pages.
		mustDo(t, as.Store64(ctx, gva+offGuest, uint64(round)))
		var b [8]byte
		_, err := m.ReadAt(b[:], pin.Frames()[0].GPA()+offGuest)
		mustDo(t, err)
		if got := binary.LittleEndian.Uint64(b[:]); got != uint64(round) {
			t.Fatalf("round %d: the device reads %d of what the guest wrote", round, got)
		}
		s := mustSnapshot(t, child)
		mustDo(t, child.Store64(ctx, gva+page, 1))
		mustDo(t, as.Store64(ctx, other, uint64(round)))
		mustDo(t, child.Rollback(ctx, s))
		mustStand(child, "a child rolled back", &latest, &seen)
		own := mustSnapshot(t, as) // copies what is pinned at once
		mustDo(t, own.Close())
		if round%10 == 0 {
			pause.Lock()
			mustCheck(t, m)
			pause.Unlock()
		}
		mustStand(child, "a child, later", &latest, &seen)
		mustDo(t, errors.Join(s.Close(), child.Close()))
	}
	// The pin holds through what takes the area away, and a rollback.
	s := mustSnapshot(t, as)
	mustDo(t, as.Protect(gva, page, ProtNone))
	mustDo(t, as.Discard(gva+page, page))
	mustDo(t, as.Unmap(gva+2*page, page))
	_, err = as.Remap(ctx, RemapOptions{Addr: gva + 3*page, OldLength: page, NewLength: page, NewAddr: 0x70000000, Flags: RemapMayMove | RemapFixed})
	mustDo(t, err)
	mustDo(t, as.Rollback(ctx, s))
	latest, seen := now(), [n]uint64{}
	for range 20 {
		mustStand(as, "the pinner's space, rolled back", &latest, &seen)
	}
	stop.Store(true)
	mustEnd(t, "the device", device)
	mustDo(t, errors.Join(pin.Release(), s.Close()))
}
