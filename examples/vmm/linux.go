//go:build linux && amd64

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/guestmm/guestmm/examples/vmm/internal/boot"
	"github.com/guestmm/guestmm/examples/vmm/internal/devices"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

// pc is a virtual machine that runs a kernel.
type pc struct {
	memory *guestmem.Memory
	vm     *kvm.VM
	cpus   []*cpu
	ports  *devices.Ports
	log    *bootLog
}

// bootLinux boots a kernel, and returns when its machine is reset or off.
func bootLinux(ctx context.Context, o *options, stdin *os.File, stdout, stderr io.Writer) (err error) {
	k, bo, err := readKernel(o)
	if err != nil {
		return err
	}
	sys, err := openKVM()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sys.Close()) }()
	p, err := newPC(sys, k, bo, stdout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	return p.run(ctx, o.patience, stdin, stderr)
}

// readKernel reads the files, and finds out whether they go together, before there is
// a machine.
func readKernel(o *options) (*boot.Kernel, boot.Options, error) {
	bo := boot.Options{MemoryBytes: o.memory, CPUs: o.cpus, CommandLine: o.append}
	file, err := readFile(o.kernel, o.memory)
	if err != nil {
		return nil, bo, fmt.Errorf("-kernel: %w", err)
	}
	k, err := boot.Parse(file)
	if err != nil {
		return nil, bo, fmt.Errorf("-kernel %s: %w", o.kernel, err)
	}
	if o.initrd != "" {
		if bo.Initrd, err = readFile(o.initrd, o.memory); err != nil {
			return nil, bo, fmt.Errorf("-initrd: %w", err)
		}
	}
	if err := k.Check(bo); err != nil {
		return nil, bo, fmt.Errorf("-kernel %s: %w", o.kernel, err)
	}
	return k, bo, nil
}

// readFile reads a regular file that is no larger than the guest's memory.
func readFile(name string, limit uint64) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a regular file", name)
	case info.Size() == 0:
		return nil, fmt.Errorf("%s is empty", name)
	case uint64(info.Size()) > limit:
		return nil, fmt.Errorf("%s: %w: %d bytes, the guest has %d (-mem)", name, boot.ErrNoRoom, info.Size(), limit)
	}
	return os.ReadFile(name)
}

func newPC(sys *kvm.System, k *boot.Kernel, bo boot.Options, console io.Writer) (_ *pc, err error) {
	p := &pc{log: &bootLog{format: k.Format, out: console}}
	if p.memory, err = guestmem.NewMemory(guestmem.MemoryOptions{}); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	ram, err := boot.RAM(bo.MemoryBytes)
	if err != nil {
		return nil, err
	}
	for _, r := range ram {
		if _, err := p.memory.AddRegion(guestmem.RegionOptions{Name: "ram", Base: r.Base, Size: r.Size}); err != nil {
			return nil, err
		}
	}
	if err := k.Load(p.memory, bo); err != nil {
		return nil, err
	}
	long, err := kvm.SetupLongMode(p.memory, kvm.LongModeOptions{Base: boot.LongModeBase})
	if err != nil {
		return nil, err
	}
	p.vm, err = sys.NewVM(p.memory, kvm.VMOptions{IRQChip: kvm.IRQChipKernel, PIT: kvm.PITKernel, VCPUs: bo.CPUs})
	if err != nil {
		return nil, err
	}
	serial := devices.NewSerial(p.log, func(isHigh bool) error {
		level := kvm.IRQLow
		if isHigh {
			level = kvm.IRQHigh
		}
		return p.vm.SetIRQLine(devices.SerialIRQ, level)
	})
	p.ports = &devices.Ports{Serial: serial, Now: time.Now}
	for id := range bo.CPUs {
		v, err := p.vm.NewVCPU(id)
		if err != nil {
			return nil, fmt.Errorf("vCPU %d of %d: %w", id, bo.CPUs, err)
		}
		p.cpus = append(p.cpus, &cpu{VCPU: v, pc: p})
	}
	// The others wait for the kernel to start them.
	return p, long.Enter(p.cpus[0].VCPU, kvm.Ring0, kvm.GeneralRegs{
		RIP: k.Entry, RSI: uint64(boot.ParamsBase), RSP: uint64(boot.StackTop),
	})
}

func (p *pc) close() error {
	var err error
	if p.vm != nil {
		err = p.vm.Close()
	}
	return errors.Join(err, p.memory.Close())
}

// run runs every vCPU until one of them, the console or the watchdog ends it.
func (p *pc) run(ctx context.Context, patience time.Duration, stdin *os.File, stderr io.Writer) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	console, err := openConsole(stdin, p.ports.Serial)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, c := range p.cpus {
		wg.Go(func() { end(c.run(ctx)) })
	}
	wg.Go(func() { console.read(ctx, end) })
	wg.Go(func() { p.watch(ctx, end, patience) })
	<-ctx.Done()
	p.ports.Serial.Close()
	wg.Wait()
	err = console.close()
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, devices.ErrReset), errors.Is(cause, errPowerOff), errors.Is(cause, errEscape):
		return err
	case errors.Is(cause, errInterrupted):
		return errors.Join(cause, err)
	default:
		return errors.Join(cause, fmt.Errorf("how far it got: %s", p.log), err)
	}
}
