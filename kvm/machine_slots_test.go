//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// foreign maps host memory of which regions can be neighbours on both sides.
func foreign(t testing.TB, sizeBytes int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, sizeBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	return mem
}

// TestSlotsFollowRegionsUnderRunningVCPUs has two vCPUs verify pages of their own
// without end, in two regions that stay, while other regions come and go between
// and behind them, so that slots are joined and split under them. They never see
// anything of it; the slots are those of a model after each change; and a third vCPU finds
// memory where there is a region, and a hole where there is none.
func TestSlotsFollowRegionsUnderRunningVCPUs(t *testing.T) {
	changes := 40
	if *soak {
		changes = 20000
	}
	f := newFlat(t, 4<<20, VMOptions{}, vmVerify, vmLoad)
	const base, place, nPlaces = addr.GPA(0x40000000), 64 << 10, 8
	mem := foreign(t, place*nPlaces)
	regions := map[int]*guestmem.Region{}
	add := func(i int) {
		t.Helper()
		r, err := f.m.AddRegion(guestmem.RegionOptions{
			Base: base + addr.GPA(i*place), Size: place, Backing: guestmem.BackingForeign, Mapping: addr.HVA(addressOf(mem[i*place:])),
		})
		if err != nil {
			t.Fatal(err)
		}
		regions[i] = r
	}
	remove := func(i int) {
		t.Helper()
		if err := f.m.RemoveRegion(regions[i]); err != nil {
			t.Fatal(err)
		}
		delete(regions, i)
	}
	stay := []int{2, 5}
	for _, i := range stay {
		add(i)
	}
	var wg sync.WaitGroup
	var verifiers []*VCPU
	for n, i := range stay {
		v := f.vcpu(n, 0, GeneralRegs{RSI: uint64(base) + uint64(i*place), RCX: place / addr.PageSize})
		verifiers = append(verifiers, v)
		wg.Go(func() {
			if e, err := v.Run(context.Background()); e.Kind != VMExitKicked || err != nil {
				r, _ := v.Regs()
				t.Errorf("vCPU %d: %v, %v at %+x", n, e, err, r)
			}
		})
	}
	third := f.vcpu(2, 1, GeneralRegs{})
	most := 0
	for range changes {
		i := rand.IntN(nPlaces)
		if slices.Contains(stay, i) {
			runtime.Gosched()
			continue
		}
		if regions[i] == nil {
			mem[i*place] = byte(i)
			add(i)
		} else {
			remove(i)
		}
		most = max(most, len(f.vm.Slots().Slots()))
		if d := cmp.Diff(wantSlots(f.m.Regions()), pagesOf(f.vm.Slots().Slots()), cmp.AllowUnexported(flatPage{})); d != "" {
			t.Fatal(d)
		}
		if n := fewestSlots(wantSlots(f.m.Regions())); n != len(f.vm.Slots().Slots()) {
			t.Fatalf("%d slots, want %d", len(f.vm.Slots().Slots()), n)
		}
		at := base + addr.GPA(i*place)
		f.enter(third, Ring3, 1, GeneralRegs{RDI: uint64(at)})
		e := run(t, third)
		if regions[i] != nil && (e.Kind != VMExitIO || e.Data[0] != byte(i)) {
			t.Fatalf("in a region: %v", e)
		}
		if regions[i] == nil && (e.Kind != VMExitMMIO || e.GPA != at) {
			t.Fatalf("in a hole: %v", e)
		}
	}
	for _, v := range verifiers {
		v.Kick()
	}
	wg.Wait()
	for n, v := range verifiers {
		r, err := v.Regs()
		if err != nil || r.R10 == 0 {
			t.Errorf("vCPU %d went %d rounds, %v", n, r.R10, err)
		}
	}
	for i := range nPlaces {
		if regions[i] != nil {
			remove(i)
		}
	}
	t.Logf("up to %d slots", most)
}

func wantSlots(regions []*guestmem.Region) map[addr.GPA]flatPage {
	var parts []guestmem.Slot
	for _, r := range regions {
		parts = append(parts, guestmem.Slot{Base: r.Base(), Size: r.Size(), HVA: r.Slot(), ReadOnly: r.ReadOnly()})
	}
	return pagesOf(parts)
}

// TestMoreRegionsThanSlots adds regions up to the limit and one more: refused, with
// both numbers, and everything else as it was.
func TestMoreRegionsThanSlots(t *testing.T) {
	const limit = 5
	f := newFlat(t, 4<<20, VMOptions{MaxSlots: limit}, vmLoad)
	add := func(i int) error {
		_, err := f.m.AddRegion(guestmem.RegionOptions{Base: addr.GPA(0x40000000 + i<<21), Size: 1 << 20})
		return err
	}
	for i := range limit - 1 {
		if err := add(i); err != nil {
			t.Fatal(err)
		}
	}
	slots := f.vm.Slots().Slots()
	if err := add(limit); !errors.Is(err, ErrTooManySlots) {
		t.Fatalf("AddRegion = %v", err)
	}
	if n := len(f.m.Regions()); n != limit {
		t.Errorf("%d regions", n)
	}
	if d := cmp.Diff(slots, f.vm.Slots().Slots()); d != "" {
		t.Error(d)
	}
	v := f.vcpu(0, 0, GeneralRegs{RDI: 0x40000000})
	untilOut(t, v)
}

// TestSlotsOverAnEmbeddersVM keeps the slots of a VM that this package has not
// made, beside a slot of the embedder's own, and takes them down again.
func TestSlotsOverAnEmbeddersVM(t *testing.T) {
	s := requireKVM(t)
	machine, err := s.createVM()
	if err != nil {
		t.Fatal(err)
	}
	defer machine.close()
	own := foreign(t, 4096)
	if err := VMSlots(machine.fd).SetSlot(guestmem.Slot{ID: 0, Base: 1 << 40, Size: 4096, HVA: addr.HVA(addressOf(own))}); err != nil {
		t.Fatal(err)
	}
	m := newFlatMemory(t, 1<<20, guestmem.RegionOptions{})
	table := NewSlotTable(VMSlots(machine.fd), 10, SlotTableOptions{FirstID: 1})
	if err := m.AttachListener(table); err != nil {
		t.Fatal(err)
	}
	r, err := m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	// The embedder's slot is in the way of this one: the kernel's word for it.
	if _, err := m.AddRegion(guestmem.RegionOptions{Base: 1 << 40, Size: 1 << 20}); !errors.Is(err, unix.EEXIST) {
		t.Errorf("AddRegion over the embedder's slot = %v", err)
	}
	if got := table.Slots(); len(got) != 2 || got[0].ID != 1 || got[1].ID != 2 {
		t.Errorf("slots %+v", got)
	}
	if err := m.RemoveRegion(r); err != nil {
		t.Fatal(err)
	}
	m.DetachListener(table)
	if err := table.Clear(); err != nil || len(table.Slots()) != 0 {
		t.Errorf("Clear = %v", err)
	}
}

// TestGuestMemfdBacksARegion runs a guest on a guest_memfd, where there are any.
func TestGuestMemfdBacksARegion(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmStore)
	g, err := f.vm.NewGuestMemfd(1 << 20)
	if errors.Is(err, ErrNotSupported) {
		t.Skipf("%v; to run it use Linux 6.18", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	const base = 0x40000000
	r, err := f.m.AddRegion(guestmem.RegionOptions{Base: base, Size: 1 << 20, Backing: guestmem.BackingForeign, Mapping: g.Mapping()})
	if err != nil {
		t.Fatal(err)
	}
	v := f.vcpu(0, 0, GeneralRegs{RDI: base + 0x3000, RAX: 0x77})
	untilOut(t, v)
	if got := f.word(base + 0x3000); got != 0x77 {
		t.Errorf("the host reads %#x", got)
	}
	if err := f.m.RemoveRegion(r); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestGuestMemfdIsNotTracked: what KVM cannot do with a guest_memfd is refused by name,
// and leaves the slots as they were.
func TestGuestMemfdIsNotTracked(t *testing.T) {
	for _, c := range []struct {
		dirty  DirtyMode
		access guestmem.RegionAccess
	}{{DirtyLog, guestmem.RegionReadWrite}, {DirtyNone, guestmem.RegionReadOnly}} {
		f := newFlat(t, 4<<20, VMOptions{Dirty: c.dirty}, vmStore)
		g, err := f.vm.NewGuestMemfd(1 << 20)
		if errors.Is(err, ErrNotSupported) {
			t.Skipf("%v; to run it use Linux 6.18", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		_, err = f.m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20, Backing: guestmem.BackingForeign, Mapping: g.Mapping(), Access: c.access})
		if err == nil {
			t.Skipf("this KVM has slots over a guest_memfd with %v tracking, access %v; on one that has not the test runs", c.dirty, c.access)
		}
		if !errors.Is(err, ErrNotSupported) {
			t.Errorf("tracking %v, access %v: AddRegion = %v", c.dirty, c.access, err)
		}
		if n := len(f.vm.Slots().Slots()); n != 1 {
			t.Errorf("%d slots", n)
		}
		untilOut(t, f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)}))
	}
}
