//go:build linux && amd64

package kvm

import (
	"context"
	"sync/atomic"
	"time"
)

// Context is the user state of one guest thread: Regs, and the vector state,
// which stays in the vCPU that ran it last until another thread needs that
// vCPU or someone asks for it.
//
// Its owner calls Run and the other methods from one goroutine at a time; Kick
// may be called from any. Regs may be read and written between Runs.
type Context struct {
	Regs Regs

	p       *Platform
	kicked  atomic.Bool
	running atomic.Bool
	wake    chan struct{} // one token: look again

	done    <-chan struct{} // of the context.Context of the current Run; owner
	unwatch func() bool     // takes the hook off it; owner

	space   *space // that it ran in last; Platform.mu
	vcpu    *vcpu  // during a Run; Platform.mu
	granted *vcpu  // handed over while waiting; Platform.mu
	asleep  bool   // in sleepLocked; Platform.mu
	home    *vcpu  // that has the vector state; Platform.mu
	xsave   []byte // the vector state when home is nil; Platform.mu
	closed  bool   // Platform.mu
}

// NewContext returns the state of a new program: registers zero, FCW 0x37f,
// MXCSR 0x1f80, vector registers zero. Close releases it.
func (p *Platform) NewContext() *Context {
	c := &Context{p: p, wake: make(chan struct{}, 1), xsave: make([]byte, p.vm.xsaveLen)}
	resetXSave(c.xsave)
	return c
}

// Clone returns a copy, registers and vector state, for the child of a fork. Close
// releases it.
//
// Errors, of XSave too: ErrBusy while it is in a Run; the errno of asking the vCPU that
// has its vector state.
func (c *Context) Clone() (*Context, error) {
	n := c.p.NewContext()
	n.Regs = c.Regs
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.fetchLocked(); err != nil {
		return nil, err
	}
	copy(n.xsave, c.xsave)
	return n, nil
}

// Reset makes vector state and FS and GS bases those of a new program, for
// exec. The other registers are the caller's.
func (c *Context) Reset() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.disownLocked()
	resetXSave(c.xsave)
	c.Regs.FSBase, c.Regs.GSBase = 0, 0
}

// XSave returns a copy of the vector state: an XSAVE image in the standard
// format, for a signal frame.
func (c *Context) XSave() ([]byte, error) {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if err := c.fetchLocked(); err != nil {
		return nil, err
	}
	return append([]byte(nil), c.xsave...), nil
}

// SetXSave replaces the vector state by an image that XSave returned; the guest
// may have written to it meanwhile: state that the guest has not, and reserved
// bits, are dropped. A wrong length is unix.EINVAL.
func (c *Context) SetXSave(x []byte) error {
	if err := checkXSaveLen(len(x), c.p.vm.xsaveLen); err != nil {
		return err
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.vcpu != nil {
		return opError("SetXSave", ErrBusy)
	}
	c.disownLocked()
	copy(c.xsave, x)
	cleanXSave(c.xsave, c.p.sys.xcr0)
	return nil
}

// Close releases what the Context holds of the Platform. Closing twice is fine.
func (c *Context) Close() {
	if c.unwatch != nil {
		c.unwatch()
		c.unwatch, c.done = nil, nil
	}
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	c.closed = true
	c.disownLocked()
	c.leaveSpaceLocked()
}

func (c *Context) leaveSpaceLocked() {
	if c.space != nil {
		c.p.dropLocked(c.space)
		c.space = nil
	}
}

// Kick makes a Run in progress, or else the next, return ExitKicked; an exit
// that the guest reached first is returned first. Safe for concurrent use.
func (c *Context) Kick() {
	c.kicked.Store(true)
	c.poke()
}

// poke has a Run in progress look again at what it was told.
func (c *Context) poke() {
	c.p.mu.Lock()
	defer c.p.mu.Unlock()
	if c.vcpu != nil {
		c.vcpu.kick()
	}
	c.wakeUp()
}

// told reports whether the Context's Run is to return.
func (c *Context) told() bool {
	if c.kicked.Load() {
		return true
	}
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// watch has ctx's end poke the Run. The hook stays on ctx until a Run with
// another one, since putting it there allocates.
func (c *Context) watch(ctx context.Context) {
	if ctx.Done() == c.done {
		return
	}
	if c.unwatch != nil {
		c.unwatch()
		c.unwatch = nil
	}
	if c.done = ctx.Done(); c.done != nil {
		c.unwatch = context.AfterFunc(ctx, c.poke)
	}
}

func (c *Context) wakeUp() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// sleepLocked waits, without Platform.mu, for a token. There may be one for
// no reason: the caller looks again.
func (p *Platform) sleepLocked(c *Context) {
	c.asleep = true
	p.mu.Unlock()
	<-c.wake
	p.mu.Lock()
	c.asleep = false
}

// dozeLocked is sleepLocked for at most d.
func (p *Platform) dozeLocked(c *Context, d time.Duration) {
	c.asleep = true
	p.mu.Unlock()
	t := time.NewTimer(d)
	select {
	case <-c.wake:
	case <-t.C:
	}
	t.Stop()
	p.mu.Lock()
	c.asleep = false
}

// fetchLocked brings the vector state home from the vCPU that has it. The vCPU
// goes on having it too.
//
// Preconditions:
//   - the Context is not in a Run, so that the vCPU, which would have lost the
//     state to any other Context, is not in KVM_RUN.
func (c *Context) fetchLocked() error {
	if c.vcpu != nil {
		return opError("vector state", ErrBusy)
	}
	if c.home != nil {
		if err := c.home.saveVector(c.xsave); err != nil {
			return err
		}
	}
	return nil
}

// disownLocked makes xsave the one place of the vector state, whatever is in it.
func (c *Context) disownLocked() {
	if c.home != nil {
		c.home.owner = nil
		c.home = nil
	}
}
