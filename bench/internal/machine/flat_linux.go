//go:build linux && amd64

package machine

import (
	"context"
	"errors"
	"fmt"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

const (
	mib = 1 << 20

	// Where things lie in a flat guest, whose addresses are all physical.
	flatTables addr.GPA = 0x1000
	flatCode   addr.GPA = 0x100000
	flatStack           = 0x1ff000
	flatData   addr.GPA = 0x200000
	flatPort            = 0x1f0

	templateSize = 256 * mib
)

// newFlatMemory returns a memory of one region that holds a program and what a
// vCPU needs for 64-bit mode.
func newFlatMemory(size uint64, program string) (*guestmem.Memory, *kvm.LongMode, error) {
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return nil, nil, err
	}
	long, err := func() (*kvm.LongMode, error) {
		if _, err := m.AddRegion(guestmem.RegionOptions{Size: size, Name: "bench"}); err != nil {
			return nil, err
		}
		if _, err := m.WriteAt([]byte(program), flatCode); err != nil {
			return nil, err
		}
		return kvm.SetupLongMode(m, kvm.LongModeOptions{Base: flatTables})
	}()
	if err != nil {
		return nil, nil, errors.Join(err, m.Close())
	}
	return m, long, nil
}

// runToPort runs a vCPU until it writes to a port.
func runToPort(v *kvm.VCPU) error {
	e, err := v.Run(context.Background())
	if err != nil {
		return err
	}
	if e.Kind != kvm.VMExitIO {
		return fmt.Errorf("the guest exits by %v", e)
	}
	return nil
}

// A sealed guest is a template whose vCPU has exited once, and its state then.
type sealed struct {
	sys   *kvm.System
	tmpl  *guestmem.Template
	state *kvm.VCPUState
}

// seal makes one that lasts until the run closes.
func seal(run *workload.Run) (*sealed, error) {
	sys, err := kvm.Open()
	if err != nil {
		return nil, err
	}
	run.OnClose(sys.Close)
	m, long, err := newFlatMemory(templateSize, storeAndOut)
	if err != nil {
		return nil, err
	}
	state, err := firstState(sys, m, long)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	tmpl, err := m.Seal()
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	// Closing the memory is closing the template's, in that order.
	run.OnClose(func() error { return errors.Join(tmpl.Close(), m.Close()) })
	return &sealed{sys, tmpl, state}, nil
}

func firstState(sys *kvm.System, m *guestmem.Memory, long *kvm.LongMode) (state *kvm.VCPUState, err error) {
	vm, err := sys.NewVM(m, kvm.VMOptions{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	v, err := vm.NewVCPU(0)
	if err != nil {
		return nil, err
	}
	regs := kvm.GeneralRegs{RIP: uint64(flatCode), RSP: flatStack, RDX: flatPort, RDI: uint64(flatData), RAX: 1}
	if err := long.Enter(v, kvm.Ring3, regs); err != nil {
		return nil, err
	}
	if err := runToPort(v); err != nil {
		return nil, err
	}
	return v.State()
}

// A clone is one that has exited once more.
type clone struct {
	mem *guestmem.Memory
	vm  *kvm.VM
	cpu *kvm.VCPU
}

func (s *sealed) clone() (c *clone, err error) {
	c = &clone{}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	if c.mem, err = s.tmpl.Clone(guestmem.CloneOptions{}); err != nil {
		return c, err
	}
	if c.vm, err = s.sys.NewVM(c.mem, kvm.VMOptions{}); err != nil {
		return c, err
	}
	if c.cpu, err = c.vm.NewVCPU(0); err != nil {
		return c, err
	}
	if err := errors.Join(c.cpu.SetSregs(s.state.Sregs), c.cpu.SetRegs(s.state.Regs)); err != nil {
		return c, err
	}
	return c, runToPort(c.cpu)
}

// Close also closes what was made in part.
func (c *clone) Close() (err error) {
	if c.vm != nil {
		err = c.vm.Close()
	}
	if c.mem != nil {
		err = errors.Join(err, c.mem.Close())
	}
	return err
}

func cloneToExit(run *workload.Run) error {
	s, err := seal(run)
	if err != nil {
		return err
	}
	inTurn(run, func() (closer, error) { return s.clone() })
	return nil
}

// clonesAtOnce are made between two resets, which discard them off the clock.
const clonesAtOnce = 8

type closer interface{ Close() error }

func inTurn(run *workload.Run, clone func() (closer, error)) {
	var living []closer
	discard := func() error {
		var errs []error
		for _, c := range living {
			errs = append(errs, c.Close())
		}
		living = living[:0]
		return errors.Join(errs...)
	}
	run.OnClose(discard)
	run.Round, run.Reset = clonesAtOnce, discard
	run.Workers = []workload.Op{func(int) error {
		c, err := clone()
		if err != nil {
			return err
		}
		living = append(living, c)
		return nil
	}}
}

func exitByPort(run *workload.Run) error {
	s, err := seal(run)
	if err != nil {
		return err
	}
	c, err := s.clone()
	if err != nil {
		return err
	}
	run.OnClose(c.Close)
	run.Workers = []workload.Op{func(int) error { return runToPort(c.cpu) }}
	return nil
}
