//go:build linux && amd64

package kernel

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vdso"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/kvm"
)

// Where the vDSO lies: below everything that mmap chooses for itself, alone
// under its entry of the root table, so that processes have the same tables
// there for as long as they do not write to the last page.
const (
	vvarAddr = 0x7f7f_ffff_c000
	vdsoAddr = vvarAddr + pageSize

	// SyscallEntry is where the platform's SYSCALL is to lead: see actiontable.go.
	SyscallEntry = vdsoAddr + pageSize
	actionsAddr  = SyscallEntry + pageSize
)

// clocks is the vDSO with who keeps its data. Address spaces begin as forks of
// template, which has both pages, those of the system call's entry, and nothing
// else: the clocks' data is a shared page, so that a store in writer's space is
// seen by all.
type clocks struct {
	*timekeeper
	template *guestmem.AddressSpace
	writer   *guestmem.AddressSpace // a fork too: one that nothing forks from
	done     chan struct{}
	stopped  chan struct{}
}

// newClocks sets the vDSO up, or returns nil where the host's counter is no
// clock or there is no memory: programs do without.
func newClocks(k *Kernel) *clocks {
	if !haveCounter() {
		return nil
	}
	c, err := buildClocks(k)
	if err != nil {
		return nil
	}
	go func() {
		defer close(c.stopped)
		c.run(c.done, k.fail)
	}()
	return c
}

func buildClocks(k *Kernel) (*clocks, error) {
	c := &clocks{done: make(chan struct{}), stopped: make(chan struct{})}
	if err := c.build(k); err != nil {
		return nil, errors.Join(err, c.closeSpaces())
	}
	return c, nil
}

func (c *clocks) build(k *Kernel) (err error) {
	first := readClocks()
	if c.template, err = k.Memory.NewAddressSpace(guestmem.SpaceOptions{}); err != nil {
		return err
	}
	if err := mapClocks(k.ctx, c.template); err != nil {
		return err
	}
	if err := k.mapEntry(c.template); err != nil {
		return err
	}
	if c.writer, err = c.template.Fork(); err != nil {
		return err
	}
	page := clockWriter{k.ctx, c.writer}
	if err := page.store32(vdso.Seq, 0); err != nil { // its own tables, now rather than later
		return err
	}
	if err := c.template.Protect(vvarAddr, pageSize, guestmem.ProtRead); err != nil {
		return err
	}
	offset, err := counterOffset(k)
	if err != nil {
		return err
	}
	c.timekeeper, err = newTimekeeper(page, offset, first, readClocks())
	return err
}

// mapClocks maps both pages and faults them in, which no process has to do again.
func mapClocks(ctx context.Context, as *guestmem.AddressSpace) error {
	const fixed = guestmem.MapAnonymous | guestmem.MapFixed
	const rw = guestmem.ProtRead | guestmem.ProtWrite
	for _, o := range []guestmem.MapOptions{
		{Addr: vvarAddr, Length: pageSize, Prot: rw, Flags: fixed | guestmem.MapShared},
		{Addr: vdsoAddr, Length: pageSize, Prot: rw, Flags: fixed | guestmem.MapPrivate, Kind: guestmem.KindVDSO},
	} {
		if _, err := as.Map(ctx, o); err != nil {
			return err
		}
	}
	if len(vdso.ELF) > pageSize {
		return fmt.Errorf("the vDSO is %d bytes, more than a page", len(vdso.ELF))
	}
	if _, err := as.WriteAt(ctx, vdso.ELF, vdsoAddr); err != nil {
		return err
	}
	if err := as.Fault(ctx, vvarAddr, guestmem.ProtWrite); err != nil {
		return err
	}
	if err := as.Protect(vdsoAddr, pageSize, guestmem.ProtRead|guestmem.ProtExec); err != nil {
		return err
	}
	return as.Fault(ctx, vdsoAddr, guestmem.ProtExec)
}

func (c *clocks) close() error {
	close(c.done)
	<-c.stopped
	return c.closeSpaces()
}

func (c *clocks) closeSpaces() error {
	var errs []error
	for _, as := range []*guestmem.AddressSpace{c.writer, c.template} {
		if as != nil {
			errs = append(errs, as.Close())
		}
	}
	return errors.Join(errs...)
}

type clockWriter struct {
	ctx context.Context
	as  *guestmem.AddressSpace
}

func (w clockWriter) store32(offset uint64, v uint32) error {
	return w.as.Store32(w.ctx, addr.GVA(vvarAddr+offset), v)
}

func (w clockWriter) store64(offset uint64, v uint64) error {
	return w.as.Store64(w.ctx, addr.GVA(vvarAddr+offset), v)
}

// newSpace returns the address space that a program is loaded into.
func (k *Kernel) newSpace() (*guestmem.AddressSpace, error) {
	if k.clocks == nil {
		return k.Memory.NewAddressSpace(guestmem.SpaceOptions{})
	}
	return k.clocks.template.Fork()
}

// checkClockPage refuses what would let one process change everybody's clock.
func checkClockPage(start, length uint64, prot guestmem.Prot) error {
	if prot&guestmem.ProtWrite != 0 && start < vvarAddr+pageSize && start+length > vvarAddr {
		return unix.EACCES
	}
	return nil
}

// counterProbe reads the counter and tells: lfence; rdtsc; syscall; jmp back.
var counterProbe = []byte{0x0f, 0xae, 0xe8, 0x0f, 0x31, 0x0f, 0x05, 0xeb, 0xf7}

// counterOffset measures the guest's counter less the host's: between readings
// of the host's, before and after, lies one of the guest's. Of what several
// tries leave possible it takes 0, if that is, or else the middle; then no
// reading is off by more than half of the shortest way into the guest and back,
// and a clock read inside and one read outside still are in the right order,
// since the way between them takes that long.
//
//	host   h0 ───────────────── h1     g - h1 ≤ offset ≤ g - h0
//	guest       └─ g (rdtsc) ─┘
func counterOffset(k *Kernel) (int64, error) {
	as, err := k.Memory.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		return 0, err
	}
	cpu := k.Platform.NewContext()
	low, high, err := probeCounter(k, as, cpu)
	cpu.Close()
	if err := errors.Join(err, as.Close()); err != nil {
		return 0, err
	}
	switch {
	case low > high:
		return 0, errors.New("the guest's counter does not keep step with the host's")
	case low <= 0 && high >= 0:
		return 0, nil
	}
	return low + (high-low)/2, nil
}

func probeCounter(k *Kernel, as *guestmem.AddressSpace, cpu *kvm.Context) (low, high int64, err error) {
	const at, tries = 0x10000, 3
	if _, err := as.Map(k.ctx, guestmem.MapOptions{
		Addr: at, Length: pageSize, Prot: guestmem.ProtRead | guestmem.ProtWrite | guestmem.ProtExec,
		Flags: guestmem.MapPrivate | guestmem.MapFixed | guestmem.MapAnonymous,
	}); err != nil {
		return 0, 0, err
	}
	if _, err := as.WriteAt(k.ctx, counterProbe, at); err != nil {
		return 0, 0, err
	}
	cpu.Regs.RIP = at
	low, high = -1<<63, 1<<63-1
	for n := 0; n < tries; {
		before := counter()
		exit, err := k.Platform.Run(k.ctx, as, cpu)
		after := counter()
		switch {
		case err != nil:
			return 0, 0, err
		case exit.Kind == kvm.ExitPageFault:
			if err := as.Fault(k.ctx, exit.Addr, exit.Access); err != nil {
				return 0, 0, err
			}
		case exit.Kind == kvm.ExitSyscall:
			guest := cpu.Regs.RDX<<32 | cpu.Regs.RAX&0xffff_ffff
			low, high = max(low, int64(guest-after)), min(high, int64(guest-before))
			n++
		case exit.Kind != kvm.ExitKicked:
			return 0, 0, fmt.Errorf("the probe of the counter ended in %v", exit)
		}
	}
	return low, high, nil
}
