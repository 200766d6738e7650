//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

var dirtyModes = []struct {
	name   string
	o      VMOptions
	legacy bool
}{
	{name: "log", o: VMOptions{Dirty: DirtyLog}},
	{name: "legacy log", o: VMOptions{Dirty: DirtyLog}, legacy: true},
	{name: "ring", o: VMOptions{Dirty: DirtyRing}},
	{name: "small ring", o: VMOptions{Dirty: DirtyRing, RingEntries: 256}}, // a page of entries: full again and again
}

// newDirty makes a guest that tracks dirty pages, with data in a region of its own.
func newDirty(t *testing.T, mode int, sizeBytes uint64) (*flat, *guestmem.Region) {
	t.Helper()
	o, s := dirtyModes[mode].o, requireKVM(t)
	if o.Dirty == DirtyRing && s.host.dirtyRing == 0 {
		t.Skip("needs a dirty ring: Linux 5.11")
	}
	if dirtyModes[mode].legacy {
		s.host.manualDirtyLog = 0
	}
	f := &flat{t: t, m: newFlatMemory(t, 4<<20, guestmem.RegionOptions{})}
	f.write(vmTouchList, vmStore)
	f.vm = f.newVM(s, f.m, o)
	r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: sizeBytes})
	if err != nil {
		t.Fatal(err)
	}
	return f, r
}

const dirtyBase addr.GPA = 0x40001000 // not at a word's border of any bitmap

// harvest adds the dirty pages of a region to a set.
func (f *flat) harvest(r *guestmem.Region, to map[addr.GPA]int) {
	f.t.Helper()
	err := f.m.CollectDirty(r, func(start addr.GPA, nPages uint64) {
		for i := range nPages {
			to[start+addr.GPA(i*addr.PageSize)]++
		}
	})
	if err != nil {
		f.t.Error(err)
	}
}

// touch has a vCPU write the pages.
func (f *flat) touch(v *VCPU, list addr.GPA, pages []addr.GPA) {
	f.t.Helper()
	if len(pages) == 0 {
		return
	}
	b := make([]byte, 0, 8*len(pages))
	for _, p := range pages {
		b = binary.LittleEndian.AppendUint64(b, uint64(p)+8*rand.Uint64N(512))
	}
	f.store(b, list)
	f.enter(v, Ring3, 0, GeneralRegs{RSI: uint64(list), RCX: uint64(len(pages)), RAX: rand.Uint64()})
	untilOut(f.t, v)
}

func randomPages(region uint64, n int) (pages []addr.GPA) {
	for range n {
		pages = append(pages, dirtyBase+addr.GPA(rand.Uint64N(region/addr.PageSize)*addr.PageSize))
	}
	return pages
}

// TestHarvestsMissNothing has two vCPUs write random pages while harvests go on
// beside them. What all harvests found is what was written: no page less, and none more.
func TestHarvestsMissNothing(t *testing.T) {
	rounds := 6
	if *soak {
		rounds = 600
	}
	const size = 8<<20 + 5*addr.PageSize
	for mode, m := range dirtyModes {
		t.Run(m.name, func(t *testing.T) {
			f, r := newDirty(t, mode, size)
			vs := []*VCPU{f.vcpu(0, 0, GeneralRegs{}), f.vcpu(1, 0, GeneralRegs{})}
			for range rounds {
				written, found := map[addr.GPA]int{}, map[addr.GPA]int{}
				lists := [2][]addr.GPA{randomPages(size, 700), randomPages(size, 700)}
				var wg sync.WaitGroup
				for i, v := range vs {
					wg.Go(func() { f.touch(v, flatData+addr.GPA(i)<<16, lists[i]) })
				}
				done := testutil.Go(wg.Wait)
				for running := true; running; {
					select {
					case <-done:
						running = false
					default:
					}
					f.harvest(r, found)
				}
				f.harvest(r, found)
				for _, l := range lists {
					for _, p := range l {
						written[p]++
					}
				}
				missed, spurious := 0, 0
				for p := range written {
					if found[p] == 0 {
						missed++
					}
				}
				for p := range found {
					if written[p] == 0 {
						spurious++
					}
				}
				if missed > 0 || spurious > 0 {
					t.Fatalf("of %d pages written, %d missed, %d spurious", len(written), missed, spurious)
				}
				again := map[addr.GPA]int{}
				f.harvest(r, again)
				if len(again) > 0 {
					t.Fatalf("%d pages dirty again that nobody wrote", len(again))
				}
			}
		})
	}
}

// TestDirtyPagesOutliveTheirSlot writes pages, and has slots joined and split
// before anybody asks: the pages are still dirty, those of memory that went are not.
func TestDirtyPagesOutliveTheirSlot(t *testing.T) {
	const place = 64 << 10
	for mode, m := range dirtyModes {
		t.Run(m.name, func(t *testing.T) {
			f, _ := newDirty(t, mode, 4<<20)
			mem := foreign(t, 3*place)
			base := addr.GPA(0x80000000)
			var regions [3]*guestmem.Region
			add := func(i int) {
				t.Helper()
				var err error
				if regions[i], err = f.m.AddRegion(guestmem.RegionOptions{
					Base: base + addr.GPA(i*place), Size: place, Backing: guestmem.BackingForeign, Mapping: addr.HVA(addressOf(mem[i*place:])),
				}); err != nil {
					t.Fatal(err)
				}
			}
			v := f.vcpu(0, 0, GeneralRegs{})
			at := func(i, page int) addr.GPA { return base + addr.GPA(i*place+page*addr.PageSize) }
			add(0)
			f.touch(v, flatData, []addr.GPA{at(0, 3)})
			add(1) // joined
			f.touch(v, flatData, []addr.GPA{at(0, 5), at(1, 0), at(1, 15)})
			add(2) // joined
			f.touch(v, flatData, []addr.GPA{at(2, 7)})
			if err := f.m.RemoveRegion(regions[1]); err != nil { // split
				t.Fatal(err)
			}
			f.touch(v, flatData, []addr.GPA{at(2, 9)})
			add(1)
			found := map[addr.GPA]int{}
			for _, r := range regions {
				f.harvest(r, found)
			}
			want := []addr.GPA{at(0, 3), at(0, 5), at(2, 7), at(2, 9)}
			for _, p := range want {
				if found[p] == 0 {
					t.Errorf("page %v is missed", p)
				}
			}
			if len(found) != len(want) {
				t.Errorf("found %v, want %v", found, want)
			}
		})
	}
}

// TestLogAndRingAgree gives both the same writes.
func TestLogAndRingAgree(t *testing.T) {
	const size = 4 << 20
	var found [2]map[addr.GPA]int
	pages := randomPages(size, 900)
	for i, mode := range []int{0, 2} {
		f, r := newDirty(t, mode, size)
		v := f.vcpu(0, 0, GeneralRegs{})
		found[i] = map[addr.GPA]int{}
		f.touch(v, flatData, pages)
		f.harvest(r, found[i])
	}
	if fmt.Sprint(found[0]) != fmt.Sprint(found[1]) {
		t.Errorf("log %d pages, ring %d", len(found[0]), len(found[1]))
	}
}

func TestCollectDirtyWithoutTracking(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{})
	if err := f.vm.CollectDirty(f.m.Regions()[0], make([]uint64, 16)); !errors.Is(err, ErrNotSupported) {
		t.Errorf("CollectDirty = %v", err)
	}
}

// BenchmarkHarvest harvests 1 GiB in which a number of pages are dirty.
func BenchmarkHarvest(b *testing.B) {
	for _, mode := range []DirtyMode{DirtyLog, DirtyRing} {
		for _, n := range []int{0, 1, 100} {
			b.Run(fmt.Sprintf("mode=%v/dirty=%d", mode, n), func(b *testing.B) {
				f := &flat{t: b, m: newFlatMemory(b, 4<<20, guestmem.RegionOptions{})}
				f.write(vmTouchList)
				f.vm = f.newVM(requireKVM(b), f.m, VMOptions{Dirty: mode})
				r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: 1 << 30})
				if err != nil {
					b.Fatal(err)
				}
				v := f.vcpu(0, 0, GeneralRegs{})
				bitmap := make([]uint64, 1<<30/4096/64)
				for b.Loop() {
					b.StopTimer()
					f.touch(v, flatData, randomPages(1<<30, n))
					b.StartTimer()
					if err := f.vm.CollectDirty(r, bitmap); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
