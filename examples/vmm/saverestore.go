//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/examples/vmm/internal/codec"
	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
	"github.com/guestmm/guestmm/uffd/pager"
)

// selfChecked runs do with a demo, and says on stdout what came of it.
func selfChecked(o *options, stdout, stderr io.Writer, do func(*demo) error) (err error) {
	d := &demo{options: o, result: newResult(o), progress: newProgress(stderr)}
	before := holdings()
	if d.sys, err = openKVM(); err != nil {
		return err
	}
	err = errors.Join(do(d), d.sys.Close())
	d.progress.done()
	if left := holdings().since(before); left != "" {
		err = errors.Join(err, fmt.Errorf("left behind: %s", left))
	}
	r := d.result
	if bad := r.SelfcheckErrors + r.ModelErrors; bad > 0 || err == nil && r.PagesChecked == 0 {
		err = errors.Join(err, fmt.Errorf("%d of %d pages are wrong", bad, r.PagesChecked))
	}
	for _, n := range r.Notes {
		fmt.Fprintln(stdout, "note:", n)
	}
	if err == nil {
		fmt.Fprintf(stdout, "pages that the guests checked    %d, of which wrong: 0\nok\n", r.PagesChecked)
	}
	return err
}

// saveRunning is -snapshot: the guest writes while its files are written.
func saveRunning(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	return selfChecked(o, stdout, stderr, func(d *demo) (err error) {
		so := snapfile.Options{}
		if d.compress {
			if so.Codec, err = codec.NewZstd(); err != nil {
				return err
			}
		}
		layout, err := machine.NewLayout(d.memory, hotSize(d.memory))
		if err != nil {
			return err
		}
		d.progress.step("fill", 1)
		g, err := machine.New(d.sys, layout, kvm.DirtyNone, mix(d.seed, 0))
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, g.Close()) }()
		for _, cmd := range []guest.Command{guest.Nop, guest.Fill} {
			if err := g.Do(ctx, cmd); err != nil {
				return err
			}
		}
		stop := g.KeepRunning(ctx)
		err = d.writeChain(ctx, g, so, stdout)
		if err := errors.Join(err, stop()); err != nil {
			return err
		}
		return errors.Join(d.verify(ctx, g), d.account(g))
	})
}

// writeChain writes the full file and the increments of a guest that runs.
func (d *demo) writeChain(ctx context.Context, g *machine.Guest, so snapfile.Options, stdout io.Writer) (err error) {
	var last *machine.Snapped
	var parent *snapfile.File
	defer func() {
		if last != nil {
			err = errors.Join(err, last.Close())
		}
		if parent != nil {
			err = errors.Join(err, parent.Close())
		}
	}()
	path := d.snapshot
	for i := range d.increments + 1 {
		if i > 0 {
			path = fmt.Sprintf("%s.%d", d.snapshot, i)
			if err := g.Written(ctx, g.Data.Pages/100); err != nil {
				return err
			}
		}
		s, err := g.Snapshot(ctx)
		if err != nil {
			return err
		}
		so.Parent, so.Progress = parent, d.progress.bytes("write "+path)
		info, err := s.Write(ctx, path, so, last)
		if last != nil {
			err = errors.Join(err, last.Close())
		}
		last = s
		if err != nil {
			return err
		}
		st := s.Stats()
		fmt.Fprintf(stdout, "%s: paused for %.1f µs, %d pages of data, %d bytes\n", path, micros(st.Pause), info.DataPages, info.StoredBytes)
		if i < d.increments {
			if parent != nil {
				err = parent.Close()
				parent = nil
			}
			if err == nil {
				parent, err = openFile(path)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// restoreFile is -restore.
func restoreFile(ctx context.Context, o *options, stdout, stderr io.Writer) error {
	return selfChecked(o, stdout, stderr, func(d *demo) error {
		if d.lazy {
			return d.restoreLazyClones(ctx)
		}
		return d.restoreEagerly(ctx)
	})
}

// restoreLazyClones starts guests at once, each of the file.
func (d *demo) restoreLazyClones(ctx context.Context) error {
	d.progress.step("restore lazily", d.clones)
	errs := make([]error, d.clones)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			var r lazyResult
			r, errs[i] = d.restoreLazily(ctx, d.restore, d.selfCheck)
			if errs[i] == nil {
				d.result.note("first exit after %.1f µs, %d faults, %d pages replayed", r.FirstExit, r.Faults, r.Replayed)
			}
			d.progress.add("")
		})
	}
	wg.Wait()
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
