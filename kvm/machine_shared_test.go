//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"maps"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// TestTwoVMsOverOneMemory has two VMs over the same regions, one that logs and one
// with rings: both follow every change, a harvest has what either wrote, and one
// is closed, twice, while the other's guest runs.
func TestTwoVMsOverOneMemory(t *testing.T) {
	s := requireKVM(t)
	if s.host.dirtyRing == 0 {
		t.Skip("needs a dirty ring: Linux 5.11")
	}
	const size = 1 << 20
	f := &flat{t: t, m: newFlatMemory(t, 4<<20, guestmem.RegionOptions{})}
	f.write(vmTouchList, vmCount)
	var vcpus [2]*VCPU
	var vms [2]*VM
	for i, mode := range []DirtyMode{DirtyLog, DirtyRing} {
		vms[i] = f.newVM(s, f.m, VMOptions{Dirty: mode})
		f.vm = vms[i]
		vcpus[i] = f.vcpu(0, 0, GeneralRegs{})
	}
	for range 5 {
		r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: size})
		if err != nil {
			t.Fatal(err)
		}
		for i := range vms {
			if n := len(vms[i].Slots().Slots()); n != 2 {
				t.Errorf("VM %d has %d slots", i, n)
			}
		}
		want, told, found := map[addr.GPA]int{}, map[addr.GPA]int{}, map[addr.GPA]int{}
		for i, v := range vcpus {
			pages := randomPages(size, 15)
			f.touch(v, flatData+addr.GPA(i)<<16, pages)
			maps.Copy(want, setOf(pages...))
			f.vm = vms[i]
			more, _ := f.told(r)
			maps.Copy(told, more)
		}
		f.harvest(r, found)
		for p := range want {
			if found[p] > 1 {
				t.Errorf("page %v was found %d times", p, found[p])
			}
		}
		checkFound(t, "of both", found, want, told)
		if err := f.m.RemoveRegion(r); err != nil {
			t.Fatal(err)
		}
	}
	// One guest goes on while the other's VM goes.
	const counter = flatData + 0x40000
	f.vm = vms[0]
	f.enter(vcpus[0], Ring3, 1, GeneralRegs{RDI: uint64(counter)})
	done := testutil.Go(func() {
		if e, err := vcpus[0].Run(context.Background()); err != nil || e.Kind != VMExitKicked {
			t.Errorf("Run = %v, %v", e, err)
		}
	})
	eventually(t, "the guest counts", func() bool { return f.word(counter) > 0 })
	if err := f.m.Close(); !errors.Is(err, guestmem.ErrBusy) {
		t.Errorf("Close of a memory with two VMs = %v", err)
	}
	for range 2 {
		if err := vms[1].Close(); err != nil {
			t.Error(err)
		}
	}
	was := f.word(counter)
	eventually(t, "it goes on", func() bool { return f.word(counter) > was })
	vcpus[0].Kick()
	testutil.Proceeds(t, done, "the Run")
}
