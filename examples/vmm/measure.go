//go:build linux && amd64

package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/examples/vmm/internal/raw"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// row is a step's time in microseconds, by the library and by system calls alone.
type row struct {
	Name string `json:"name"`
	Ours spread `json:"guestmm_us"`
	Raw  spread `json:"ioctls_us"`
}

// spread is the median and the quartiles.
type spread struct {
	Low    float64 `json:"low"`
	Median float64 `json:"median"`
	High   float64 `json:"high"`
}

func (r row) ratio() float64 { return r.Ours.Median / r.Raw.Median }

func spreadOf(times []time.Duration) spread {
	slices.Sort(times)
	at := func(i int) float64 { return float64(times[i].Nanoseconds()) / 1e3 }
	n := len(times)
	return spread{Low: at(n / 4), Median: at(n / 2), High: at(n - 1 - n/4)}
}

// A step does something once and returns what it took, and cleans up after.
type step func() (time.Duration, error)

// compare takes turns, and adds a row. The first of each warms up.
func (d *demo) compare(ctx context.Context, name string, ours, raw step) error {
	var a, b []time.Duration
	for i := range d.samples + 1 {
		for _, x := range []struct {
			do  step
			out *[]time.Duration
		}{{ours, &a}, {raw, &b}} {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			runtime.GC() // neither pays for the other's garbage
			t, err := x.do()
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if i > 0 {
				*x.out = append(*x.out, t)
			}
		}
	}
	d.result.Steps = append(d.result.Steps, row{Name: name, Ours: spreadOf(a), Raw: spreadOf(b)})
	d.progress.add(name)
	return nil
}

// measure fills the table.
func (d *demo) measure(ctx context.Context, sealed *machine.Sealed) (err error) {
	d.progress.step("times", 9)
	sys, err := raw.Open()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	image, err := raw.NewImage(sealed.Template)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, image.Close()) }()
	if err := d.measureClone(ctx, sealed, sys, image); err != nil {
		return err
	}
	modes := []kvm.DirtyMode{kvm.DirtyLog, kvm.DirtyRing}
	if d.lacksRing {
		modes = modes[:1]
	}
	for _, mode := range modes {
		if err := d.measureHarvest(ctx, sealed, sys, image, mode); err != nil {
			return err
		}
	}
	return d.measureChanges(ctx, sealed, sys, image)
}

func (d *demo) measureClone(ctx context.Context, sealed *machine.Sealed, sys *raw.System, image *raw.Image) error {
	err := d.compare(ctx, "clone to first exit", func() (time.Duration, error) {
		begin := time.Now()
		g, err := sealed.Clone(d.sys, kvm.DirtyNone, nil)
		if err != nil {
			return 0, err
		}
		err = g.Resume(ctx, 0, nil)
		took := time.Since(begin)
		return took, errors.Join(err, g.Close())
	}, func() (time.Duration, error) {
		begin := time.Now()
		m, err := sys.Clone(image, sealed.State, kvm.DirtyNone)
		if err != nil {
			return 0, err
		}
		err = m.Run(0)
		took := time.Since(begin)
		return took, errors.Join(err, m.Close())
	})
	if err == nil {
		last := d.result.Steps[len(d.result.Steps)-1]
		d.result.FirstExit, d.result.RawFirstExit = last.Ours.Median, last.Raw.Median
	}
	return err
}

// measureHarvest has the same guest write the same pages in a clone of each kind,
// and harvests its data region.
func (d *demo) measureHarvest(ctx context.Context, sealed *machine.Sealed, sys *raw.System, image *raw.Image, mode kvm.DirtyMode) (err error) {
	const writes = 200
	g, err := sealed.Clone(d.sys, mode, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	sealed.Follow(g)
	m, err := sys.Clone(image, sealed.State, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	for _, err := range []error{g.Resume(ctx, 0, nil), m.Run(0)} {
		if err != nil {
			return err
		}
	}
	region, ok := g.Memory.RegionAt(g.Data.Base)
	slot := slices.IndexFunc(image.Regions, func(r guestmem.TemplateRegion) bool { return r.Base == g.Data.Base })
	if !ok || slot < 0 {
		return errors.New("the clone has no data region")
	}
	bitmap := make([]uint64, (g.Data.Pages+63)/64)
	var written, found uint64
	err = d.compare(ctx, fmt.Sprintf("harvest by %v of %d writes in %d MiB", mode, writes, region.Size()>>20), func() (time.Duration, error) {
		if err := g.DoOne(ctx, 0, nil, guest.Run, writes); err != nil {
			return 0, err
		}
		t, data, err := g.HarvestTimed(g.Data.ID)
		d.result.tally(t)
		written += data.Written
		return data.Took, err
	}, func() (time.Duration, error) {
		tellRaw(m, guest.Run, writes)
		if err := m.Run(0); err != nil {
			return 0, err
		}
		clear(bitmap)
		harvest := m.HarvestLog
		if mode == kvm.DirtyRing {
			harvest = m.HarvestRing
		}
		begin := time.Now()
		n, err := harvest(slot, bitmap)
		took := time.Since(begin)
		found += uint64(n)
		return took, err
	})
	// Either may have been told of pages that were only read, by a host that moved them.
	if err == nil && found < written {
		return fmt.Errorf("harvest by %v: the guest says that it wrote %d pages, the ioctls alone have %d of the same writes", mode, written, found)
	}
	return err
}

// tellRaw is machine.Guest.Tell to vCPU 0, which takes its ledger for read.
func tellRaw(m *raw.Machine, cmd guest.Command, args ...uint64) {
	c := m.Memory(0)[guest.ControlBase:]
	put := func(at int, v uint64) { binary.LittleEndian.PutUint64(c[at:], v) }
	put(guest.ControlCommand, uint64(cmd))
	for i, a := range args {
		put(guest.ControlArgs+8*i, a)
	}
	put(guest.ControlConsumed, binary.LittleEndian.Uint64(c[guest.ControlHead:]))
}
