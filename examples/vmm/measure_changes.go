//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/machine"
	"github.com/guestmm/guestmm/examples/vmm/internal/raw"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// measureChanges times what changes the memory of a guest, and saving its state.
func (d *demo) measureChanges(ctx context.Context, sealed *machine.Sealed, sys *raw.System, image *raw.Image) (err error) {
	g, err := sealed.Clone(d.sys, kvm.DirtyNone, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, g.Close()) }()
	m, err := sys.Clone(image, sealed.State, kvm.DirtyNone)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()

	region := g.HotRegion()
	size := region.Size
	if err := d.measureAdding(ctx, g, m, region); err != nil {
		return err
	}
	r, err := g.Memory.AddRegion(region)
	if err != nil {
		return err
	}
	added, err := m.AddRegion(uint64(region.Base), size)
	if err != nil {
		return err
	}
	err = d.compare(ctx, fmt.Sprintf("discard %d MiB", size>>20), func() (time.Duration, error) {
		if _, err := g.Memory.WriteAt(make([]byte, size), r.Base()); err != nil {
			return 0, err
		}
		begin := time.Now()
		err := g.Memory.Discard(r.Base(), size)
		return time.Since(begin), err
	}, func() (time.Duration, error) {
		if err := added.Touch(size); err != nil {
			return 0, err
		}
		begin := time.Now()
		err := added.Punch(size)
		return time.Since(begin), err
	})
	if err := errors.Join(err, g.Memory.RemoveRegion(r), added.Remove()); err != nil {
		return err
	}
	err = d.compare(ctx, "save the whole state", func() (time.Duration, error) {
		begin := time.Now()
		_, err := g.VM.Save()
		return time.Since(begin), err
	}, func() (time.Duration, error) {
		begin := time.Now()
		_, err := m.Save(sealed.State)
		return time.Since(begin), err
	})
	if err != nil {
		return err
	}
	return d.measureSeal(ctx, m)
}

func (d *demo) measureAdding(ctx context.Context, g *machine.Guest, m *raw.Machine, o guestmem.RegionOptions) error {
	var removing [2][]time.Duration
	add := func() (time.Duration, error) {
		begin := time.Now()
		r, err := g.Memory.AddRegion(o)
		if err != nil {
			return 0, err
		}
		took := time.Since(begin)
		begin = time.Now()
		err = g.Memory.RemoveRegion(r)
		removing[0] = append(removing[0], time.Since(begin))
		return took, err
	}
	addRaw := func() (time.Duration, error) {
		begin := time.Now()
		a, err := m.AddRegion(uint64(o.Base), o.Size)
		if err != nil {
			return 0, err
		}
		took := time.Since(begin)
		begin = time.Now()
		err = a.Remove()
		removing[1] = append(removing[1], time.Since(begin))
		return took, err
	}
	if err := d.compare(ctx, fmt.Sprintf("add a region of %d MiB", o.Size>>20), add, addRaw); err != nil {
		return err
	}
	// The first ones warmed up.
	d.result.Steps = append(d.result.Steps, row{Name: "remove it", Ours: spreadOf(removing[0][1:]), Raw: spreadOf(removing[1][1:])})
	return nil
}

// measureSeal seals a memory of one region, of which a part is used.
func (d *demo) measureSeal(ctx context.Context, m *raw.Machine) error {
	size := d.memory / 4 &^ (2<<20 - 1)
	const base = addr.GPA(1 << 40) // not where the raw machine has anything
	return d.compare(ctx, fmt.Sprintf("seal %d MiB in a memfd", size>>20), func() (_ time.Duration, err error) {
		mem, err := guestmem.NewMemory(guestmem.MemoryOptions{})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, mem.Close()) }()
		vm, err := d.sys.NewVM(mem, machine.Devices)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, vm.Close()) }()
		// After the VM, as below: the first change of slots waits for KVM to be done with
		// the creation of the interrupt controllers.
		if _, err := mem.AddRegion(guestmem.RegionOptions{Base: base, Size: size}); err != nil {
			return 0, err
		}
		if _, err := mem.WriteAt(make([]byte, size/8), base); err != nil {
			return 0, err
		}
		begin := time.Now()
		t, err := mem.Seal()
		took := time.Since(begin)
		if err != nil {
			return 0, err
		}
		return took, t.Close()
	}, func() (time.Duration, error) {
		a, err := m.AddRegion(uint64(base), size)
		if err != nil {
			return 0, err
		}
		if err := a.Touch(size / 8); err != nil {
			return 0, errors.Join(err, a.Remove())
		}
		begin := time.Now()
		err = a.Seal()
		return time.Since(begin), errors.Join(err, a.CloseFile())
	})
}
