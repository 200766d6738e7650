package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/sys"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// newWriteTracked makes a memory with a region whose stores are tracked.
func newWriteTracked(t *testing.T, o RegionOptions) (*Memory, *Region, *WriteTracker) {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDWPAsync)
	m := newPhys(t)
	r, err := m.AddRegion(o)
	if err != nil {
		t.Fatal(err)
	}
	w, err := m.TrackWrites()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return m, r, w
}

// harvestPages returns the dirty pages of a region, by number.
func harvestPages(t *testing.T, m *Memory, r *Region) (pages []uint64) {
	t.Helper()
	if err := m.CollectDirty(r, func(start addr.GPA, n uint64) {
		for i := range n {
			pages = append(pages, r.pageOf(start)+i)
		}
	}); err != nil {
		t.Fatal(err)
	}
	return pages
}

// storeSlot stores as a device does: through the slot.
func storeSlot(t *testing.T, r *Region, page uint64) {
	t.Helper()
	if err := testutil.Store(uint64(r.Slot())+page*addr.PageSize+9, []byte{1, 2}); err != nil {
		t.Fatal(err)
	}
}

// TestWriteTrackerSeesWhoUsesTheMapping: what a device stores through the slot is
// dirty, and what Go stores through the alias, each page once.
func TestWriteTrackerSeesWhoUsesTheMapping(t *testing.T) {
	for _, o := range []RegionOptions{
		{Base: 0x10000, Size: 1 << 20},
		{Base: 0x10000, Size: 1 << 20, Backing: BackingAnonymous},
	} {
		t.Run(o.Backing.String(), func(t *testing.T) {
			unchangedHost(t)
			m, r, w := newWriteTracked(t, o)
			if got := harvestPages(t, m, r); len(got) > 0 {
				t.Fatalf("dirty from the beginning: %v", got)
			}
			for round := range uint64(3) {
				storeSlot(t, r, 3)
				storeSlot(t, r, 3)
				storeSlot(t, r, 100+round)
				if _, err := m.WriteAt([]byte{1}, r.gpaOf(50)); err != nil {
					t.Fatal(err)
				}
				if _, err := m.ReadAt(make([]byte, 8192), r.gpaOf(200)); err != nil {
					t.Fatal(err)
				}
				if got, want := harvestPages(t, m, r), []uint64{3, 50, 100 + round}; !slices.Equal(got, want) {
					t.Fatalf("round %d: dirty %v, want %v", round, got, want)
				}
			}
			bitmap := make([]uint64, 4)
			storeSlot(t, r, 70)
			if err := w.CollectDirty(r, bitmap); err != nil || !slices.Equal(bitmap, []uint64{0, 1 << 6, 0, 0}) {
				t.Errorf("bitmap %x, %v", bitmap, err)
			}
		})
	}
}

// TestWriteTrackerNoticesAMappingThatWasReplaced: a mapping over the region takes
// the registration away. Everything is dirty once, and tracked from then on.
func TestWriteTrackerNoticesAMappingThatWasReplaced(t *testing.T) {
	m, r, _ := newWriteTracked(t, RegionOptions{Base: 0, Size: 64 * addr.PageSize, Backing: BackingAnonymous})
	storeSlot(t, r, 5)
	if err := sys.ZeroOver(r.host.slot[:16*addr.PageSize]); err != nil {
		t.Fatal(err)
	}
	if got := harvestPages(t, m, r); len(got) != 64 {
		t.Errorf("%d pages of a region that was replaced in part: %v", len(got), got)
	}
	storeSlot(t, r, 7)
	storeSlot(t, r, 40)
	if got := harvestPages(t, m, r); !slices.Equal(got, []uint64{7, 40}) {
		t.Errorf("dirty %v afterwards", got)
	}
}

// TestOneUserfaultfdForAMapping: whoever is second is refused by name, and the
// first goes on.
func TestOneUserfaultfdForAMapping(t *testing.T) {
	m, r, w := newWriteTracked(t, RegionOptions{Base: 0, Size: 1 << 20})
	if second, err := m.TrackWrites(); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
		if err == nil {
			second.Close()
		}
		t.Errorf("a second tracker: %v", err)
	}
	if s, err := m.Snapshot(t.Context(), SnapshotOptions{}); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
		if err == nil {
			s.Close()
		}
		t.Errorf("a live snapshot beside a tracker: %v", err)
	}
	storeSlot(t, r, 9)
	if got := harvestPages(t, m, r); !slices.Equal(got, []uint64{9}) {
		t.Errorf("the first tracker has %v", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.CollectDirtyPages(r, func(uint64, uint64) {}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	s, err := m.Snapshot(t.Context(), SnapshotOptions{Sweep: SweepOnDemand})
	if err != nil {
		t.Fatal(err)
	}
	if second, err := m.TrackWrites(); !errors.Is(err, ErrBusy) {
		if err == nil {
			second.Close()
		}
		t.Errorf("a tracker beside a live snapshot: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	fd, err := uffd.Open(uffd.Options{Required: uffd.FeatureFaultWP | uffd.FeatureWPHugetlbShmem})
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	if _, err := fd.Register(r.Slot(), r.Size(), uffd.WP); err != nil {
		t.Fatal(err)
	}
	if third, err := m.TrackWrites(); !errors.Is(err, ErrBusy) {
		if err == nil {
			third.Close()
		}
		t.Errorf("a tracker beside a fault server: %v", err)
	}
}

// TestWriteTrackerFollowsRegions: one that comes, and one that goes and is brought back
// by a listener that refuses, count wholly once, and exactly from then on.
func TestWriteTrackerFollowsRegions(t *testing.T) {
	m, r, _ := newWriteTracked(t, RegionOptions{Base: 0, Size: 1 << 20})
	late, err := m.AddRegion(RegionOptions{Base: 1 << 30, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	if got := harvestPages(t, m, late); len(got) != 256 {
		t.Errorf("%d pages of a region that came later", len(got))
	}
	if got := harvestPages(t, m, late); len(got) != 0 {
		t.Errorf("%v once more", got)
	}
	refusing := &refusingOnce{}
	if err := m.AttachListener(refusing); err != nil {
		t.Fatal(err)
	}
	refusing.next = errRefused
	if err := m.RemoveRegion(late); !errors.Is(err, errRefused) {
		t.Fatal(err)
	}
	storeSlot(t, r, 2)
	// It has come back: all of it counts once more, and then what is stored to.
	if got := harvestPages(t, m, late); len(got) != 256 {
		t.Errorf("%d pages of a region that stayed after all", len(got))
	}
	storeSlot(t, late, 8)
	if got := harvestPages(t, m, late); !slices.Equal(got, []uint64{8}) {
		t.Errorf("dirty %v in it", got)
	}
	if got := harvestPages(t, m, r); !slices.Equal(got, []uint64{2}) {
		t.Errorf("dirty %v in the other one", got)
	}
	m.DetachListener(refusing)
	if err := m.RemoveRegion(late); err != nil {
		t.Fatal(err)
	}
}

type refusingOnce struct{ next error }

func (l *refusingOnce) UpdateRegions([]*Region) error {
	err := l.next
	l.next = nil
	return err
}

// BenchmarkTrackWrites arms and harvests 1 GiB that is there.
func BenchmarkTrackWrites(b *testing.B) {
	testutil.RequireUFFD(b, testutil.UFFDWPAsync)
	for _, dirty := range []uint64{0, 100, 2600} {
		b.Run(fmt.Sprintf("dirty=%d", dirty), func(b *testing.B) {
			m := newPhys(b)
			r, err := m.AddRegion(RegionOptions{Base: 0, Size: 1 << 30})
			if err != nil {
				b.Fatal(err)
			}
			for at := addr.GPA(0); at < 1<<30; at += 1 << 20 {
				if _, err := m.WriteAt(bytes.Repeat([]byte{1}, 1<<20), at); err != nil {
					b.Fatal(err)
				}
			}
			w, err := m.TrackWrites()
			if err != nil {
				b.Fatal(err)
			}
			defer w.Close()
			for b.Loop() {
				b.StopTimer()
				for i := range dirty {
					if err := testutil.Store(uint64(r.Slot())+i*97%262144*addr.PageSize, []byte{1}); err != nil {
						b.Fatal(err)
					}
				}
				b.StartTimer()
				if err := w.CollectDirtyPages(r, func(uint64, uint64) {}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
