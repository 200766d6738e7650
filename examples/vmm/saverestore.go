//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"sync"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/codec"
	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd/pager"
)

// saveRunning is -snapshot: the guest writes while its files are written, but for
// trackers other than live snapshots.
func (d *demo) saveRunning(ctx context.Context) (err error) {
	so := snapfile.Options{}
	if d.compress {
		if so.Codec, err = codec.NewZstd(); err != nil {
			return err
		}
	}
	by, err := d.chooseTracker()
	if err != nil {
		return err
	}
	layout, err := machine.NewLayout(d.memory, hotSize(d.memory))
	if err != nil {
		return err
	}
	d.progress.step("fill", 2)
	g, err := machine.New(d.sys, layout, by.Mode(), mix(d.seed, 0))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	for _, cmd := range []guest.Command{guest.Nop, guest.Fill} {
		if err := g.Do(ctx, cmd); err != nil {
			return err
		}
		d.progress.add("")
	}
	c := chain{demo: d, g: g, options: so, capture: capturePaused()}
	if by.live {
		c.capture = captureLive()
	} else if by.Tracker == kvm.TrackByWriteProtection {
		w, err := g.Memory.TrackWrites()
		if err != nil {
			return err
		}
		defer w.Close()
	}
	stop := g.KeepRunning(ctx)
	err = c.write(ctx)
	if err := errors.Join(err, stop()); err != nil {
		return err
	}
	return errors.Join(d.verify(ctx, g), d.account(g))
}

// restoreFile is -restore.
func (d *demo) restoreFile(ctx context.Context) error {
	restore := d.restoreEagerly
	if d.lazy {
		restore = d.restoreLazyClones
	}
	err := restore(ctx)
	if err == nil {
		d.result.Clones = d.clones
	}
	return err
}

// restoreLazyClones starts guests at once, each of the file.
func (d *demo) restoreLazyClones(ctx context.Context) error {
	d.progress.step("restore lazily", d.clones)
	errs := make([]error, d.clones)
	runs := make([]lazyResult, d.clones)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			runs[i], errs[i] = d.restoreLazily(ctx, d.restore, d.selfCheck)
			d.progress.add("")
		})
	}
	wg.Wait()
	for i, r := range runs {
		if errs[i] == nil {
			d.result.LazyRuns, d.result.Lazy = append(d.result.LazyRuns, r), &r
		}
	}
	return errors.Join(errs...)
}

// restoreEagerly reads and verifies all of the file before a guest runs. More than
// one is cloned of a template, and does not read it again.
func (d *demo) restoreEagerly(ctx context.Context) (err error) {
	f, saved, err := openSnapshot(d.restore)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	d.result.restored(saved)
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return err
	}
	if err := pager.RestoreNow(ctx, m, f, pager.EagerOptions{Progress: d.progress.bytes("restore")}); err != nil {
		return errors.Join(err, m.Close())
	}
	if d.clones == 1 {
		g, err := saved.Continue(ctx, d.sys, m)
		if err != nil {
			return err
		}
		return errors.Join(d.selfCheck(ctx, g), g.Close())
	}
	t, err := m.Seal()
	if err := errors.Join(err, m.Close()); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.Close()) }()
	d.progress.step("clones", d.clones)
	errs := make([]error, d.clones)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			errs[i] = d.runRestored(ctx, saved, t, uint64(i))
			d.progress.add("")
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (d *demo) runRestored(ctx context.Context, saved *machine.Saved, t *guestmem.Template, n uint64) error {
	m, err := t.Clone(guestmem.CloneOptions{Hook: d.reseed(7000 + n)})
	if err != nil {
		return err
	}
	g, err := saved.Continue(ctx, d.sys, m)
	if err != nil {
		return err
	}
	return errors.Join(d.selfCheck(ctx, g), g.Close())
}
