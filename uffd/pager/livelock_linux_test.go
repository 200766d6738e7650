package pager

import (
	"bytes"
	"context"
	"errors"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// TestTrap15GivingBackIsNoLivelock: a guest may give the same page back and
// touch it as often as it likes; each of its faults is answered by a page.
func TestTrap15GivingBackIsNoLivelock(t *testing.T) {
	for name, src := range sources(4) {
		for _, arming := range []Arming{NotArmed, ArmInstalled} {
			t.Run(name, func(t *testing.T) {
				f := newFake(t)
				g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{
					Source: src, LivelockLimit: 20,
					Regions: []Region{{Start: base, Size: 4 * smallPage, Arming: arming}},
				})
				mustTouch(t, f, page(1), imagePage(1*smallPage))
				for n := range uint64(100) {
					if arming == ArmInstalled {
						f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(1), Flags: uffd.FaultWP | uffd.FaultWrite})
						eventually(t, "the page to be writable", func() bool { return g.Stats().Written.Load() == n+1 })
					}
					f.remove(page(1), page(2))
					mustTouch(t, f, page(1), zeroPage)
				}
				if err := g.Err(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestTrap15TwoPagesByTurns: two pages that never come are no progress either,
// though the same one never faults twice in a row.
func TestTrap15TwoPagesByTurns(t *testing.T) {
	for name, src := range sources(4) {
		for errName, errno := range map[string]syscall.Errno{"exists": syscall.EEXIST, "not mapped": syscall.ENOENT} {
			t.Run(name+"/"+errName, func(t *testing.T) {
				f := newFake(t)
				f.script = func(_ string, start addr.HVA, length uint64) (uint64, error, bool) {
					if start == page(1) || start == page(2) {
						f.wakeLocked(start, length)
						return 0, errno, true
					}
					return 0, nil, false
				}
				g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, LivelockLimit: 50})
				for i := 0; g.ctx.Err() == nil && i < 10_000; i++ {
					answered := g.Stats().Already.Load() + g.Stats().Gone.Load()
					f.event(uffd.Event{Kind: uffd.EventFault, Addr: page(1 + i%2)})
					eventually(t, "an answer", func() bool {
						return g.Stats().Already.Load()+g.Stats().Gone.Load() > answered || g.ctx.Err() != nil
					})
				}
				testutil.Proceeds(t, g.Done(), "end of the guest")
				if err := g.Err(); !errors.Is(err, ErrLivelock) {
					t.Errorf("guest ended by %v, want ErrLivelock", err)
				}
			})
		}
	}
}

// TestTrap15EmptyPoolIsNoPage: with no huge page left the kernel says that the
// page is there. It is not, and when a huge page is free again it holds the
// image and not zeroes.
func TestTrap15EmptyPoolIsNoPage(t *testing.T) {
	src := &testSource{size: 2 * hugePage}
	want := make([]byte, hugePage)
	if err := src.ReadPages(context.Background(), want, hugePage); err != nil {
		t.Fatal(err)
	}
	regions := []Region{{Start: base, Size: 2 * hugePage, PageSize: hugePage}}
	t.Run("refilled", func(t *testing.T) {
		f := newFake(t)
		f.pageSize = hugePage
		empty := 3
		f.script = func(_ string, start addr.HVA, length uint64) (uint64, error, bool) {
			if start != 0 && empty > 0 {
				empty--
				return 0, syscall.EEXIST, true
			}
			return 0, nil, false
		}
		g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, Regions: regions})
		got := testutil.Proceeds(t, goTouch(f, base+hugePage), "guest's load")
		if !bytes.Equal(got, want) {
			t.Errorf("loaded %x..., want %x...", head(got), head(want))
		}
		// The load goes on once the page is there, the server's books a moment later.
		eventually(t, "one page to be missing", func() bool { return g.Missing() == 1 })
	})
	t.Run("empty for good", func(t *testing.T) {
		f := newFake(t)
		f.pageSize = hugePage
		f.script = func(_ string, start addr.HVA, length uint64) (uint64, error, bool) {
			return 0, syscall.EEXIST, start != 0
		}
		g := serveFake(t, newTestServer(t, Options{}), f, GuestOptions{Source: src, Regions: regions, LivelockLimit: 20})
		// Nobody faults: who waits for the page in Go must not wait for ever.
		testutil.Proceeds(t, testutil.Go(func() {
			if err := g.Fetch(context.Background(), base, hugePage); !errors.Is(err, ErrLivelock) {
				t.Errorf("Fetch: %v, want ErrLivelock", err)
			}
		}), "Fetch")
		if n := g.Missing(); n != 2 {
			t.Errorf("%d pages missing, want 2: a page that is not there counts as there", n)
		}
	})
}
