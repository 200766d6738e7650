//go:build linux && amd64

package kvm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// KVM stores to guest memory by itself, at addresses that a guest gives it by an MSR:
//
//	kvmclock     before an entry after which the guest would see another time: after
//	             KVM_SET_CLOCK for one. By the kernel's own mapping of the page, which it
//	             drops when the host's page table changes
//	steal time   before an entry, if the vCPU's thread had left its processor; and
//	             that it has left, where no fault may be taken for it
//	wall clock   when the MSR is set: by a state ioctl, that is, with the VM paused
//
// Asynchronous page faults are a fourth, left out here: a guest has to answer them by
// a handler of its own (and has them off where userfaultfd serves its memory).
const (
	msrWallClock = 0x4b564d00
	msrKVMClock  = 0x4b564d01
	msrStealTime = 0x4b564d03

	clockVersion = 0  // in struct pvclock_vcpu_time_info: 4 bytes, odd while it is stored
	stealVersion = 8  // in struct kvm_steal_time
	clockSize    = 32 // of the first; of the second it is what counts
)

// ownStores is a guest with two vCPUs that count in ring 3, and a region where KVM stores
// the clock and the stolen time of each, a page for each.
type ownStores struct {
	*flat
	r     *guestmem.Region
	vcpus []*VCPU
	stops []func() uint64
}

const ownBase addr.GPA = 0x50000000

func (o *ownStores) clock(i int) addr.GPA { return ownBase + addr.GPA(i)*2*addr.PageSize }
func (o *ownStores) steal(i int) addr.GPA { return o.clock(i) + addr.PageSize }

func newOwnStores(t *testing.T, vo VMOptions, backing guestmem.Backing) *ownStores {
	t.Helper()
	o := &ownStores{flat: newFlat(t, 4<<20, vo, vmVerify)}
	var err error
	if o.r, err = o.m.AddRegion(guestmem.RegionOptions{Base: ownBase, Size: 16 * addr.PageSize, Backing: backing}); err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		v := o.vcpu(i, 0, GeneralRegs{RSI: uint64(flatData) + uint64(i)<<16, RCX: 8})
		if err := v.SetMSRs(MSR{Index: msrKVMClock, Data: uint64(o.clock(i)) | 1}, MSR{Index: msrStealTime, Data: uint64(o.steal(i)) | 1}); err != nil {
			if refused := new(StateError); i > 0 || !errors.As(err, &refused) {
				t.Fatal(err)
			}
			t.Skipf("%v: this KVM has no kvmclock or no steal time (CONFIG_PARAVIRT, sched_info); on one that has the test runs", err)
		}
		o.vcpus = append(o.vcpus, v)
		o.stops = append(o.stops, runsOn(t, v))
	}
	return o
}

func (o *ownStores) stop() {
	o.t.Helper()
	for _, stop := range o.stops {
		if stop() == 0 {
			o.t.Error("the guest did not come to the end of its first round")
		}
	}
	o.stops = nil
}

// versions returns how often each of the four has been stored.
func (o *ownStores) versions() (n [4]uint32) {
	o.t.Helper()
	for i := range o.vcpus {
		for k, at := range []addr.GPA{o.clock(i) + clockVersion, o.steal(i) + stealVersion} {
			var b [4]byte
			if _, err := o.m.ReadAt(b[:], at); err != nil {
				o.t.Fatal(err)
			}
			n[2*i+k] = binary.LittleEndian.Uint32(b[:])
		}
	}
	return n
}

// storesOn waits until KVM has stored each of the four anew.
func (o *ownStores) storesOn() {
	o.t.Helper()
	was := o.versions()
	eventually(o.t, "KVM stores clocks and stolen times", func() bool {
		c, err := o.vm.Clock()
		if err == nil {
			err = o.vm.SetClock(c)
		}
		if err != nil {
			o.t.Fatal(err)
		}
		o.vm.Pause() // so that each vCPU enters again
		o.vm.Resume()
		now := o.versions()
		for i := range now {
			if now[i] == was[i] {
				return false
			}
		}
		return true
	})
}

// TestR15KVMsOwnStoresAreTrapped opens snapshots while KVM stores to the memory by
// itself. Each holds what was there at its instant, whole structures and none half
// stored, however often KVM stores afterwards; and KVM goes on storing.
//
//	snapshot                         KVM
//	arms the page, opens
//	copies nothing yet
//	                                 KVM_RUN: is about to store the clock
//	                                 the store waits until the page was copied
//	reads the page: as it was
func TestR15KVMsOwnStoresAreTrapped(t *testing.T) {
	rounds := 6
	if *soak {
		rounds = 600
	}
	for name, c := range map[string]struct {
		backing guestmem.Backing
		feature testutil.UFFDFeature
	}{
		"memfd":     {guestmem.BackingMemfd, testutil.UFFDWPShmem},
		"anonymous": {guestmem.BackingAnonymous, testutil.UFFDWPAnon},
	} {
		t.Run(name, func(t *testing.T) {
			testutil.RequireUFFD(t, c.feature)
			o := newOwnStores(t, VMOptions{Dirty: DirtyLog}, c.backing)
			o.storesOn()
			var last *guestmem.Snapshot
			for round := range rounds {
				want := make([]byte, o.r.Size())
				s, err := o.m.Snapshot(t.Context(), guestmem.SnapshotOptions{
					Pauser: o.vm, Sweep: guestmem.SweepOnDemand,
					AtInstant: func() error {
						// Its ioctls put each vCPU on a processor and off, which is when KVM
						// stores that it has left.
						if _, err := o.vm.Save(); err != nil {
							return err
						}
						_, err := o.m.ReadAt(want, ownBase)
						return err
					},
				})
				if err != nil {
					t.Fatal(err)
				}
				for i := range o.vcpus {
					for _, at := range []addr.GPA{o.clock(i) + clockVersion, o.steal(i) + stealVersion} {
						if v := binary.LittleEndian.Uint32(want[at-ownBase:]); v%2 != 0 || v == 0 {
							t.Errorf("round %d: at the instant version %d at %v", round, v, at)
						}
					}
				}
				o.storesOn()
				got := make([]byte, o.r.Size())
				if _, err := s.ReadAt(got, ownBase); err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(got); i += addr.PageSize {
					if !bytes.Equal(got[i:i+addr.PageSize], want[i:i+addr.PageSize]) {
						t.Errorf("round %d: page %d of the snapshot is % x, at the instant it was % x", round, i/addr.PageSize, got[i:i+clockSize], want[i:i+clockSize])
					}
				}
				// The one before has what was stored since.
				if last != nil {
					changed := map[addr.GPA]int{}
					if err := s.Changed(last, ownBase, func(start addr.GPA, n uint64) bool {
						for i := range n {
							changed[start+addr.GPA(i*addr.PageSize)]++
						}
						return true
					}); err != nil {
						t.Fatal(err)
					}
					for i := range o.vcpus {
						if changed[o.clock(i)] == 0 || changed[o.steal(i)] == 0 {
							t.Errorf("round %d: of the pages that KVM stored to, %v count as changed", round, changed)
						}
					}
					if err := last.Close(); err != nil {
						t.Fatal(err)
					}
				}
				if last = s; t.Failed() {
					break
				}
			}
			if last != nil {
				if err := last.Close(); err != nil {
					t.Error(err)
				}
			}
			o.storesOn()
			o.stop()
		})
	}
}

// TestKVMsOwnStoresAreDirty harvests while KVM stores: a copy of memory, kept up by
// the pages of each harvest alone, is equal to memory at the end. The wall clock is stored while
// no vCPU runs.
func TestKVMsOwnStoresAreDirty(t *testing.T) {
	for _, by := range requireTrackers(t) {
		t.Run(by.String(), func(t *testing.T) {
			o := newOwnStores(t, VMOptions{Dirty: by.Mode()}, guestmem.BackingMemfd)
			if by == TrackByWriteProtection {
				w, err := o.m.TrackWrites()
				if err != nil {
					t.Fatal(err)
				}
				defer func() {
					if err := w.Close(); err != nil {
						t.Error(err)
					}
				}()
			}
			kept := make([]byte, o.r.Size())
			if _, err := o.m.ReadAt(kept, ownBase); err != nil {
				t.Fatal(err)
			}
			keep := func() (found map[addr.GPA]int) {
				found = map[addr.GPA]int{}
				o.harvest(o.r, found)
				for p := range found {
					if _, err := o.m.ReadAt(kept[p-ownBase:][:addr.PageSize], p); err != nil {
						t.Fatal(err)
					}
				}
				return found
			}
			equal := func(what string) {
				t.Helper()
				keep()
				now := make([]byte, len(kept))
				if _, err := o.m.ReadAt(now, ownBase); err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(now); i += addr.PageSize {
					if !bytes.Equal(now[i:i+addr.PageSize], kept[i:i+addr.PageSize]) {
						t.Errorf("%s: page %d was missed: % x, kept % x", what, i/addr.PageSize, now[i:i+clockSize], kept[i:i+clockSize])
					}
				}
			}
			for range 5 {
				o.storesOn()
				keep()
			}
			o.vm.Pause()
			equal("paused")
			wall := ownBase + 9*addr.PageSize
			if err := o.vcpus[0].SetMSRs(MSR{Index: msrWallClock, Data: uint64(wall)}); err != nil {
				t.Fatal(err)
			}
			if v, err := o.m.Load32(wall); err != nil || v == 0 {
				t.Errorf("KVM has not stored the wall clock: version %d, %v", v, err)
			}
			if found := keep(); found[wall] == 0 {
				t.Errorf("the wall clock's page was missed: %v", found)
			}
			equal("wall clock")
			o.vm.Resume()
			o.storesOn()
			o.stop()
			equal("stopped")
		})
	}
}
