package pager

import (
	"bytes"
	"context"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// TestFaultReadWithItsUnmap: a fault and the unmapping, or the move, of what it
// is in are read together. Who faulted is woken and finds out by itself; that
// is no fault outside of every region.
func TestFaultReadWithItsUnmap(t *testing.T) {
	for name, ev := range map[string]uffd.Event{
		"unmap": {Kind: uffd.EventUnmap, Start: page(2), End: page(4)},
		"remap": {Kind: uffd.EventRemap, From: page(2), To: page(100), Len: 2 * smallPage},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 8 * smallPage}})
			f.with(func() {
				f.woken[page(3)] = 0
				f.faults = append(f.faults, uffd.Event{Kind: uffd.EventFault, Addr: page(3)})
				f.layout = append(f.layout, ev)
				f.signal()
			})
			eventually(t, "who faulted to be woken", func() (woken bool) {
				f.with(func() { woken = f.woken[page(3)] > 0 })
				return woken
			})
			mustTouch(t, f, page(1), imagePage(1*smallPage))
			mustTouch(t, f, page(5), imagePage(5*smallPage))
			if err := g.Err(); err != nil {
				t.Errorf("guest ended by %v", err)
			}
			// Whoever faults there again is outside indeed.
			f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(3)})
			testutil.Proceeds(t, g.Done(), "end of the guest")
			if err := g.Err(); !errors.Is(err, ErrOutside) {
				t.Errorf("guest ended by %v, want ErrOutside", err)
			}
		})
	}
}

// TestR9MovesToldOutOfOrder: threads unmap and move memory at once, and the kernel
// tells of a move to addresses before it tells that they have come free. The guest
// fails at once, and sees neither other memory's bytes nor zeroes.
func TestR9MovesToldOutOfOrder(t *testing.T) {
	move := func(from, to int) uffd.Event {
		return uffd.Event{Kind: uffd.EventRemap, From: page(from), To: page(to), Len: smallPage}
	}
	for name, late := range map[string]uffd.Event{
		"unmap": {Kind: uffd.EventUnmap, Start: page(9), End: page(10)},
		"move":  move(9, 100),
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
				Source: &testSource{size: 16 * smallPage}, Fill: Fill{Background: FillAll, Pause: time.Hour},
			})
			f.with(func() {
				f.layout = append(f.layout, move(2, 9), late)
				f.signal()
			})
			testutil.Proceeds(t, g.Done(), "end of the guest")
			if err := g.Err(); !errors.Is(err, ErrStrayEvent) {
				t.Errorf("the guest ended by %v, want ErrStrayEvent", err)
			}
		})
	}
}

// TestR9UnmapOfAMoveToldLate: one thread moves memory away, another moves other
// memory to where that was, and then the kernel tells that the first is unmapped
// there. What is there now stays.
func TestR9UnmapOfAMoveToldLate(t *testing.T) {
	f := newFake(t)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 16 * smallPage}})
	unmap := func(i int) uffd.Event {
		return uffd.Event{Kind: uffd.EventUnmap, Start: page(i), End: page(i + 1)}
	}
	f.with(func() {
		f.layout = append(f.layout,
			uffd.Event{Kind: uffd.EventRemap, From: page(9), To: page(100), Len: smallPage},
			uffd.Event{Kind: uffd.EventRemap, From: page(2), To: page(9), Len: smallPage},
			unmap(9), unmap(2))
		f.signal()
	})
	mustTouch(t, f, page(9), imagePage(2*smallPage))
	mustTouch(t, f, page(100), imagePage(9*smallPage))
	if err := g.Err(); err != nil {
		t.Errorf("the guest ended by %v", err)
	}
	f.event(unmap(9)) // and this is its own
	f.event(uffd.Event{Kind: uffd.EventRemove, Start: page(9), End: page(10)})
	testutil.Proceeds(t, g.Done(), "end of the guest")
	if err := g.Err(); !errors.Is(err, ErrStrayEvent) {
		t.Errorf("page 9 is still served: the guest ended by %v", err)
	}
}

// TestMemoryGoneWithoutPidfd: the kernel tells of no process's end, nor of its
// execve. A guest whose memory is gone ends all the same, with or without a
// handle on its process.
func TestMemoryGoneWithoutPidfd(t *testing.T) {
	f := newFake(t)
	failed := make(chan error, 1)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
		Source: &testSource{size: 8 * smallPage}, Fail: func(err error) { failed <- err },
	})
	mustTouch(t, f, page(1), imagePage(1*smallPage))
	f.with(func() { f.dead = true })
	if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, ErrPeerGone) {
		t.Errorf("guest ended by %v, want ErrPeerGone", err)
	}
	testutil.Proceeds(t, g.Done(), "end of the guest")
}

// TestFetchBeyondAddresses: a range that wraps round is refused, and not taken
// for an empty one.
func TestFetchBeyondAddresses(t *testing.T) {
	f := newFake(t)
	g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: &testSource{size: 8 * smallPage}})
	for _, length := range []uint64{math.MaxUint64, math.MaxUint64 - uint64(base) + 1, math.MaxUint64 &^ (smallPage - 1)} {
		if err := g.Fetch(context.Background(), base, length); !errors.Is(err, ErrOutside) {
			t.Errorf("fetch of %#x bytes: %v, want ErrOutside", length, err)
		}
	}
	if err := g.Fetch(context.Background(), addr.HVA(math.MaxUint64-smallPage+1), smallPage-1); !errors.Is(err, ErrOutside) {
		t.Errorf("fetch of the last page: %v, want ErrOutside", err)
	}
}

// TestMergeOfHugeSets: a file of a few bytes can name more pages than there is
// memory to list them one by one.
func TestMergeOfHugeSets(t *testing.T) {
	const n = maxImagePages
	a := &WorkingSet{Pages: n, Runs: []PageRun{{First: 100, N: n / 2}, {First: 10, N: 5}}}
	b := &WorkingSet{Pages: n, Runs: []PageRun{{First: n - 1, N: 1}, {First: 0, N: n - 1}}}
	var file bytes.Buffer
	if _, err := a.WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	a, err := ReadWorkingSet(&file)
	if err != nil {
		t.Fatal(err)
	}
	got, err := a.Merge(b)
	if err != nil {
		t.Fatal(err)
	}
	want := []PageRun{{100, n / 2}, {10, 5}, {n - 1, 1}, {0, 10}, {15, 85}, {n/2 + 100, n/2 - 101}}
	if diff := cmp.Diff(want, got.Runs); diff != "" {
		t.Error(diff)
	}
}

// TestPanickingOwner: a function of the owner that panics when told of the end
// of its guest is no end of the server, nor of another guest.
func TestPanickingOwner(t *testing.T) {
	for name, o := range map[string]GuestOptions{
		"fail":    {Fail: func(error) { panic("fail") }},
		"standby": {OnFailure: Standby, Standby: func(*Takeover, error) { panic("standby") }},
	} {
		t.Run(name, func(t *testing.T) {
			s := newTestServer(t, Options{})
			f, other := newFake(t), newFake(t)
			serveFake(t, s, other, GuestOptions{Source: &testSource{size: 8 * smallPage}})
			o.Source, _ = broken(8, 0)
			g := serveFake(t, s, f, o)
			loaded := goTouch(f, page(0))
			testutil.Proceeds(t, g.told, "the owner to be told")
			if err := g.Err(); !errors.Is(err, ErrPanicked) || !errors.Is(err, ErrSource) {
				t.Errorf("guest ended by %v, want ErrSource and ErrPanicked", err)
			}
			testutil.Parked(t, loaded, "load of the guest that nobody ends")
			mustTouch(t, other, page(1), imagePage(1*smallPage))
			if name == "fail" {
				g.Close()
			} else {
				f.Close() // the Takeover is lost with its owner
			}
		})
	}
}
