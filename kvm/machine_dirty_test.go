//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
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
	{name: "small ring", o: VMOptions{Dirty: DirtyRing, RingEntries: smallRing()}}, // full again and again
}

// smallRing is the smallest ring that KVM has: it keeps 64 entries back, and 512 more
// where the processor logs pages by itself (PML).
func smallRing() int {
	for _, module := range []string{"kvm_intel", "kvm_amd"} {
		if b, err := os.ReadFile("/sys/module/" + module + "/parameters/pml"); err == nil && len(b) > 0 && b[0] == 'Y' {
			return 1024
		}
	}
	return 256
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

// What KVM promises is that each page that a vCPU has written is reported. One that is
// reported and was not written is no error of KVM's: it maps a page writable when it is
// first read, if the host lets it, and counts that; and it stores by itself where a guest
// has told it to. So pages too many are compared with what KVM says (told) where that can be
// looked at, and else with what vCPUs have accessed at all: what the library makes up
// is in neither. Where no vCPU has run since the last harvest, there is nothing to tell.

// told returns what KVM has to tell of a region at the moment, and leaves it there: the
// bits of the log, or the entries of the rings. ok is false where to look is to take
// (the legacy log).
//
// Preconditions: no vCPU is in the guest.
func (f *flat) told(r *guestmem.Region) (pages map[addr.GPA]int, ok bool) {
	f.t.Helper()
	d := f.vm.dirty
	if d == nil {
		return nil, true
	}
	if d.mode == DirtyLog && !d.manual {
		return nil, false
	}
	pages = map[addr.GPA]int{}
	add := func(s guestmem.Slot, page uint64) {
		if p := s.Base + addr.GPA(page*addr.PageSize); r.Contains(p) {
			pages[p]++
		}
	}
	err := f.vm.use("look at what is dirty", func(fd int) error {
		d.mu.Lock()
		defer d.mu.Unlock()
		for _, ring := range d.rings {
			for i := range uint32(len(ring.entries)) {
				e := ring.entries[(ring.next+i)%uint32(len(ring.entries))]
				if e.flags&dirtyGFNDirty == 0 {
					break
				}
				add(d.slots[e.slot], e.offset)
			}
		}
		for _, s := range d.slots {
			if d.mode != DirtyLog || !s.DirtyLog {
				continue
			}
			words, err := d.log(fd, s)
			if err != nil {
				return err
			}
			for page := range s.Size / addr.PageSize {
				if words[page/64]>>(page%64)&1 != 0 {
					add(s, page)
				}
			}
		}
		return nil
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return pages, true
}

// checkFound compares a harvest with what was stored to, and with what may be in it
// besides.
func checkFound(t *testing.T, what string, found, want, may map[addr.GPA]int) {
	t.Helper()
	var missed, madeUp []addr.GPA
	for p := range want {
		if found[p] == 0 {
			missed = append(missed, p)
		}
	}
	for p := range found {
		if want[p] == 0 && may[p] == 0 {
			madeUp = append(madeUp, p)
		}
	}
	if len(missed)+len(madeUp) > 0 {
		slices.Sort(missed)
		slices.Sort(madeUp)
		t.Fatalf("%s: of %d pages %d missed %v, %d made up %v", what, len(want),
			len(missed), missed[:min(3, len(missed))], len(madeUp), madeUp[:min(3, len(madeUp))])
	}
}

func setOf(pages ...addr.GPA) map[addr.GPA]int {
	set := map[addr.GPA]int{}
	for _, p := range pages {
		set[p]++
	}
	return set
}

// TestHarvestsMissNothing has two vCPUs write random pages while harvests go on
// beside them. What all harvests found is what was written, and nothing that no vCPU has
// ever accessed.
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
			accessed := map[addr.GPA]int{}
			for round := range rounds {
				found := map[addr.GPA]int{}
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
				written := setOf(append(lists[0], lists[1]...)...)
				checkFound(t, fmt.Sprintf("round %d", round), found, written, accessed)
				maps.Copy(accessed, written)
				again := map[addr.GPA]int{}
				f.harvest(r, again)
				checkFound(t, fmt.Sprintf("round %d, again, with no vCPU run", round), again, nil, nil)
			}
		})
	}
}

// TestAHarvestIsWhatKVMTells harvests regions that share a slot, and begin and end in the
// middle of a word of its bitmap: each harvest is what KVM has to tell of that region,
// page for page, and leaves the others theirs.
func TestAHarvestIsWhatKVMTells(t *testing.T) {
	nPages := []int{5, 70, 1, 64, 133}
	for mode, m := range dirtyModes {
		t.Run(m.name, func(t *testing.T) {
			f, _ := newDirty(t, mode, 1<<20)
			var regions []*guestmem.Region
			var all []addr.GPA
			total := 0
			for _, n := range nPages {
				total += n
			}
			mem, base := foreign(t, total*addr.PageSize), addr.GPA(0x80003000)
			for _, n := range nPages {
				at := len(all) * addr.PageSize
				r, err := f.m.AddRegion(guestmem.RegionOptions{
					Base: base + addr.GPA(at), Size: uint64(n) * addr.PageSize, Backing: guestmem.BackingForeign, Mapping: addr.HVA(addressOf(mem[at:])),
				})
				if err != nil {
					t.Fatal(err)
				}
				regions = append(regions, r)
				for i := range n {
					all = append(all, r.Base()+addr.GPA(i*addr.PageSize))
				}
			}
			if n := len(f.vm.Slots().Slots()); n != 3 {
				t.Fatalf("%d slots: the regions do not share one", n)
			}
			v := f.vcpu(0, 0, GeneralRegs{})
			for round := range 20 {
				rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
				written := all[:rand.IntN(120)]
				f.touch(v, flatData, written)
				for _, i := range rand.Perm(len(regions)) {
					r := regions[i]
					want := map[addr.GPA]int{}
					for _, p := range written {
						if r.Contains(p) {
							want[p]++
						}
					}
					// By ring, all of them are taken with the first that is asked for.
					pending := f.pending(r)
					told, isExact := f.told(r)
					found := map[addr.GPA]int{}
					f.harvest(r, found)
					what := fmt.Sprintf("round %d, region %d", round, i)
					if isExact {
						maps.Copy(told, pending)
						checkFound(t, what+", as KVM tells", found, told, nil)
					} else {
						told = setOf(all...)
					}
					checkFound(t, what, found, want, told)
				}
			}
		})
	}
}

// pending returns what the tracker has taken of a region, and nobody has asked for.
func (f *flat) pending(r *guestmem.Region) map[addr.GPA]int {
	d, pages := f.vm.dirty, map[addr.GPA]int{}
	d.mu.Lock()
	defer d.mu.Unlock()
	for index, c := range d.pending {
		for i := range uint64(chunkPages) {
			if p := addr.PFN(index*chunkPages + i).GPA(); c[i/64]>>(i%64)&1 != 0 && r.Contains(p) {
				pages[p]++
			}
		}
	}
	return pages
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
			told := map[addr.GPA]int{}
			touch := func(pages ...addr.GPA) {
				t.Helper()
				f.touch(v, flatData, pages)
				for _, i := range []int{0, 2} { // those that stay
					if r := regions[i]; r != nil {
						more, _ := f.told(r)
						maps.Copy(told, more)
					}
				}
			}
			add(0)
			touch(at(0, 3))
			add(1) // joined
			touch(at(0, 5), at(1, 0), at(1, 15))
			add(2) // joined
			touch(at(2, 7))
			if err := f.m.RemoveRegion(regions[1]); err != nil { // split
				t.Fatal(err)
			}
			touch(at(2, 9))
			add(1)
			found := map[addr.GPA]int{}
			for _, r := range regions {
				f.harvest(r, found)
			}
			checkFound(t, "at the end", found, setOf(at(0, 3), at(0, 5), at(2, 7), at(2, 9)), told)
		})
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
