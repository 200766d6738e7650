//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
	"golang.org/x/sys/unix"
)

// TestKickIsNeverLost kicks at every point of a Run: before it, on its way in, in the
// guest, on its way out, behind another exit. Each kick is one return, sooner or later.
func TestKickIsNeverLost(t *testing.T) {
	rounds := 300
	if *soak {
		rounds = 30000
	}
	for _, c := range []struct {
		name string
		prog program
	}{{"spinning", vmCount}, {"exiting", vmOut}} {
		t.Run(c.name, func(t *testing.T) {
			f := newFlat(t, 4<<20, VMOptions{}, c.prog)
			v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)})
			kicked, stop := make(chan struct{}), make(chan struct{})
			done := testutil.Go(func() {
				for {
					e, err := v.Run(context.Background())
					if err != nil {
						t.Error(err)
						return
					}
					if e.Kind == VMExitKicked {
						select {
						case kicked <- struct{}{}:
						case <-stop:
							return
						}
					}
				}
			})
			for range rounds {
				for range rand.IntN(2000) {
					runtime.Gosched()
					if rand.IntN(50) == 0 {
						break
					}
				}
				v.Kick()
				testutil.Proceeds(t, kicked, "the Run that was kicked")
			}
			close(stop)
			v.Kick()
			testutil.Proceeds(t, done, "the last Run")
		})
	}
}

// TestKicksBeforeARunAreOne kicks a vCPU that nobody runs.
func TestKicksBeforeARunAreOne(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmOut)
	v := f.vcpu(0, 0, GeneralRegs{})
	for range 3 {
		v.Kick()
	}
	if e := run(t, v); e.Kind != VMExitKicked {
		t.Fatal(e)
	}
	untilOut(t, v)
}

// TestSignalsAloneAreNoExit sends the vCPU's thread the signal that kicks use, and
// no kick: the Run goes on, and completes accesses all the same.
func TestSignalsAloneAreNoExit(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmIn)
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)})
	var stop atomic.Bool
	storm := testutil.Go(func() {
		for !stop.Load() {
			if tid := v.tid.Load(); tid != 0 {
				unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
			}
			runtime.Gosched()
		}
	})
	for i := range 500 {
		e := run(t, v)
		if e.Kind != VMExitIO {
			t.Fatal(e)
		}
		if i%2 == 0 {
			copy(e.Data, []byte{byte(i), byte(i >> 8), 7, 9})
		} else if e.Data[0] != byte(i-1) || e.Data[3] != 9 {
			t.Fatalf("exit %d: %v", i, e)
		}
	}
	stop.Store(true)
	<-storm
}

// TestRunEndsWithItsContext cancels in the guest, and before the Run.
func TestRunEndsWithItsContext(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmCount)
	v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)})
	why := errors.New("enough")
	for range 20 {
		ctx, cancel := context.WithCancelCause(t.Context())
		was := f.word(flatData)
		done := testutil.Go(func() {
			if e, err := v.Run(ctx); e.Kind != VMExitKicked || !errors.Is(err, why) {
				t.Errorf("Run = %v, %v", e, err)
			}
		})
		eventually(t, "the guest counts", func() bool { return f.word(flatData) > was })
		cancel(why)
		testutil.Proceeds(t, done, "the Run")
		if e, err := v.Run(ctx); e.Kind != VMExitKicked || !errors.Is(err, why) {
			t.Errorf("Run with a context that is done = %v, %v", e, err)
		}
	}
}

// TestVCPUOutlivesTheThreadThatRanIt has each Run on a goroutine that ends with its
// thread, while another vCPU runs and the VM is paused now and then.
func TestVCPUOutlivesTheThreadThatRanIt(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmOut, vmCount)
	v := f.vcpu(0, 0, GeneralRegs{})
	other := f.vcpu(1, 1, GeneralRegs{RDI: uint64(flatData)})
	counting := testutil.Go(func() {
		if e, err := other.Run(context.Background()); e.Kind != VMExitKicked || err != nil {
			t.Errorf("the other vCPU: %v, %v", e, err)
		}
	})
	for i := range 60 {
		done := testutil.Go(func() {
			runtime.LockOSThread() // and never unlocked: the thread ends
			if e, err := v.Run(context.Background()); err != nil || e.Kind != VMExitIO && e.Kind != VMExitKicked {
				t.Errorf("Run = %v, %v", e, err)
			}
			runtime.Goexit()
		})
		if i%3 == 0 {
			v.Kick()
		}
		if i%5 == 0 {
			f.vm.Pause()
			f.vm.Resume()
		}
		testutil.Proceeds(t, done, "a Run whose thread dies")
	}
	was := f.word(flatData)
	eventually(t, "the other vCPU goes on", func() bool { return f.word(flatData) > was })
	other.Kick()
	testutil.Proceeds(t, counting, "the other vCPU")
}

// TestPauseKeepsTheGuestOut pauses two vCPUs again and again: nothing moves
// meanwhile, their state is to be had, and afterwards they go on.
func TestPauseKeepsTheGuestOut(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmCount)
	var wg sync.WaitGroup
	var vs [2]*VCPU
	for i := range vs {
		v := f.vcpu(i, 0, GeneralRegs{RDI: uint64(flatData) + uint64(i)<<12})
		vs[i] = v
		wg.Go(func() {
			if e, err := v.Run(context.Background()); e.Kind != VMExitKicked || err != nil {
				t.Errorf("Run = %v, %v", e, err)
			}
		})
	}
	at := func(i int) uint64 { return f.word(flatData + addr.GPA(i)<<12) }
	for round := range 50 {
		f.vm.Pause()
		was := [2]uint64{at(0), at(1)}
		for range 100 { // a guest that is in would have the time to count
			runtime.Gosched()
		}
		for i, v := range vs {
			if v.isIn() {
				t.Fatalf("vCPU %d may be in the guest while the VM is paused", i)
			}
			// Of one that is in, the state is not to be had: this would wait for ever.
			testutil.Proceeds(t, testutil.Go(func() {
				r, err := v.Regs()
				if err != nil {
					t.Error(err)
				}
				r.R15 = uint64(round)
				if err := v.SetRegs(r); err != nil {
					t.Error(err)
				}
			}), "the state of a paused vCPU")
			if now := at(i); now != was[i] {
				t.Fatalf("a paused guest counts from %d to %d", was[i], now)
			}
		}
		f.vm.Resume()
		for i := range vs {
			eventually(t, "the guest goes on", func() bool { return at(i) > was[i] })
		}
	}
	if _, err := vs[0].Regs(); !errors.Is(err, ErrBusy) {
		t.Errorf("Regs of a running vCPU = %v", err)
	}
	if _, err := vs[0].Run(t.Context()); !errors.Is(err, ErrBusy) {
		t.Errorf("a second Run = %v", err)
	}
	// A kick reaches a Run that waits at the gate.
	f.vm.Pause()
	for _, v := range vs {
		v.Kick()
	}
	done := testutil.Go(wg.Wait)
	testutil.Proceeds(t, done, "the kicked Runs of a paused VM")
	f.vm.Resume()
}

// TestCloseEndsRuns closes a VM whose vCPUs spin, or wait at the gate.
func TestCloseEndsRuns(t *testing.T) {
	for _, paused := range []bool{false, true} {
		f := newFlat(t, 4<<20, VMOptions{}, vmCount)
		v := f.vcpu(0, 0, GeneralRegs{RDI: uint64(flatData)})
		done := testutil.Go(func() {
			if _, err := v.Run(context.Background()); !errors.Is(err, ErrClosed) {
				t.Errorf("Run = %v", err)
			}
		})
		eventually(t, "the guest counts", func() bool { return f.word(flatData) > 0 })
		if paused {
			f.vm.Pause()
		}
		if err := f.vm.Close(); err != nil {
			t.Error(err)
		}
		testutil.Proceeds(t, done, "the Run")
	}
}

func TestVCPURunDoesNotAllocate(t *testing.T) {
	f := newFlat(t, 4<<20, VMOptions{}, vmOut)
	v := f.vcpu(0, 0, GeneralRegs{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := v.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if n := testing.AllocsPerRun(100, func() { v.Run(ctx) }); n > 0 {
		t.Errorf("%v allocations for a Run", n)
	}
}
