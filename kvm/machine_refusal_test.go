//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// refuser is a listener behind the VM that refuses on demand.
type refuser struct{ refuse error }

func (r *refuser) UpdateRegions([]*guestmem.Region) error { return r.refuse }

// attach attaches a listener until the test ends.
func (f *flat) attach(l guestmem.RegionListener) {
	f.t.Helper()
	if err := f.m.AttachListener(l); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { f.m.DetachListener(l) })
}

// TestRefusedChangesLoseNoDirtyPages takes regions away from a VM that another
// listener then refuses to let go, so that they come back: what vCPUs had written
// there is dirty all the same.
//
//	Memory                    VM's slots                     another listener
//	without r          ──►    deleted; pages pending
//	without r          ──────────────────────────────►       refuses
//	with r, as before  ──►    created; pages still pending?
func TestRefusedChangesLoseNoDirtyPages(t *testing.T) {
	const size = 1 << 20
	refused := errors.New("refused")
	for mode, c := range dirtyModes {
		for what, change := range map[string]func(*flat, *guestmem.Region) error{
			"removal": func(f *flat, r *guestmem.Region) error { return f.m.RemoveRegion(r) },
			"seal":    func(f *flat, _ *guestmem.Region) error { _, err := f.m.Seal(); return err },
		} {
			t.Run(c.name+"/"+what, func(t *testing.T) {
				f, r := newDirty(t, mode, size)
				l := &refuser{}
				f.attach(l)
				v := f.vcpu(0, 0, GeneralRegs{})
				pages := randomPages(size, 20)
				f.touch(v, flatData, pages)
				l.refuse = refused
				if err := change(f, r); !errors.Is(err, refused) {
					t.Fatalf("error %v", err)
				}
				l.refuse = nil
				more := randomPages(size, 5)
				f.touch(v, flatData, more)
				found := map[addr.GPA]int{}
				f.harvest(r, found)
				for _, p := range append(pages, more...) {
					if found[p] == 0 {
						t.Errorf("page %v is missed", p)
					}
				}
				// And one that is really gone leaves nothing to the next at its place.
				f.touch(v, flatData, pages)
				if err := f.m.RemoveRegion(r); err != nil {
					t.Fatal(err)
				}
				r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: size})
				if err != nil {
					t.Fatal(err)
				}
				clear(found)
				f.harvest(r, found)
				if len(found) > 0 {
					t.Errorf("a new region is dirty at %v", found)
				}
			})
		}
	}
}

// TestHarvestOfARegionThatWentTakesNothing: a harvest of a region that goes while it
// is under way, and another one comes to its place, leaves that one's pages alone.
func TestHarvestOfARegionThatWentTakesNothing(t *testing.T) {
	const size = 1 << 20
	for mode, c := range dirtyModes {
		t.Run(c.name, func(t *testing.T) {
			f, old := newDirty(t, mode, size)
			v := f.vcpu(0, 0, GeneralRegs{})
			if err := f.m.RemoveRegion(old); err != nil {
				t.Fatal(err)
			}
			r, err := f.m.AddRegion(guestmem.RegionOptions{Base: dirtyBase, Size: size})
			if err != nil {
				t.Fatal(err)
			}
			pages := randomPages(size, 20)
			f.touch(v, flatData, pages)
			if err := f.vm.CollectDirtyPages(old, func(first, n uint64) {
				t.Errorf("pages %d to %d are named", first, first+n)
			}); err != nil {
				t.Error(err)
			}
			found := map[addr.GPA]int{}
			f.harvest(r, found)
			for _, p := range pages {
				if found[p] == 0 {
					t.Errorf("page %v is missed", p)
				}
			}
		})
	}
}

// setterFunc sees every slot that is set.
type setterFunc func(guestmem.Slot) error

func (s setterFunc) SetSlot(slot guestmem.Slot) error { return s(slot) }

// TestTrackedSlotsGoWithVCPUsOut removes a region beside a vCPU that writes: between
// the last look at what is dirty and the deletion of the slot there is no guest
// that could write more.
func TestTrackedSlotsGoWithVCPUsOut(t *testing.T) {
	for mode, c := range dirtyModes {
		t.Run(c.name, func(t *testing.T) {
			f, r := newDirty(t, mode, 1<<20)
			f.write(vmCount)
			v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)})
			done := testutil.Go(func() {
				if e, err := v.Run(context.Background()); err != nil || e.Kind != VMExitKicked {
					t.Errorf("Run = %v, %v", e, err)
				}
			})
			eventually(t, "the guest counts", func() bool { return f.word(flatData) > 0 })
			inner, deletions := f.vm.slots.setter, 0
			f.vm.slots.setter = setterFunc(func(s guestmem.Slot) error {
				if s.Size == 0 {
					deletions++
					if v.isIn() || f.vm.gate.stops.Load() == 0 {
						t.Error("the vCPU may be in the guest while a slot goes")
					}
				}
				return inner.SetSlot(s)
			})
			if err := f.m.RemoveRegion(r); err != nil {
				t.Fatal(err)
			}
			if deletions != 1 {
				t.Errorf("%d slots were deleted", deletions)
			}
			v.Kick()
			testutil.Proceeds(t, done, "the Run")
		})
	}
}

// TestSlotsFollowRegionsUntilTheLastVCPUHasLeft removes a region while a VM that
// is being closed still waits for a vCPU: its slot goes first, or the guest would
// run on memory that is unmapped, and is anybody's next.
//
//	Close                          RemoveRegion
//	waits for a Run to leave
//	                               deletes the slot, unmaps
//	the vCPU leaves
func TestSlotsFollowRegionsUntilTheLastVCPUHasLeft(t *testing.T) {
	for _, mode := range []DirtyMode{DirtyNone, DirtyLog} {
		t.Run(fmt.Sprint(mode), func(t *testing.T) {
			f := newFlat(t, 4<<20, VMOptions{Dirty: mode}, vmCount)
			r, err := f.m.AddRegion(guestmem.RegionOptions{Base: 1 << 30, Size: 1 << 20})
			if err != nil {
				t.Fatal(err)
			}
			v := f.vcpu(0, 0, GeneralRegs{})
			v.mu.Lock() // as a Run has it that takes its time
			closed := testutil.Go(func() {
				if err := f.vm.Close(); err != nil {
					t.Error(err)
				}
			})
			testutil.Parked(t, closed, "Close beside a Run")
			has := func() bool {
				for _, s := range f.vm.Slots().Slots() {
					if s.Base == r.Base() {
						return true
					}
				}
				return false
			}
			if !has() {
				t.Error("the slot has gone before its region")
			}
			removed := testutil.Go(func() {
				if err := f.m.RemoveRegion(r); err != nil {
					t.Error(err)
				}
			})
			testutil.Proceeds(t, removed, "RemoveRegion")
			if has() {
				t.Error("the region is unmapped, and a vCPU that has not left still has its slot")
			}
			v.mu.Unlock()
			testutil.Proceeds(t, closed, "Close")
			if err := f.m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}
