//go:build linux && amd64

package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/arch/x86/x86asm"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

var (
	errPowerOff = errors.New("the guest has switched the machine off")
	// errEmulation: an instruction that this host's KVM does not run.
	errEmulation = errors.New("this host's KVM cannot run an instruction of the kernel")
	errTriple    = errors.New("the guest has died of a triple fault")
)

// cpu is a vCPU and what it does next.
type cpu struct {
	*kvm.VCPU
	pc    *pc
	exits atomic.Uint64

	// A sample is asked for by ask and a kick; the goroutine that runs the vCPU
	// takes it, since nobody else may look at a vCPU between an exit and its answer.
	ask    atomic.Bool
	mu     sync.Mutex
	sample sample // mu
}

// sample is where a vCPU is.
type sample struct {
	n       uint64 // how many were taken
	regs    kvm.GeneralRegs
	mpState kvm.MPState
}

// run runs the vCPU until ctx ends or the machine does, and returns why.
func (c *cpu) run(ctx context.Context) error {
	for {
		e, err := c.Run(ctx)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return fmt.Errorf("vCPU %d: %w", c.ID(), err)
		case e.Kind == kvm.VMExitKicked:
			if err := c.takeSample(); err != nil {
				return err
			}
			continue
		}
		c.exits.Add(1)
		if err := c.handle(e); err != nil {
			return err
		}
	}
}

func (c *cpu) handle(e kvm.VCPUExit) error {
	switch e.Kind {
	case kvm.VMExitIO:
		return c.io(e)
	case kvm.VMExitMMIO:
		if e.Access == guestmem.Read {
			for i := range e.Data {
				e.Data[i] = 0xff // nobody is there
			}
		}
		return nil
	case kvm.VMExitShutdown:
		return fmt.Errorf("%w%s", errTriple, c.where())
	case kvm.VMExitSystemEvent:
		return errPowerOff
	case kvm.VMExitInternalError:
		return c.internalError(e)
	}
	return fmt.Errorf("vCPU %d: %v%s", c.ID(), e, c.where())
}

// io is an access to ports: each byte of an item has its own.
func (c *cpu) io(e kvm.VCPUExit) error {
	for i := range e.Data {
		port := e.Port + uint16(i%int(e.Size))
		if e.Access == guestmem.Read {
			v, err := c.pc.ports.In(port)
			if err != nil {
				return err
			}
			e.Data[i] = v
		} else if err := c.pc.ports.Out(port, e.Data[i]); err != nil {
			return err
		}
	}
	return nil
}

// emulationFailed is KVM_INTERNAL_ERROR_EMULATION.
const emulationFailed = 1

func (c *cpu) internalError(e kvm.VCPUExit) error {
	if e.Code != emulationFailed {
		return fmt.Errorf("vCPU %d: %v%s", c.ID(), e, c.where())
	}
	code := e.Instruction
	if len(code) == 0 {
		code = c.code()
	}
	return fmt.Errorf("%w: %s%s\nthis host emulates the kernel's ring (it is itself a guest without nested paging), and its emulator is incomplete; the same kernel boots where ring 0 runs on the processor",
		errEmulation, instruction(code), c.where())
}

// instruction shows the instruction that bytes begin with.
func instruction(code []byte) string {
	if len(code) == 0 {
		return "its bytes are not known"
	}
	i, err := x86asm.Decode(code, 64)
	if err != nil {
		return "the bytes " + hex.EncodeToString(code)
	}
	return fmt.Sprintf("%s (%x)", x86asm.GNUSyntax(i, 0, nil), code[:i.Len])
}

// code returns the bytes at RIP, where that is mapped to itself.
func (c *cpu) code() []byte {
	r, err := c.Regs()
	if err != nil {
		return nil
	}
	b := make([]byte, 15)
	n, _ := c.pc.memory.ReadAt(b, addr.GPA(r.RIP))
	return b[:n]
}

// where says where the vCPU is, for an error.
func (c *cpu) where() string {
	r, err := c.Regs()
	if err != nil {
		return fmt.Sprintf(" (vCPU %d: %v)", c.ID(), err)
	}
	return fmt.Sprintf(" (vCPU %d at rip %#x, rsp %#x)", c.ID(), r.RIP, r.RSP)
}

// takeSample is what a kick is for.
func (c *cpu) takeSample() error {
	if !c.ask.Swap(false) {
		return nil
	}
	r, err := c.Regs()
	if err != nil {
		return err
	}
	mp, err := c.MPState()
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sample = sample{n: c.sample.n + 1, regs: r, mpState: mp}
	return nil
}
