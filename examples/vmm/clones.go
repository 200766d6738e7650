//go:build linux && amd64

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// runClones runs clones at once; each verifies what it was given, writes a
// pattern of its own, and verifies that. One of them is sealed and cloned in turn, and
// in the end a last clone finds the template as it was.
func (d *demo) runClones(ctx context.Context, sealed *machine.Sealed) error {
	d.progress.step(fmt.Sprintf("%d clones at once", d.clones), d.clones+2)
	clones := make([]*machine.Guest, d.clones)
	errs := make([]error, d.clones)
	var seeds sync.Map
	var wg sync.WaitGroup
	for i := range clones {
		wg.Go(func() {
			clones[i], errs[i] = d.runClone(ctx, sealed, kvm.DirtyNone, mix(d.seed, 1000+uint64(i)), &seeds)
			d.progress.add("")
		})
	}
	wg.Wait()
	err := errors.Join(errs...)
	for i, g := range clones {
		if g != nil && (i > 0 || err != nil) {
			err = errors.Join(err, g.Close())
		}
	}
	if err != nil {
		return err
	}
	d.result.Clones = d.clones
	if err := d.cloneOfClone(ctx, clones[0], &seeds); err != nil {
		return fmt.Errorf("clone of a clone: %w", err)
	}
	d.progress.add("the template as it was")
	g, err := sealed.Clone(d.sys, kvm.DirtyNone, nil)
	if err != nil {
		return err
	}
	sealed.Follow(g)
	return errors.Join(d.verify(ctx, g), d.account(g), g.Close())
}

func (d *demo) runClone(ctx context.Context, sealed *machine.Sealed, dirty kvm.DirtyMode, seed uint64, seeds *sync.Map) (_ *machine.Guest, err error) {
	g, err := sealed.Clone(d.sys, dirty, func(m *guestmem.Memory) error { return machine.Reseed(m, seed) })
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	sealed.Follow(g)
	own, _, err := machine.Seed(g.Memory)
	if err != nil {
		return nil, err
	}
	if _, isThere := seeds.LoadOrStore(own, true); isThere || own != seed {
		return nil, fmt.Errorf("the seed %#x is not the clone's own (%#x)", own, seed)
	}
	if err := d.verify(ctx, g); err != nil { // what it was given
		return nil, err
	}
	if err := g.Do(ctx, guest.Fill, machine.SharedArea+1); err != nil {
		return nil, err
	}
	if dirty != kvm.DirtyNone {
		err = errors.Join(g.Baseline(), d.harvestClone(ctx, g))
	} else {
		err = g.Do(ctx, guest.Run, 1000)
	}
	if err != nil {
		return nil, err
	}
	return g, errors.Join(d.verify(ctx, g), d.account(g))
}

// harvestClone harvests a clone while it writes.
func (d *demo) harvestClone(ctx context.Context, g *machine.Guest) error {
	done := g.Begin(ctx, guest.Run, 1000)
	for range 5 {
		t, err := g.Harvest()
		if err != nil {
			return errors.Join(err, g.End(done))
		}
		d.result.tally(t)
	}
	if err := g.Wait(done); err != nil {
		return err
	}
	return d.settle(g)
}

// cloneOfClone seals a clone, which is used up, and runs a clone of it.
func (d *demo) cloneOfClone(ctx context.Context, g *machine.Guest, seeds *sync.Map) error {
	err := errors.Join(g.Tell(0, guest.Nop), g.Tell(1, guest.Nop))
	if err != nil {
		return errors.Join(err, g.Close())
	}
	second, err := g.Seal()
	if err != nil {
		return errors.Join(err, g.Close())
	}
	child, err := d.runClone(ctx, second, kvm.DirtyLog, mix(d.seed, 2000), seeds)
	if err == nil {
		err = child.Close()
	}
	return errors.Join(err, second.Close())
}

// idleClones measures what clones cost that have run to their first exit and do
// nothing: private dirty memory of the process, Go's heap among it, and its page tables.
func (d *demo) idleClones(ctx context.Context, sealed *machine.Sealed) (err error) {
	d.progress.step(fmt.Sprintf("%d idle clones", d.idle), d.idle)
	before, err := privateKiB()
	if err != nil {
		return err
	}
	var clones []*machine.Guest
	defer func() {
		for _, g := range clones {
			err = errors.Join(err, g.Close())
		}
	}()
	var seed atomic.Uint64
	for range d.idle {
		g, err := sealed.Clone(d.sys, kvm.DirtyNone, func(m *guestmem.Memory) error {
			return machine.Reseed(m, mix(d.seed, 3000+seed.Add(1)))
		})
		if err != nil {
			return err
		}
		clones = append(clones, g)
		if err := errors.Join(g.Resume(ctx, 0, nil), g.Resume(ctx, 1, nil)); err != nil {
			return err
		}
		d.progress.add("")
	}
	after, err := privateKiB()
	if err != nil {
		return err
	}
	d.result.IdleClones = d.idle
	d.result.PrivateKiB = float64(after-before) / float64(d.idle)
	return nil
}

// privateKiB returns the private dirty memory of the process, and its page tables.
func privateKiB() (int64, error) {
	runtime.GC()
	debug.FreeOSMemory()
	dirty, err := procField("/proc/self/smaps_rollup", "Private_Dirty:")
	if err != nil {
		return 0, err
	}
	tables, err := procField("/proc/self/status", "VmPTE:")
	return dirty + tables, err
}

// procField returns the number behind a name.
func procField(file, name string) (int64, error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if rest, ok := strings.CutPrefix(s.Text(), name); ok {
			return strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}
