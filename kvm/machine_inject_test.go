//go:build linux && amd64

package kvm

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/invariants"
)

// A VM's life under injected failure: again and again, each time with another call
// of the kernel's failing. What fails says so by an error that reaches the errno, and
// succeeds when it is made again; the guest's pages are found dirty all the same; no descriptor
// or mapping is left.

type machineWorld struct {
	t   *testing.T
	run *inject.Run
}

// step makes a call, and makes it again with nothing failing if it fails.
func (w machineWorld) step(name string, op func() error) {
	w.t.Helper()
	err := w.run.During(op)
	if err == nil {
		return
	}
	var k *Error
	var g *guestmem.Error
	if !errors.Is(err, inject.Odd) || !errors.As(err, &k) && !errors.As(err, &g) && name != "AttachListener" {
		w.t.Errorf("%s: %v does not lead to what was injected (%v)", name, err, w.run)
	}
	if err := op(); err != nil {
		w.t.Fatalf("%s, again with nothing failing: %v (after %v)", name, err, w.run)
	}
}

func TestR13InjectedFailureOfAVM(t *testing.T) {
	s := requireKVM(t)
	step := 1
	if invariants.Enabled {
		step = 7
	}
	// A mapping that the kernel will not take back is out of anybody's hands.
	match := func(p *inject.Point) bool {
		return inject.Only("KVM_", "kvm: ")(p) && p != atMunmap
	}
	for _, o := range []VMOptions{
		{Dirty: DirtyLog, IRQChip: IRQChipKernel, PIT: PITKernel},
		{Dirty: DirtyRing},
	} {
		if o.Dirty == DirtyRing && s.host.dirtyRing == 0 {
			continue
		}
		for _, span := range []int{1, 3} {
			before, n := hold(t), 0
			for ; ; n += step * span {
				w := machineWorld{t, inject.Start(inject.Plan{Match: match, From: n, Until: n + span})}
				w.life(s, o)
				if t.Failed() {
					t.Fatalf("with %v", w.run)
				}
				if w.run.Failures() == 0 {
					break
				}
			}
			if n < 50 {
				t.Errorf("only %d calls could fail", n)
			}
			if after := hold(t); after.fds != before.fds || after.mappings > before.mappings+20 {
				t.Errorf("after %d lives: from %+v to %+v", n, before, after)
			}
		}
	}
}

func (w machineWorld) life(s *System, o VMOptions) {
	t := w.t
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f := &flat{t: t, m: m}
	if _, err := m.AddRegion(guestmem.RegionOptions{Size: 4 << 20}); err != nil {
		t.Fatal(err)
	}
	f.write(vmStore)
	w.step("NewVM", func() (err error) { f.vm, err = s.NewVM(m, o); return err })
	defer f.vm.Close()
	var v *VCPU
	w.step("NewVCPU", func() (err error) { v, err = f.vm.NewVCPU(0); return err })
	const base = 0x40000000
	mem := foreign(t, 2<<16)
	defer clear(mem)
	var regions [2]*guestmem.Region
	for i := range regions {
		w.step("AddRegion", func() (err error) {
			regions[i], err = m.AddRegion(guestmem.RegionOptions{
				Base: base + addr.GPA(i<<16), Size: 1 << 16, Backing: guestmem.BackingForeign, Mapping: addr.HVA(addressOf(mem[i<<16:])),
			})
			return err
		})
	}
	store := func(gpa uint64) {
		w.step("Enter", func() error {
			return f.long.Enter(v, Ring3, GeneralRegs{RIP: uint64(flatCode), RDX: flatPort, RDI: gpa, RAX: gpa})
		})
		w.step("Run", func() error {
			e, err := v.Run(t.Context())
			if err == nil && e.Kind != VMExitIO {
				t.Fatal(e)
			}
			return err
		})
	}
	store(base + 0x3000)
	w.step("RemoveRegion", func() error { return m.RemoveRegion(regions[1]) })
	store(base + 0x5000)
	found := map[addr.GPA]int{}
	w.step("CollectDirty", func() error {
		return m.CollectDirty(regions[0], func(start addr.GPA, nPages uint64) {
			for i := range nPages {
				found[start+addr.GPA(i*addr.PageSize)]++
			}
		})
	})
	if len(found) != 2 || found[base+0x3000] == 0 || found[base+0x5000] == 0 {
		t.Errorf("dirty pages %v", found)
	}
	var saved *MachineState
	w.step("Save", func() (err error) { saved, err = f.vm.Save(); return err })
	w.step("Load", func() error { return f.vm.Load(saved) })
	store(base + 0x6000)
	if got := f.word(base + 0x6000); got != base+0x6000 {
		t.Errorf("the guest stored %#x", got)
	}
	if err := f.vm.Close(); err != nil {
		t.Error(err)
	}
}
