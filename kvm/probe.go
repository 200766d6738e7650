//go:build linux && amd64

package kvm

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// traits is what a host's KVM does where KVMs differ.
type traits struct {
	syscall    syscallWay
	invalidate invalidateWay
}

// syscallWay is how SYSCALL of ring 3 arrives.
type syscallWay uint8

const (
	byPort  syscallWay = iota // in ring 0, as documented
	byFault                   // in ring 3 at LSTAR, which faults: #PF, error 0x15, CR2 and RIP LSTAR
)

func (w syscallWay) String() string { return [...]string{"ring 0", "a fault at LSTAR"}[w] }

// invalidateWay is what makes a vCPU see that a present PTE was rewritten.
type invalidateWay uint8

const (
	byFlush    invalidateWay = iota // a load of CR3: only TLBs cache translations
	byDontNeed                      // MADV_DONTNEED of the frame in the slot's mapping
	byProtect                       // mprotect there, to read-only and back
	byZap                           // deleting a slot, which drops everything
)

func (w invalidateWay) String() string {
	return [...]string{"TLB flush", "MADV_DONTNEED", "mprotect pair", "slot deletion"}[w]
}

// probe finds out what this host's KVM does, once per System.
func (s *System) probe(p *Platform) (traits, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.probed {
		return s.traits, nil
	}
	g, err := newProbe(p)
	if err != nil {
		return traits{}, opError("probe", err)
	}
	defer g.close()
	if err := g.syscallArrives(); err != nil {
		return traits{}, opError("probe", err)
	}
	if err := g.staleHeals(); err != nil {
		return traits{}, opError("probe", err)
	}
	s.traits, s.probed = p.traits, true
	return s.traits, nil
}

// probeCode reads a word for ever:
//
//	1:	mov (%rdi), %rax
//		syscall
//		jmp 1b
var probeCode = []byte{0x48, 0x8b, 0x07, 0x0f, 0x05, 0xeb, 0xf9}

const (
	probeCodeVA addr.GVA = 0x400000
	probeDataVA addr.GVA = 0x401000 // and the pages behind it: each round has its own

	probeRounds = 2
	probeA      = 0xaaaa
	probeB      = 0xbbbb
)

// probeGuest is a guest of a page of code and of one of data for each round,
// over tables of supervisor frames, before there is any address space.
type probeGuest struct {
	p      *Platform
	c      *Context
	frames []addr.PFN // root, PDPT, PD, PT, code, data A, data B
	round  int        // which page of data is used
}

// Root implements rooted.
func (g *probeGuest) Root() addr.PFN { return g.frames[0] }

func newProbe(p *Platform) (*probeGuest, error) {
	frames, err := p.mem.AllocSupervisor(7)
	if err != nil {
		return nil, err
	}
	// They stay the Platform's until its VM is no more: KVM may remember some of
	// them as tables, and to make it forget costs more than they do.
	p.upper.frames = append(p.upper.frames, frames...)
	g := &probeGuest{p: p, c: p.NewContext(), frames: frames}
	const table = pteP | pteW | pteU | pteA
	putPTE(g.bytes(0), upperIndex, p.upper.pdpt, pteP|pteW|pteA)
	putPTE(g.bytes(0), 0, frames[1], table)
	putPTE(g.bytes(1), 0, frames[2], table)
	putPTE(g.bytes(2), int(probeCodeVA>>21&511), frames[3], table)
	putPTE(g.bytes(3), 0, frames[4], pteP|pteU|pteA)
	copy(g.bytes(4), probeCode)
	binary.LittleEndian.PutUint64(g.bytes(5), probeA)
	binary.LittleEndian.PutUint64(g.bytes(6), probeB)
	g.point(5)
	return g, nil
}

func (g *probeGuest) bytes(i int) []byte { return g.p.mem.SupervisorBytes(g.frames[i]) }

// data is the address of the page of data.
func (g *probeGuest) data() addr.GVA { return probeDataVA + addr.GVA(g.round)<<addr.PageShift }

// point makes the page of data lead to a frame.
func (g *probeGuest) point(i int) {
	putPTE(g.bytes(3), int(g.data()>>addr.PageShift&511), g.frames[i], pteP|pteU|pteA|pteD|pteNX)
}

// run runs the guest from its beginning to its first exit.
func (g *probeGuest) run() (Exit, error) {
	g.c.Regs = Regs{RIP: uint64(probeCodeVA), RDI: uint64(g.data())}
	return g.p.runAs(context.Background(), g, g.c)
}

// read returns what the guest reads in the data page.
func (g *probeGuest) read() (uint64, error) {
	e, err := g.run()
	if err == nil && e.Kind != ExitSyscall {
		err = fmt.Errorf("%w: a SYSCALL was wanted, not %v", ErrNotSupported, e)
	}
	return g.c.Regs.RAX, err
}

// syscallArrives sets traits.syscall.
func (g *probeGuest) syscallArrives() error {
	lstar := stubGVA + stubSyscall
	e, err := g.run()
	switch {
	case err != nil:
		return err
	case e.Kind == ExitSyscall:
		g.p.traits.syscall = byPort
	case e.Kind == ExitPageFault && e.Addr == lstar && g.c.Regs.RIP == uint64(lstar):
		g.p.traits.syscall = byFault
	default:
		return fmt.Errorf("%w: SYSCALL arrives as %v", ErrNotSupported, e)
	}
	return nil
}

// staleHeals sets traits.invalidate to the cheapest way that this host needs:
// the first under which a rewritten PTE is never read as it was before.
//
// Where SYSCALL does not reach ring 0, KVM runs ring 3 on tables of its own
// making, and a flush of TLBs need not be tried.
func (g *probeGuest) staleHeals() error {
	way := byFlush
	if g.p.traits.syscall == byFault {
		way = byDontNeed
	}
	for ; way <= byZap; way++ {
		g.p.traits.invalidate = way
		healed, err := g.heals()
		if err != nil {
			return err
		}
		if healed {
			return nil
		}
	}
	return fmt.Errorf("%w: a rewritten page table entry stays stale", ErrNotSupported)
}

// heals rewrites a PTE under the vCPU, invalidates, and looks. Each round has a
// page that was never mapped before, so that nothing can be stale but by it.
func (g *probeGuest) heals() (bool, error) {
	for range probeRounds {
		g.round++
		g.point(5)
		for range 2 {
			if got, err := g.read(); err != nil || got != probeA {
				return false, orWrong(err, got, probeA)
			}
		}
		g.point(6)
		g.p.invalidate(g, g.frames[5:6])
		got, err := g.read()
		if err != nil || got == probeA {
			return false, err
		}
		if got != probeB {
			return false, orWrong(nil, got, probeB)
		}
	}
	return true, nil
}

func orWrong(err error, got, want uint64) error {
	if err != nil {
		return err
	}
	return fmt.Errorf("%w: the guest reads %#x where %#x is", ErrNotSupported, got, want)
}

// close lets go of the vCPU.
func (g *probeGuest) close() { g.c.Close() }
