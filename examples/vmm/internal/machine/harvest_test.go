//go:build linux && amd64

package machine

import (
	"context"
	"testing"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/kvm"
)

// TestAccounting feeds harvests to a ledger of which entry n is of page n+10.
func TestAccounting(t *testing.T) {
	type harvest struct {
		tail, head uint64 // done when it began, begun when it ended
		found      []guest.Entry
		missed     uint64
		spurious   uint64
	}
	for name, harvests := range map[string][]harvest{
		"all there":                {{tail: 2, head: 2, found: []guest.Entry{10, 11}}, {tail: 3, head: 3, found: []guest.Entry{12}}},
		"one is missed":            {{tail: 2, head: 2, found: []guest.Entry{10}, missed: 1}},
		"one is told of again":     {{tail: 1, head: 1, found: []guest.Entry{10}}, {tail: 2, head: 2, found: []guest.Entry{10, 11}, spurious: 1}},
		"one that nobody wrote":    {{tail: 1, head: 1, found: []guest.Entry{10, 99}, spurious: 1}},
		"not begun":                {{tail: 1, head: 1, found: []guest.Entry{10, 11}, spurious: 1}},
		"meanwhile, in this one":   {{tail: 0, head: 1, found: []guest.Entry{10}}, {tail: 1, head: 1}},
		"meanwhile, in the next":   {{tail: 0, head: 1}, {tail: 1, head: 1, found: []guest.Entry{10}}},
		"meanwhile, in both":       {{tail: 0, head: 1, found: []guest.Entry{10}}, {tail: 1, head: 1, found: []guest.Entry{10}}},
		"meanwhile, in neither":    {{tail: 0, head: 1}, {tail: 1, head: 1, missed: 1}},
		"through two, in the last": {{tail: 0, head: 1}, {tail: 0, head: 1}, {tail: 1, head: 1, found: []guest.Entry{10}}},
		"through two, in none":     {{tail: 0, head: 1}, {tail: 0, head: 1}, {tail: 1, head: 1, missed: 1}},
		"after it was settled":     {{tail: 0, head: 1, found: []guest.Entry{10}}, {tail: 1, head: 1}, {tail: 1, head: 1, found: []guest.Entry{10}, spurious: 1}},
	} {
		l := ledger{entries: []guest.Entry{10, 11, 12}, next: 3}
		for i, h := range harvests {
			found, may := make(map[guest.Entry]bool), make(map[guest.Entry]bool)
			for _, e := range h.found {
				found[e] = true
			}
			var got Tally
			l.account(&got, found, may, h.tail, h.head)
			for e := range found {
				if !may[e] {
					got.Spurious++
				}
			}
			if got.Missed != h.missed || got.Spurious != h.spurious {
				t.Errorf("%s: harvest %d: %d missed and %d spurious, want %d and %d", name, i, got.Missed, got.Spurious, h.missed, h.spurious)
			}
		}
	}
}

// TestHarvestsOfARealGuest has a guest write, and compares a harvest with its
// ledgers; one from which somebody else has taken pages before is short of them.
func TestHarvestsOfARealGuest(t *testing.T) {
	for _, mode := range []kvm.DirtyMode{kvm.DirtyLog, kvm.DirtyRing} {
		_, g := newGuest(t, mode)
		if err := g.Baseline(); err != nil {
			t.Fatal(err)
		}
		for _, isRobbed := range []bool{false, true} {
			if err := g.Do(context.Background(), guest.Run, 50); err != nil {
				t.Fatal(err)
			}
			if isRobbed {
				if _, _, err := g.collect(0); err != nil {
					t.Fatal(err)
				}
			}
			got, err := g.Harvest()
			if err != nil {
				t.Fatal(err)
			}
			if isRobbed == (got.Missed == 0) || isRobbed == (got.Dirty > 0) || got.Spurious > 0 {
				t.Errorf("%v, robbed: %v: %+v", mode, isRobbed, got)
			}
		}
	}
}
