//go:build linux && amd64

package kvm

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

var _ guestmem.Pauser = (*VM)(nil)

// runsOn runs a vCPU until stop is called, which fails the test if the guest has found
// anything wrong, and returns how far its rounds have come.
func runsOn(t *testing.T, v *VCPU) (stop func() uint64) {
	var wg sync.WaitGroup
	wg.Go(func() {
		if e, err := v.Run(context.Background()); e.Kind != VMExitKicked || err != nil {
			r, _ := v.Regs()
			t.Errorf("the guest has ended: %v, %v at %+x", e, err, r)
		}
	})
	return func() uint64 {
		v.Kick()
		wg.Wait()
		r, err := v.Regs()
		if err != nil {
			t.Error(err)
		}
		return r.R10
	}
}

// A guest that verifies its memory without end is snapshotted and forked while it
// runs. It never notices; every snapshot holds what memory held when its vCPUs stood
// still; and every fork goes on from there, in a VM of its own, while its
// pages are still being fetched, and never notices either.
func TestLiveSnapshotOfRunningVCPU(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	const size, nPages = 4 << 20, 256
	rounds := 10
	if *soak {
		rounds = 1000
	}
	for _, o := range []VMOptions{{}, {Dirty: DirtyLog}} {
		f := newFlat(t, size, o, vmVerify)
		stop := runsOn(t, f.vcpu(0, 0, GeneralRegs{RSI: uint64(flatData), RCX: nPages}))
		var open []*guestmem.Snapshot
		for round := range rounds {
			var state *MachineState
			want := make([]byte, size)
			so := guestmem.SnapshotOptions{
				Pauser: f.vm, Sweep: guestmem.SweepMode(round % 2),
				AtInstant: func() (err error) {
					if state, err = f.vm.Save(); err == nil {
						_, err = f.m.ReadAt(want, 0)
					}
					return err
				},
			}
			s, err := f.m.Snapshot(t.Context(), so)
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.Clone(t.Context(), guestmem.CloneOptions{})
			if err != nil {
				t.Fatal(err)
			}
			vm := f.newVM(f.vm.sys, m, o)
			v, err := vm.NewVCPU(0)
			if err != nil {
				t.Fatal(err)
			}
			if err := vm.Load(state); err != nil {
				t.Fatal(err)
			}
			stopClone := runsOn(t, v)
			time.Sleep(time.Duration(round%3) * time.Millisecond)
			got := make([]byte, size)
			if _, err := s.ReadAt(got, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				for i := 0; i < size; i += addr.PageSize {
					if !bytes.Equal(got[i:i+addr.PageSize], want[i:i+addr.PageSize]) {
						t.Errorf("round %d: page %#x of the snapshot is another", round, i)
					}
				}
			}
			stopClone()
			if err := vm.Close(); err != nil {
				t.Error(err)
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
			if open = append(open, s); len(open) > 2 {
				if err := open[0].Close(); err != nil {
					t.Error(err)
				}
				open = open[1:]
			}
			if t.Failed() {
				break
			}
		}
		for _, s := range open {
			if err := s.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
		if n := stop(); n == 0 {
			t.Error("the guest did not come to the end of its first round")
		}
		if t.Failed() {
			return
		}
	}
}
