//go:build linux && amd64

package machine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

const (
	threadCode addr.GVA = 0x400000
	threadData addr.GVA = 0x10000000
	threadSize          = mib
)

// A thread is a guest thread in an address space of its own.
type thread struct {
	platform *kvm.Platform
	space    *guestmem.AddressSpace
	context  *kvm.Context
}

// newThread makes one that is about to run a program, and lasts until the run
// closes.
func newThread(run *workload.Run, program string) (*thread, error) {
	sys, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	run.OnClose(sys.Close)
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 64 * mib, Name: "bench-thread"})
	if err != nil {
		return nil, err
	}
	run.OnClose(mem.Close)
	t := &thread{}
	if t.platform, err = kvm.NewPlatform(sys, mem, kvm.PlatformOptions{MaxVCPUs: 1}); err != nil {
		return nil, err
	}
	run.OnClose(t.platform.Close)
	if t.space, err = mem.NewAddressSpace(guestmem.SpaceOptions{}); err != nil {
		return nil, err
	}
	run.OnClose(t.space.Close)
	ctx := context.Background()
	for _, o := range []guestmem.MapOptions{
		{Addr: threadCode, Length: addr.PageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite | guestmem.ProtExec},
		{Addr: threadData, Length: threadSize, Prot: guestmem.ProtRead | guestmem.ProtWrite},
	} {
		o.Flags = guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixed
		if _, err := t.space.Map(ctx, o); err != nil {
			return nil, err
		}
	}
	if _, err := t.space.WriteAt(ctx, []byte(program), threadCode); err != nil {
		return nil, err
	}
	if _, err := t.space.WriteAt(ctx, make([]byte, threadSize), threadData); err != nil {
		return nil, err
	}
	t.context = t.platform.NewContext()
	run.OnClose(func() error {
		t.context.Close()
		return nil
	})
	t.context.Regs = kvm.Regs{RIP: uint64(threadCode), RDI: uint64(threadData)}
	return t, nil
}

// step runs until the guest wants something else than a page.
func (t *thread) step() (kvm.ExitKind, error) {
	for {
		e, err := t.platform.Run(context.Background(), t.space, t.context)
		if err != nil || e.Kind != kvm.ExitPageFault {
			return e.Kind, err
		}
		if err := t.space.Fault(context.Background(), e.Addr, e.Access); err != nil {
			return e.Kind, err
		}
	}
}

func exitBySyscall(run *workload.Run) error {
	t, err := newThread(run, syscalls)
	if err != nil {
		return err
	}
	run.Workers = []workload.Op{func(int) error {
		kind, err := t.step()
		if err == nil && kind != kvm.ExitSyscall {
			err = fmt.Errorf("the guest exits by %v", kind)
		}
		return err
	}}
	return nil
}

// A runner runs a thread on a goroutine of its own, and counts how often it was
// kicked out.
type runner struct {
	*thread
	kicks  atomic.Int64
	stop   atomic.Bool
	failed atomic.Pointer[error]
}

// startRunner has a thread count until the run closes.
func startRunner(run *workload.Run) (*runner, error) {
	t, err := newThread(run, count)
	if err != nil {
		return nil, err
	}
	r := &runner{thread: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !r.stop.Load() {
			kind, err := r.step()
			if err == nil && kind != kvm.ExitKicked {
				err = fmt.Errorf("the guest exits by %v", kind)
			}
			if err != nil {
				r.failed.Store(&err)
				return
			}
			r.kicks.Add(1)
		}
	}()
	run.OnClose(func() error {
		r.stop.Store(true)
		// Until it is out: one kick may come before the loop has looked at stop.
		for {
			r.context.Kick()
			select {
			case <-done:
				return nil
			case <-time.After(time.Millisecond):
			}
		}
	})
	return r, nil
}

// patience is far above what a vCPU needs to come in or out.
const patience = 30 * time.Second

// until waits for what another thread does, without letting go of the core.
func (r *runner) until(isSo func() (bool, error)) error {
	for began, i := time.Now(), 0; ; i++ {
		so, err := isSo()
		if so || err != nil {
			return err
		}
		if failed := r.failed.Load(); failed != nil {
			return *failed
		}
		if i%1024 == 1023 && time.Since(began) > patience {
			return errors.New("the vCPU does not move")
		}
		runtime.Gosched()
	}
}

// counts waits until the guest has counted on: the vCPU is in it.
func (r *runner) counts() error {
	ctx := context.Background()
	before, err := r.space.Load64(ctx, threadData)
	if err != nil {
		return err
	}
	return r.until(func() (bool, error) {
		now, err := r.space.Load64(ctx, threadData)
		return now != before, err
	})
}

func kick(run *workload.Run) error {
	r, err := startRunner(run)
	if err != nil {
		return err
	}
	run.Round, run.Reset = 1, r.counts
	run.Workers = []workload.Op{func(int) error {
		before := r.kicks.Load()
		r.context.Kick()
		return r.until(func() (bool, error) { return r.kicks.Load() != before, nil })
	}}
	return nil
}

func forkUnderVCPU(run *workload.Run) error {
	r, err := startRunner(run)
	if err != nil {
		return err
	}
	var child *guestmem.AddressSpace
	drop := func() error {
		if child == nil {
			return nil
		}
		c := child
		child = nil
		return c.Close()
	}
	run.OnClose(drop)
	run.Round = 1
	run.Reset = func() error {
		if err := drop(); err != nil {
			return err
		}
		return r.counts()
	}
	run.Workers = []workload.Op{func(int) (err error) {
		child, err = r.space.Fork()
		return err
	}}
	return nil
}
