//go:build linux && amd64

package machine

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/guestmm/guestmm/examples/vmm/internal/guest"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// Guest is a guest whose vCPUs wait at their doorbells, or do a command.
type Guest struct {
	Layout
	Memory *guestmem.Memory
	VM     *kvm.VM
	Model  *Model
	vcpus  []*kvm.VCPU

	inherited SelfCheck // of the guest that this is a clone of
	harvested bool      // the VM can tell what was written: the model keeps what a harvest is compared with

	reading sync.Mutex // held while the ledgers are read, which stores how far they were
}

// Devices are those that every guest has, in the kernel.
var Devices = kvm.VMOptions{IRQChip: kvm.IRQChipKernel, PIT: kvm.PITKernel, VCPUs: guest.VCPUs}

func options(dirty kvm.DirtyMode) kvm.VMOptions {
	o := Devices
	o.Dirty = dirty
	return o
}

// New makes a guest, whose vCPUs have not run yet.
func New(sys *kvm.System, l Layout, dirty kvm.DirtyMode, seed uint64) (_ *Guest, err error) {
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return nil, err
	}
	g := &Guest{Layout: l, Memory: m, Model: newModel(l.Data, l.Shared)}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	for _, o := range []guestmem.RegionOptions{
		{Name: "low", Base: 0, Size: l.LowSize},
		{Name: "data", Base: l.Data.Base, Size: l.Data.Pages * addr.PageSize},
		{Name: "shared", Base: l.Shared.Base, Size: l.Shared.Pages * addr.PageSize},
		{Name: "rom", Base: l.ROM, Size: romPages * addr.PageSize, Backing: guestmem.BackingAnonymous, Access: guestmem.RegionReadOnly, Fill: l.fillROM},
	} {
		if _, err := m.AddRegion(o); err != nil {
			return nil, err
		}
	}
	long, err := kvm.SetupLongMode(m, kvm.LongModeOptions{Base: guest.LongModeBase, MapSize: l.MapSize})
	if err != nil {
		return nil, err
	}
	if err := g.load(seed); err != nil {
		return nil, err
	}
	if g.VM, err = sys.NewVM(m, options(dirty)); err != nil {
		return nil, err
	}
	g.harvested = dirty != kvm.DirtyNone
	if err := g.addVCPUs(); err != nil {
		return nil, err
	}
	for i, v := range g.vcpus {
		top := uint64(guest.StackTop) + uint64(i)*guest.StackSize
		err := long.Enter(v, kvm.Ring3, kvm.GeneralRegs{RIP: uint64(guest.CodeBase), RDI: uint64(i), RSP: top - 8})
		if err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (l *Layout) fillROM(w io.WriterAt) error {
	var b [addr.PageSize]byte
	for i := range uint64(romPages) {
		guest.FillPage(b[:], uint64(l.ROM)/addr.PageSize+i, 1, 0xff, romSeed)
		if _, err := w.WriteAt(b[:], int64(i*addr.PageSize)); err != nil {
			return err
		}
	}
	return nil
}

// load writes code and configuration.
func (g *Guest) load(seed uint64) error {
	_, err := g.Memory.WriteAt(guest.Code, guest.CodeBase)
	errs := []error{err, g.Memory.Store64(guest.ConfigBase+guest.ConfigSeeds, seed)}
	for id := range uint64(guest.VCPUs) {
		errs = append(errs, g.Memory.Store64(control(id)+guest.ControlRandom, seed^(id+1)*0x9e3779b97f4a7c15|1))
	}
	for _, a := range []guest.Area{g.Data, g.Shared} {
		errs = append(errs, g.configure(a))
	}
	return errors.Join(errs...)
}

// configure tells the guest of an area. It may be running.
func (g *Guest) configure(a guest.Area) error {
	at := guest.ConfigBase + guest.ConfigAreas + addr.GPA(a.ID*guest.AreaSize)
	if _, err := g.Memory.WriteAt(a.Encode(), at); err != nil {
		return err
	}
	n, err := g.Memory.Load64(guest.ConfigBase + guest.ConfigNAreas)
	if err != nil || n > a.ID {
		return err
	}
	return g.Memory.Store64(guest.ConfigBase+guest.ConfigNAreas, a.ID+1)
}

func (g *Guest) addVCPUs() error {
	for id := range guest.VCPUs {
		v, err := g.VM.NewVCPU(id)
		if err != nil {
			return err
		}
		g.vcpus = append(g.vcpus, v)
	}
	return nil
}

func control(id uint64) addr.GPA { return guest.ControlBase + addr.GPA(id*addr.PageSize) }

// Close ends the guest. No command is running.
func (g *Guest) Close() error {
	return errors.Join(g.CloseVM(), g.Memory.Close())
}

// CloseVM ends the guest but for its memory.
func (g *Guest) CloseVM() error {
	if g.VM == nil {
		return nil
	}
	vm := g.VM
	g.VM = nil
	return vm.Close()
}

// AddHot adds the hot region and has the guest use it; vCPUs may be running.
func (g *Guest) AddHot() (*guestmem.Region, error) {
	r, err := g.Memory.AddRegion(g.HotRegion())
	if err != nil {
		return nil, err
	}
	g.Model.add(g.Hot)
	return r, g.configure(g.Hot)
}

// HotRegion returns the options of the hot region.
func (g *Guest) HotRegion() guestmem.RegionOptions {
	return guestmem.RegionOptions{Name: "hot", Base: g.Hot.Base, Size: g.Hot.Pages * addr.PageSize}
}

// RemoveHot has the guest, whose vCPUs wait at their doorbells, forget the hot
// region, and removes it.
func (g *Guest) RemoveHot() error {
	off := g.Hot
	off.Kind = guest.AreaOff
	if err := g.configure(off); err != nil {
		return err
	}
	r, ok := g.Memory.RegionAt(g.Hot.Base)
	if !ok {
		return fmt.Errorf("no region at %v: %w", g.Hot.Base, guestmem.ErrNoRegion)
	}
	if err := g.Memory.RemoveRegion(r); err != nil {
		return err
	}
	g.Model.remove(HotArea)
	return nil
}
