//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/kvm"
)

// demo is a run of the built-in guest.
type demo struct {
	*options
	sys      *kvm.System
	layout   machine.Layout
	result   *result
	progress *progress

	lacksRing bool // this host's KVM has no dirty ring
}

// perform has a demo do something, and reports what came of it.
func perform(o *options, stdout, stderr io.Writer, do func(*demo) error) error {
	out, table, err := reportTo(o.json, stdout, stderr)
	if err != nil {
		return err
	}
	d := &demo{options: o, result: newResult(o), progress: newProgress(stderr)}
	before := holdings()
	if d.sys, err = openKVM(); err == nil {
		err = errors.Join(do(d), d.sys.Close())
	}
	d.progress.done()
	if left := holdings().since(before); left != "" {
		err = errors.Join(err, fmt.Errorf("left behind: %s", left))
	}
	if err != nil {
		d.result.Error = err.Error()
	}
	d.result.judge()
	d.result.print(table)
	if out != nil {
		err = errors.Join(err, d.result.writeJSON(out), closeFile(out))
	}
	if err == nil && !d.result.OK {
		err = errors.New(d.result.verdict())
	}
	return err
}

func closeFile(w io.Writer) error {
	if f, ok := w.(*os.File); ok && f != os.Stdout {
		return f.Close()
	}
	return nil
}

// demonstrate takes the built-in guest through everything.
func (d *demo) demonstrate(ctx context.Context) (err error) {
	if d.layout, err = machine.NewLayout(d.memory, hotSize(d.memory)); err != nil {
		return err
	}
	var sealed *machine.Sealed
	for _, mode := range []kvm.DirtyMode{kvm.DirtyLog, kvm.DirtyRing} {
		s, err := d.exercise(ctx, mode)
		if errors.Is(err, kvm.ErrNotSupported) && mode == kvm.DirtyRing && sealed != nil {
			d.lacksRing = true
			d.result.note("no dirty ring on this host: %v", err)
			break
		}
		if sealed != nil {
			err = errors.Join(err, sealed.Close())
		}
		if err != nil {
			return fmt.Errorf("dirty %v: %w", mode, err)
		}
		sealed = s
	}
	defer func() { err = errors.Join(err, sealed.Close()) }()
	if err := d.runClones(ctx, sealed); err != nil {
		return fmt.Errorf("clones: %w", err)
	}
	if err := d.idleClones(ctx, sealed); err != nil {
		return fmt.Errorf("idle clones: %w", err)
	}
	if err := d.live(ctx); err != nil {
		return fmt.Errorf("live: %w", err)
	}
	return d.measure(ctx, sealed)
}

func hotSize(memory uint64) uint64 { return max(memory/16, 2<<20) &^ (2<<20 - 1) }

// exercise makes a guest and takes it through all that regions and harvests can
// do, and seals it in the end.
func (d *demo) exercise(ctx context.Context, mode kvm.DirtyMode) (_ *machine.Sealed, err error) {
	d.progress.step(fmt.Sprintf("dirty %v: fill", mode), 8)
	g, err := machine.New(d.sys, d.layout, mode, mix(d.seed, uint64(mode)))
	if err != nil {
		return nil, err
	}
	defer func() {
		if g != nil {
			err = errors.Join(err, d.account(g), g.Close())
		}
	}()
	// The first is up to the first doorbell.
	for _, cmd := range []guest.Command{guest.Nop, guest.Fill, guest.Verify} {
		if err := g.Do(ctx, cmd); err != nil {
			return nil, err
		}
	}
	if err := g.CheckROM(ctx); err != nil {
		return nil, err
	}
	if err := g.Baseline(); err != nil {
		return nil, err
	}
	for _, part := range []struct {
		name string
		do   func(context.Context, *machine.Guest) error
	}{
		{"harvest, and add a region", d.harvestWhileRunning},
		{"discard", d.discard},
		{"remove a region", d.removeRegion},
	} {
		d.progress.add(fmt.Sprintf("dirty %v: %s", mode, part.name))
		if err := part.do(ctx, g); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		if err := d.verify(ctx, g); err != nil {
			return nil, fmt.Errorf("%s: %w", part.name, err)
		}
		d.progress.add("")
	}
	if err := errors.Join(d.account(g), g.Tell(0, guest.Nop), g.Tell(1, guest.Nop)); err != nil {
		return nil, err
	}
	s, err := g.Seal()
	if err == nil {
		g = nil
	}
	return s, err
}

// harvestWhileRunning harvests while both vCPUs write, and adds a region, which
// they use from then on.
func (d *demo) harvestWhileRunning(ctx context.Context, g *machine.Guest) error {
	rounds := 40
	if d.quick {
		rounds = 12
	}
	done := g.Begin(ctx, guest.Run)
	err := func() error {
		for i := range rounds {
			if i == rounds/2 {
				if _, err := g.AddHot(); err != nil {
					return err
				}
			}
			t, err := g.Harvest()
			if err != nil {
				return err
			}
			d.result.tally(t)
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		// The guest uses it: it says so in its ledger.
		for deadline := time.Now().Add(time.Minute); g.Model.Written(machine.HotArea) == 0; {
			if time.Now().After(deadline) {
				return errors.New("the guest does not use the region that was added")
			}
			t, err := g.Harvest()
			if err != nil {
				return err
			}
			d.result.tally(t)
			if err := sleep(ctx, time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	}()
	if err := errors.Join(err, g.End(done)); err != nil {
		return err
	}
	// All of it is written, so that the removal has something to take away.
	if err := g.Do(ctx, guest.Fill, machine.HotArea+1); err != nil {
		return err
	}
	return d.settle(g)
}

// settle harvests what is left, and wants nothing after it.
func (d *demo) settle(g *machine.Guest, discarded ...guest.Entry) error {
	t, err := g.Harvest(discarded...)
	if err != nil {
		return err
	}
	d.result.tally(t)
	if t, err = g.Harvest(); err == nil {
		d.result.tally(t)
	}
	return err
}

// verify has the guest look at everything, and compares what it has noted with
// its ledgers.
func (d *demo) verify(ctx context.Context, g *machine.Guest) error {
	if err := g.Do(ctx, guest.Verify); err != nil {
		return err
	}
	n, err := g.CompareTables()
	d.result.wrong(n, "pages whose generation is not what the ledgers say")
	return err
}

// account adds what a guest has found to the result, once.
func (d *demo) account(g *machine.Guest) error {
	s, err := g.SelfChecked()
	if err != nil {
		return err
	}
	d.result.selfChecked(s)
	return nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

// mix makes a seed of a seed and a number.
func mix(seed, n uint64) uint64 {
	x := seed + (n+1)*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
