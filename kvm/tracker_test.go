//go:build linux && amd64

package kvm

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// tracked is a guest with one kind of tracker.
type tracked struct {
	*flat
	r *guestmem.Region
	v *VCPU
}

// newTracked makes a guest with a region of data that is tracked.
func newTracked(t *testing.T, by Tracker, o guestmem.RegionOptions) *tracked {
	t.Helper()
	s := requireKVM(t)
	f := &flat{t: t, m: newFlatMemory(t, 4<<20, guestmem.RegionOptions{})}
	f.write(vmTouchList, vmStore)
	r, err := f.m.AddRegion(o)
	if err != nil {
		t.Fatal(err)
	}
	f.vm = f.newVM(s, f.m, VMOptions{Dirty: by.Mode()})
	if by == TrackByWriteProtection {
		w, err := f.m.TrackWrites()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	return &tracked{f, r, f.vcpu(0, 0, GeneralRegs{})}
}

func requireTrackers(t testing.TB) []Tracker {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDWPAsync)
	s := requireKVM(t)
	by := []Tracker{TrackByLog, TrackByWriteProtection}
	if s.host.dirtyRing != 0 {
		by = append(by, TrackByRing)
	}
	return by
}

// TestTrackersAgree runs the same guest program, and the same stores by Go code,
// under each tracker. In every round each reports what was stored to: no page less,
// and none more that KVM does not tell of, though one watches the host's mapping and the
// others what vCPUs do.
func TestTrackersAgree(t *testing.T) {
	const size = 8<<20 + 16*addr.PageSize
	rounds := 5
	if *soak {
		rounds = 500
	}
	for name, o := range map[string]guestmem.RegionOptions{
		"memfd":     {Base: dirtyBase, Size: size},
		"anonymous": {Base: dirtyBase, Size: size, Backing: guestmem.BackingAnonymous},
	} {
		t.Run(name, func(t *testing.T) {
			var guests []*tracked
			trackers := requireTrackers(t)
			for _, by := range trackers {
				guests = append(guests, newTracked(t, by, o))
			}
			accessed := map[addr.GPA]int{} // by a vCPU
			rng := rand.New(rand.NewPCG(1, uint64(len(name))))
			for round := range rounds {
				// The guest program, in two runs with Go's stores between, of which some
				// are to the same pages.
				pages := make([]addr.GPA, 600)
				for i := range pages {
					pages[i] = dirtyBase + addr.GPA(rng.Uint64N(size/addr.PageSize)*addr.PageSize)
				}
				truth := setOf(pages...)
				maps.Copy(accessed, truth)
				first := pages[7]
				discarded := dirtyBase + addr.GPA(rng.Uint64N(size/addr.PageSize-3)*addr.PageSize)
				for i := range addr.GPA(3) {
					truth[discarded+i*addr.PageSize] = 1
				}
				for i, g := range guests {
					g.touch(g.v, flatData, pages[:200])
					for _, p := range pages[200:300] {
						g.store([]byte{1, 2, 3}, p+5)
					}
					g.store([]byte{4}, first)
					if err := g.m.Discard(discarded, 3*addr.PageSize); err != nil {
						t.Fatal(err)
					}
					g.touch(g.v, flatData, pages[300:])
					told, isExact := g.told(g.r)
					if !isExact {
						told = accessed
					}
					found := map[addr.GPA]int{}
					g.harvest(g.r, found)
					checkFound(t, fmt.Sprintf("round %d, %v", round, trackers[i]), found, truth, told)
					again := map[addr.GPA]int{}
					g.harvest(g.r, again)
					checkFound(t, fmt.Sprintf("round %d, %v, again", round, trackers[i]), again, nil, nil)
				}
			}
		})
	}
}

// TestTrackersAgreeWhileTheGuestRuns harvests beside a vCPU that stores: what all
// harvests have together is the truth, under each tracker, and nothing that the vCPU
// has never accessed.
func TestTrackersAgreeWhileTheGuestRuns(t *testing.T) {
	const size = 4 << 20
	for _, by := range requireTrackers(t) {
		t.Run(by.String(), func(t *testing.T) {
			g := newTracked(t, by, guestmem.RegionOptions{Base: dirtyBase, Size: size})
			accessed := map[addr.GPA]int{}
			for range 5 {
				found := map[addr.GPA]int{}
				pages := randomPages(size, 700)
				truth := setOf(pages...)
				done := testutil.Go(func() { g.touch(g.v, flatData, pages) })
				for running := true; running; {
					select {
					case <-done:
						running = false
					default:
					}
					g.harvest(g.r, found)
				}
				g.harvest(g.r, found)
				checkFound(t, by.String(), found, truth, accessed)
				maps.Copy(accessed, truth)
			}
		})
	}
}

// TestWriteTrackingOfRegionsThatComeAndGo: a region that comes later counts wholly
// once, and exactly from then on; one that goes takes nothing along.
func TestWriteTrackingOfRegionsThatComeAndGo(t *testing.T) {
	requireTrackers(t)
	const size = 1 << 20
	g := newTracked(t, TrackByWriteProtection, guestmem.RegionOptions{Base: dirtyBase, Size: size})
	late, err := g.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase + 2*size, Size: size})
	if err != nil {
		t.Fatal(err)
	}
	found := map[addr.GPA]int{}
	g.harvest(late, found)
	if len(found) != size/addr.PageSize {
		t.Errorf("%d pages of a region that has come", len(found))
	}
	at := late.Base() + 7*addr.PageSize
	g.touch(g.v, flatData, []addr.GPA{at, dirtyBase})
	clear(found)
	g.harvest(late, found)
	checkFound(t, "the second harvest", found, setOf(at), nil)
	if err := g.m.RemoveRegion(late); err != nil {
		t.Fatal(err)
	}
	clear(found)
	g.harvest(g.r, found)
	checkFound(t, "the one that stayed", found, setOf(dirtyBase), nil)
}

func TestCheapestTracker(t *testing.T) {
	s := requireKVM(t)
	for _, u := range []TrackerUse{{}, {LiveSnapshots: true}, {DeviceStores: true}, {ManyDirty: true}, {DeviceStores: true, LiveSnapshots: true}} {
		by, why := s.CheapestTracker(u)
		if why == "" || !strings.Contains(why, " ") {
			t.Errorf("%+v: %v without a reason", u, by)
		}
		if u.LiveSnapshots && by == TrackByWriteProtection {
			t.Errorf("%+v: %v excludes live snapshots", u, by)
		}
		if by == TrackByRing && s.host.dirtyRing == 0 {
			t.Errorf("%+v: %v is not there", u, by)
		}
		t.Logf("%+v: %v, since %s", u, by, why)
	}
	old := s.host
	defer func() { s.host = old }()
	s.host.dirtyRing = 0
	for _, u := range []TrackerUse{{}, {LiveSnapshots: true}, {ManyDirty: true}} {
		if by, why := s.CheapestTracker(u); by != TrackByLog {
			t.Errorf("%+v without a ring: %v, %s", u, by, why)
		}
	}
}

// BenchmarkTrackers has a vCPU store to some pages of 1 GiB, and harvests: what
// the stores cost, and what the harvest does.
func BenchmarkTrackers(b *testing.B) {
	const size = 1 << 30
	for _, by := range requireTrackers(b) {
		for _, n := range []int{100, 2600, 26000} {
			for _, what := range []string{"store", "harvest"} {
				b.Run(fmt.Sprintf("by=%v/dirty=%d/%s", by, n, what), func(b *testing.B) {
					f := &flat{t: b, m: newFlatMemory(b, 4<<20, guestmem.RegionOptions{})}
					f.write(vmTouchList)
					r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: size})
					if err != nil {
						b.Fatal(err)
					}
					f.vm = f.newVM(requireKVM(b), f.m, VMOptions{Dirty: by.Mode()})
					if by == TrackByWriteProtection {
						w, err := f.m.TrackWrites()
						if err != nil {
							b.Fatal(err)
						}
						defer w.Close()
					}
					v := f.vcpu(0, 0, GeneralRegs{})
					harvest := func() {
						if err := f.m.CollectDirty(r, func(addr.GPA, uint64) {}); err != nil {
							b.Fatal(err)
						}
					}
					pages := slices.Collect(maps.Keys(setOf(randomPages(size, n)...)))
					f.touch(v, flatData, pages) // they are there from now on
					harvest()
					for b.Loop() {
						if what == "harvest" {
							b.StopTimer()
						}
						f.touch(v, flatData, pages)
						if what == "harvest" {
							b.StartTimer()
							harvest()
						} else {
							b.StopTimer()
							harvest()
							b.StartTimer()
						}
					}
				})
			}
		}
	}
}
