//go:build linux && amd64

package kvm

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"golang.org/x/sys/unix"
)

// Platform runs guest threads over one Memory: a VM with slots over its regions, the
// supervisor half of every address space, and a pool of vCPUs.
type Platform struct {
	sys        *System
	memory     *guestmem.Memory // nil in tests of the lower layer; immutable
	vm         *vm
	mem        backing
	region     region
	spare      spareSlot
	slots      *SlotTable // of the other regions; immutable after NewPlatform
	quarantine quarantine
	traits     traits   // immutable after New
	lstar      addr.GVA // where SYSCALL leads; immutable after New

	stops      atomic.Int32  // open stopAlls; stored under mu
	generation atomic.Uint64 // of TLB contents: see byFlush
	flushed    atomic.Uint64 // generation that every vCPU must have loaded CR3 in

	healing sync.Mutex  // one mustZap or heal at a time
	stale   atomic.Bool // KVM may have translations that a zap failed to drop; stored under healing

	mu         sync.Mutex
	out        *sync.Cond        // a vCPU that someone awaited has left; on mu
	upper      *upper            // guarded by mu
	maxVCPUs   int               // falls if the host has no more; guarded by mu
	vcpus      []*vcpu           // grows only; guarded by mu
	unfinished *vcpu             // the next of them, where making it has failed; guarded by mu
	spaces     map[rooted]*space // guarded by mu
	waiters    []*Context        // for a vCPU, first come first served; guarded by mu
	clock      uint64            // guarded by mu
	closed     bool              // guarded by mu
}

// NewPlatform makes the VM, one memory slot over each of the memory's regions, and the
// supervisor half of its address spaces (root entry 511), finds out once per
// System how this host's KVM behaves, and becomes the memory's view.
//
// Call it before the memory's first address space, and Close it after the
// last. The System may be closed afterwards.
//
// Errors: guestmem.ErrBusy if the memory has an address space or a view;
// guestmem.ErrNoMemory; ErrNotSupported if this KVM lacks something;
// unix.EINVAL for more vCPUs than it allows.
func NewPlatform(s *System, m *guestmem.Memory, o PlatformOptions) (*Platform, error) {
	r := m.Region()
	if r == nil {
		return nil, opError("NewPlatform", fmt.Errorf("the memory has no frame pool: %w", ErrNotSupported))
	}
	p, err := newPlatform(s, m, region{base: r.Base(), size: r.Size(), slot: r.Slot()}, o)
	if err != nil {
		return nil, err
	}
	p.memory = m
	if err := m.SetSupervisorTable(upperIndex, p.upper.pdpt); err != nil {
		return nil, errors.Join(opError("NewPlatform", err), p.close())
	}
	if err := p.listen(); err != nil {
		return nil, errors.Join(opError("NewPlatform", err), p.close())
	}
	if err := m.AttachView(view{p}); err != nil {
		m.DetachListener(platformSlots{p})
		return nil, errors.Join(opError("NewPlatform", err), p.close())
	}
	return p, nil
}

// Run runs the guest thread c in as until its next event: a system call, a page
// fault, another exception, a kick, or the end of ctx. Registers go in from
// c.Regs and are there again when it returns, complete, whatever the event; what
// the caller changes in them takes effect with the next Run.
//
// Run takes a vCPU from the pool, and waits while MaxVCPUs other threads are in
// the guest; a thread that spins has to let others have its turn. It does not
// allocate once a Context has run with a given ctx.
//
// The end of ctx is ExitKicked with the cause as error; registers are complete
// then too. Other errors: ErrBusy if c is in a Run already; ErrClosed;
// ErrGuestState if the guest cannot go on; guestmem.ErrBus, with unix.EFAULT, when
// what is behind the slot is not there, such as a file of the host that was cut
// short: Linux would send SIGBUS; the errno of KVM_RUN. After
// them c.Regs is what it was when the Run began, or at an event since that Run did
// not return for; the Platform and other Contexts are unharmed.
//
// Safe for concurrent use with different Contexts. A goroutine that does
// nothing but Run does well to lock itself to its OS thread: older kernels wait
// for an RCU grace period whenever a vCPU changes threads.
func (p *Platform) Run(ctx context.Context, as *guestmem.AddressSpace, c *Context) (Exit, error) {
	return p.runAs(ctx, as, c)
}

// Close ends the Platform and gives its frames back. Closing twice is fine.
//
// Errors: ErrBusy, with nothing changed, if a Run is in progress or the memory
// has an address space; the errno of munmap or close, with the Platform closed and
// the rest left to another Close.
func (p *Platform) Close() error {
	p.mu.Lock()
	if p.closed {
		defer p.mu.Unlock()
		return p.closeHostLocked()
	}
	p.mu.Unlock()
	if err := p.idle(); err != nil {
		return err
	}
	if err := p.memory.DetachView(); err != nil {
		return opError("Close", err)
	}
	p.memory.DetachListener(platformSlots{p})
	return p.close()
}

// newPlatform is NewPlatform over any backing.
func newPlatform(s *System, mem backing, r region, o PlatformOptions) (*Platform, error) {
	if o.MaxVCPUs <= 0 {
		o.MaxVCPUs = runtime.GOMAXPROCS(0)
	}
	if o.Quarantine <= 0 {
		o.Quarantine = int(max(64, min(4096, r.size/addr.PageSize/16)))
	}
	machine, err := s.createVM()
	if err != nil {
		return nil, err
	}
	p := &Platform{sys: s, vm: machine, mem: mem, region: r, lstar: SyscallGate, maxVCPUs: o.MaxVCPUs, spaces: map[rooted]*space{}}
	p.out = sync.NewCond(&p.mu)
	p.quarantine.limit = o.Quarantine
	if err := p.build(); err != nil {
		return nil, errors.Join(err, p.close())
	}
	if err := p.enterAt(o.SyscallEntry); err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// enterAt has SYSCALL lead to the guest's own code, if the host lets it.
//
// Preconditions: no vCPU runs.
func (p *Platform) enterAt(entry addr.GVA) error {
	if entry >= guestmem.DefaultHighest {
		return opError("NewPlatform", fmt.Errorf("%w: SYSCALL entry %v is not a guest's address", unix.EINVAL, entry))
	}
	if entry == 0 || p.traits.syscall != byFault {
		return nil
	}
	p.lstar = entry
	for _, v := range p.vcpus { // the probe's
		v.lstar = entry
		if err := v.setMSRs(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Platform) build() (err error) {
	if limit, _ := ioctl(p.vm.fd, reqCheckExtension, capMaxVCPUs); limit > 0 && p.maxVCPUs > limit {
		return opError("NewPlatform", fmt.Errorf("%w: %d vCPUs, this KVM allows %d", unix.EINVAL, p.maxVCPUs, limit))
	}
	// KVM's own pages first, where the region leaves them room.
	end := p.region.base + addr.GPA(p.region.size)
	if end <= tssAddr || p.region.base >= tssEnd {
		p.vm.setTSS()
	}
	if err := p.vm.setSlot(0, p.region.base, p.region.size, p.region.slot); err != nil {
		return err
	}
	if err := p.spare.init(p.vm, end); err != nil {
		return err
	}
	if p.upper, err = newUpper(p.mem, p.maxVCPUs); err != nil {
		return opError("NewPlatform", err)
	}
	p.traits, err = p.sys.probe(p)
	return err
}

// SyscallEntry returns where SYSCALL of ring 3 leads: PlatformOptions.SyscallEntry
// where this host uses it, else 0.
func (p *Platform) SyscallEntry() addr.GVA {
	if p.lstar == SyscallGate {
		return 0
	}
	return p.lstar
}

// String says what the probe found out about this host's KVM.
func (p *Platform) String() string {
	return fmt.Sprintf("KVM: SYSCALL arrives by %v, stale translations go by %v", p.traits.syscall, p.traits.invalidate)
}

// idle refuses while a vCPU is in use.
func (p *Platform) idle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, v := range p.vcpus {
		if v.busy {
			return opError("Close", ErrBusy)
		}
	}
	return nil
}

// close releases everything. A Run that comes too late finds the Platform
// closed.
func (p *Platform) close() error {
	if err := p.idle(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	errs := []error{p.closeHostLocked()}
	// Nothing can be cached of a VM that is no more.
	if frames := p.quarantine.takeAll(); len(frames) > 0 {
		p.mem.ReuseTables(frames)
	}
	if p.memory != nil {
		// No root of a later space may lead to frames that are given back here.
		errs = append(errs, p.memory.SetSupervisorTable(upperIndex, 0))
	}
	if p.upper != nil {
		p.upper.free()
	}
	return errors.Join(errs...)
}

// closeHostLocked gives back what is the host's. It may be called again for
// what it could not give back.
func (p *Platform) closeHostLocked() error {
	var errs []error
	for _, v := range p.vcpus {
		errs = append(errs, v.close())
	}
	if p.unfinished != nil {
		errs = append(errs, p.unfinished.close())
	}
	return errors.Join(append(errs, p.vm.close(), p.spare.close())...)
}
