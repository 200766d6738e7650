//go:build linux && amd64

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/examples/vmm/internal/raw"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// snapshots is how many are taken of one running guest.
const snapshots = 3

// snapshotResult is one live snapshot, beside the arming ioctl alone.
type snapshotResult struct {
	Pause  float64 `json:"pause_us"`
	RawArm float64 `json:"raw_arm_us"`
	Armed  uint64  `json:"pages_armed"`
	Copied uint64  `json:"pages_copied"`
	Runs   uint64  `json:"dirty_runs"`
}

func (s snapshotResult) ratio() float64 { return s.Pause / s.RawArm }

// live takes snapshots of a guest that keeps writing, runs a clone of each, forks it, and
// has it come back from a file.
func (d *demo) live(ctx context.Context) (err error) {
	layout, err := machine.NewLayout(d.touched, hotSize(d.touched))
	if err != nil {
		return err
	}
	d.progress.step(fmt.Sprintf("live: a guest writes %d MiB", d.touched>>20), 2*snapshots+6)
	g, err := machine.New(d.sys, layout, kvm.DirtyNone, mix(d.seed, 5000))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	for _, cmd := range []guest.Command{guest.Nop, guest.Fill} {
		if err := g.Do(ctx, cmd); err != nil {
			return err
		}
	}
	raw, err := newArmed(g)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, raw.close()) }()
	dir, err := os.MkdirTemp(d.dir, "vmm-live-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()

	stop := g.KeepRunning(ctx)
	err = d.snapshotAndFork(ctx, g, raw, filepath.Join(dir, "guest.snap"))
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	d.progress.add("live: the guest itself")
	if err := errors.Join(d.verify(ctx, g), d.account(g)); err != nil {
		return err
	}
	return d.restoreTwice(ctx, filepath.Join(dir, "guest.snap"))
}

// armed are other mappings of the memory that snapshots arm, the largest first.
type armed []*raw.Armed

func newArmed(g *machine.Guest) (a armed, err error) {
	regions := g.Memory.Regions()
	slices.SortFunc(regions, func(x, y *guestmem.Region) int { return cmp.Compare(y.Size(), x.Size()) })
	for _, r := range regions {
		fd, offset, ok := r.FD()
		if !ok || r.ReadOnly() {
			continue
		}
		one, err := raw.NewArmed(fd, offset, r.Size())
		if err != nil {
			return nil, errors.Join(err, a.close())
		}
		a = append(a, one)
	}
	if len(a) == 0 {
		return nil, fmt.Errorf("no file behind the memory: %w", guestmem.ErrNotSupported)
	}
	return a, nil
}

func (a armed) close() error {
	var errs []error
	for _, one := range a {
		errs = append(errs, one.Close())
	}
	return errors.Join(errs...)
}

// whole is how long it takes to arm everything, after it was written.
func (a armed) whole() (sum time.Duration, err error) {
	for _, one := range a {
		took, err := one.Whole()
		if err != nil {
			return 0, err
		}
		sum += took
	}
	return sum, nil
}

// snapshotAndFork works on a guest that runs.
func (d *demo) snapshotAndFork(ctx context.Context, g *machine.Guest, raw armed, path string) (err error) {
	var last *machine.Snapped
	defer func() {
		if last != nil {
			err = errors.Join(err, last.Close())
		}
	}()
	for i := range snapshots {
		d.progress.add(fmt.Sprintf("live: snapshot %d", i+1))
		s, err := d.takeSnapshot(ctx, g, raw, last != nil)
		if last != nil {
			err = errors.Join(err, last.Close())
			last = nil
		}
		if err != nil {
			return fmt.Errorf("snapshot %d: %w", i+1, err)
		}
		last = s
	}
	d.progress.add("live: write a file")
	if _, err := last.Write(ctx, path, snapfile.Options{Sync: snapfile.SyncNone}, nil); err != nil {
		return err
	}
	d.progress.add("live: fork")
	child, err := g.Fork(ctx, d.sys, d.reseed(6000))
	if err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	if err := errors.Join(d.selfCheck(ctx, child), child.Close()); err != nil {
		return fmt.Errorf("fork: %w", err)
	}
	return nil
}

// takeSnapshot takes one, has a clone of it verify itself before its pages were
// copied, and waits until they are.
func (d *demo) takeSnapshot(ctx context.Context, g *machine.Guest, raw armed, isArmed bool) (_ *machine.Snapped, err error) {
	// Of a hundredth of its pages the guest has written some by then.
	if err := g.Written(ctx, g.Data.Pages/100); err != nil {
		return nil, err
	}
	s, err := g.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	clone, err := s.Clone(ctx, d.sys, d.reseed(5001+uint64(len(d.result.Snapshots))))
	if err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	if err := errors.Join(d.selfCheck(ctx, clone), clone.Close()); err != nil {
		return nil, fmt.Errorf("clone: %w", err)
	}
	if err := s.Sweep(ctx); err != nil {
		return nil, err
	}
	st := s.Stats()
	alone, err := raw.whole()
	if err == nil && isArmed {
		var runs time.Duration
		if runs, err = raw[0].Runs(st.DirtyRuns, st.PagesArmed); runs < alone {
			alone = runs
		}
	}
	if err != nil {
		return nil, err
	}
	d.result.Snapshots = append(d.result.Snapshots, snapshotResult{
		Pause: micros(st.Pause), RawArm: micros(alone), Armed: st.PagesArmed, Copied: st.PagesCopied, Runs: st.DirtyRuns,
	})
	return s, nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func (d *demo) reseed(n uint64) func(*guestmem.Memory) error {
	return func(m *guestmem.Memory) error { return machine.Reseed(m, mix(d.seed, n)) }
}

// selfCheck has a guest that was continued verify what it was given, write, and verify that.
func (d *demo) selfCheck(ctx context.Context, g *machine.Guest) error {
	if err := d.verify(ctx, g); err != nil {
		return err
	}
	if err := g.Do(ctx, guest.Run, 1000); err != nil {
		return err
	}
	return errors.Join(d.verify(ctx, g), d.account(g))
}
