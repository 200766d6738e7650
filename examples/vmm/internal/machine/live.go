//go:build linux && amd64

package machine

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// Snapped is a guest at an instant of its run.
type Snapped struct {
	Saved
	*guestmem.Snapshot
}

// Snapshot takes a snapshot of the guest while its vCPUs write.
func (g *Guest) Snapshot(ctx context.Context) (*Snapped, error) {
	s := &Snapped{Saved: Saved{Layout: g.Layout}}
	err := whole(ctx, func() (err error) {
		s.Snapshot, err = g.Memory.Snapshot(ctx, g.options(&s.Saved))
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// options have the state of the vCPUs saved while they are paused. It is saved before
// memory is frozen, since a vCPU may have to finish a store first, and does not
// change until they run again.
func (g *Guest) options(s *Saved) guestmem.SnapshotOptions {
	return guestmem.SnapshotOptions{
		Pauser:  g.VM,
		Prepare: func() (err error) { s.State, err = g.VM.Save(); return err },
	}
}

// whole tries again while a vCPU is in the middle of an access of several parts.
func whole(ctx context.Context, try func() error) error {
	for {
		err := try()
		if !errors.Is(err, kvm.ErrUnfinished) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Microsecond):
		}
	}
}

// Clone makes a guest that goes on at the instant of the snapshot, whether its
// pages were copied yet or not.
func (s *Snapped) Clone(ctx context.Context, sys *kvm.System, hook func(*guestmem.Memory) error) (*Guest, error) {
	m, err := s.Snapshot.Clone(ctx, guestmem.CloneOptions{Hook: hook})
	if err != nil {
		return nil, err
	}
	return s.Continue(ctx, sys, m)
}

// Fork makes a second running guest of this one, which goes on meanwhile.
func (g *Guest) Fork(ctx context.Context, sys *kvm.System, hook func(*guestmem.Memory) error) (*Guest, error) {
	s := Saved{Layout: g.Layout}
	var m *guestmem.Memory
	err := whole(ctx, func() (err error) {
		m, err = g.Memory.Fork(ctx, guestmem.ForkOptions{SnapshotOptions: g.options(&s), CloneOptions: guestmem.CloneOptions{Hook: hook}})
		return err
	})
	if err != nil {
		return nil, err
	}
	return s.Continue(ctx, sys, m)
}

// Continue makes a guest of a memory and what was saved with it, and brings its
// vCPUs, which may have been in the middle of guest.Run, to their doorbells. The
// memory is the guest's, and is closed after an error.
func (s *Saved) Continue(ctx context.Context, sys *kvm.System, m *guestmem.Memory) (*Guest, error) {
	g, err := s.Attach(sys, m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := g.Settle(ctx, nil); err != nil {
		return nil, errors.Join(err, g.Close())
	}
	return g, nil
}

// Attach is Continue up to where the vCPUs would run; after an error the memory is as it was.
func (s *Saved) Attach(sys *kvm.System, m *guestmem.Memory) (*Guest, error) {
	g := &Guest{Layout: s.Layout, Memory: m}
	if err := g.attach(sys, kvm.DirtyNone, s.State); err != nil {
		return nil, errors.Join(err, g.CloseVM())
	}
	return g, nil
}

// Settle is the rest of it. first, if not nil, is called when the first vCPU has
// left the guest.
func (g *Guest) Settle(ctx context.Context, first func()) error {
	var err error
	if g.inherited, err = g.counters(); err != nil {
		return err
	}
	// What the ledgers tell is of no use without what they told before.
	if err := g.forgetLedgers(); err != nil {
		return err
	}
	g.stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, len(g.vcpus))
	for id := range g.vcpus {
		go func() { ended <- g.Resume(ctx, id, nil) }()
	}
	var errs []error
	for i := range g.vcpus {
		err := <-ended
		if err != nil {
			cancel() // the other may wait for this one for ever
		} else if i == 0 && first != nil {
			first()
		}
		errs = append(errs, err)
	}
	errs = append(errs, g.Memory.Store64(guest.ConfigBase+guest.ConfigStop, 0))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return g.relearn()
}

func (g *Guest) forgetLedgers() error {
	for id := range uint64(guest.VCPUs) {
		head, err := g.Memory.Load64(control(id) + guest.ControlHead)
		if err != nil {
			return err
		}
		if err := g.Memory.Store64(control(id)+guest.ControlConsumed, head); err != nil {
			return err
		}
	}
	return nil
}

// relearn makes a model of what the guest, whose vCPUs are at their doorbells, has
// noted of its pages.
func (g *Guest) relearn() error {
	g.Model = newModel(g.Data, g.Shared)
	for _, a := range g.Model.areas {
		b := make([]byte, 8*a.Pages)
		if _, err := g.Memory.ReadAt(b, a.Table); err != nil {
			return fmt.Errorf("the table of area %d: %w", a.ID, err)
		}
		for i := range a.gens {
			a.gens[i] = uint32(binary.LittleEndian.Uint64(b[8*i:]))
		}
	}
	for id := range g.Model.ledgers {
		head, err := g.Memory.Load64(control(uint64(id)) + guest.ControlHead)
		if err != nil {
			return err
		}
		l := &g.Model.ledgers[id]
		l.next, l.first = head, head
	}
	return g.forgetLedgers()
}

// Written returns once the vCPUs, which run, have written n pages more.
func (g *Guest) Written(ctx context.Context, n uint64) error {
	written := func() (sum uint64, err error) {
		for id := range uint64(guest.VCPUs) {
			tail, err := g.Memory.Load64(control(id) + guest.ControlTail)
			if err != nil {
				return 0, err
			}
			sum += tail
		}
		return sum, nil
	}
	from, err := written()
	for to := from; err == nil && to-from < n; to, err = written() {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(time.Millisecond):
		}
	}
	return err
}

// KeepRunning has every vCPU do guest.Run, and reads the ledgers meanwhile, until
// the function that it returns is called.
func (g *Guest) KeepRunning(ctx context.Context) (stop func() error) {
	done := g.Begin(ctx, guest.Run)
	ended := make(chan error, 1)
	go func() { ended <- g.Wait(done) }()
	return func() error {
		g.stop()
		return errors.Join(<-ended, g.Memory.Store64(guest.ConfigBase+guest.ConfigStop, 0))
	}
}
