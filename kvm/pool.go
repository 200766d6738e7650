//go:build linux && amd64

package kvm

import (
	"slices"
	"time"
)

// slice is how long a vCPU may keep one thread while others wait for a vCPU.
// Below it a switch (two XSAVE images, a new root: some 20 µs, and hundreds
// where its pages must fault in again) would weigh; above it a guest of spinning threads
// stands still.
const slice = 10 * time.Millisecond

// acquire takes a vCPU for c to run as on: the one that has its vector state,
// else a free one, else a new one, else the one that rested longest; else it
// waits. It returns nil if c was told to stop while it waited.
func (p *Platform) acquire(c *Context, as rooted) (*vcpu, *space, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || c.closed {
		return nil, nil, opError("Run", ErrClosed)
	}
	v, err := p.pickLocked(c)
	if err != nil {
		return nil, nil, err
	}
	if v == nil {
		if v = p.waitLocked(c); v == nil {
			return nil, nil, nil
		}
	}
	if err := p.takeLocked(v, c, as); err != nil {
		return nil, nil, err
	}
	return v, v.space, nil
}

// pickLocked returns a vCPU that is idle, nil if none is and no more may be made.
func (p *Platform) pickLocked(c *Context) (*vcpu, error) {
	if c.home != nil && !c.home.busy {
		return c.home, nil
	}
	var oldest *vcpu
	for _, v := range p.vcpus {
		if v.busy {
			continue
		}
		if v.owner == nil {
			return v, nil
		}
		if oldest == nil || v.used < oldest.used {
			oldest = v
		}
	}
	if len(p.vcpus) < p.maxVCPUs {
		v, err := p.growLocked()
		if err == nil || len(p.vcpus) == 0 {
			return v, err
		}
		// Out of descriptors or memory: make do with what there is.
		p.maxVCPUs = len(p.vcpus)
	}
	return oldest, nil
}

// growLocked makes another vCPU.
func (p *Platform) growLocked() (*vcpu, error) {
	if p.unfinished == nil {
		id := len(p.vcpus)
		p.unfinished = newVCPU(p.vm, id, p.upper.addVCPU(id), p.lstar)
	}
	v := p.unfinished
	if err := v.create(); err != nil {
		return nil, err
	}
	p.unfinished = nil
	p.vcpus = append(p.vcpus, v)
	return v, nil
}

// waitLocked waits until a vCPU is handed over. A vCPU that runs one thread for
// longer than a slice meanwhile is told to give it up; who is first in the queue
// sees to that, so that a thousand waiters cost no more than one.
func (p *Platform) waitLocked(c *Context) *vcpu {
	p.waiters = append(p.waiters, c)
	for c.granted == nil {
		if c.told() || p.closed {
			if i := slices.Index(p.waiters, c); i >= 0 {
				p.waiters = slices.Delete(p.waiters, i, i+1)
				p.nudgeLocked()
			}
			return nil
		}
		if p.waiters[0] != c {
			p.sleepLocked(c)
			continue
		}
		p.dozeLocked(c, slice)
		if c.granted == nil && !c.told() {
			p.preemptLocked()
		}
	}
	v := c.granted
	c.granted = nil
	return v
}

// nudgeLocked has whoever is first in the queue now take up that duty.
func (p *Platform) nudgeLocked() {
	if len(p.waiters) > 0 {
		p.waiters[0].wakeUp()
	}
}

// preemptLocked tells the vCPU whose thread has run longest to give it up.
func (p *Platform) preemptLocked() {
	var oldest *vcpu
	for _, v := range p.vcpus {
		if v.holder != nil && !v.preempt.Load() && (oldest == nil || v.used < oldest.used) {
			oldest = v
		}
	}
	if oldest != nil && time.Since(oldest.taken) >= slice {
		oldest.preempt.Store(true)
		oldest.kick()
	}
}

// takeLocked makes v c's, with c's vector state in it.
func (p *Platform) takeLocked(v *vcpu, c *Context, as rooted) error {
	p.clock++
	v.busy, v.used, v.taken = true, p.clock, time.Now()
	v.preempt.Store(false)
	if v.broken {
		if err := v.reset(); err != nil {
			p.freeLocked(v)
			return err
		}
	}
	if err := p.moveVectorLocked(v, c); err != nil {
		p.freeLocked(v)
		return err
	}
	if c.space == nil || c.space.as != as {
		s := p.spaceLocked(as)
		s.refs++
		c.leaveSpaceLocked()
		c.space = s
	}
	v.space = c.space
	v.holder, c.vcpu = c, v
	return nil
}

// moveVectorLocked gives v the vector state of c, and saves whose it had.
func (p *Platform) moveVectorLocked(v *vcpu, c *Context) error {
	if v.owner == c {
		return nil
	}
	if old := v.owner; old != nil {
		// Where that fails the state stays where it is: it is not c's to lose.
		if err := v.saveVector(old.xsave); err != nil {
			return err
		}
		old.disownLocked()
	}
	if err := c.fetchLocked(); err != nil {
		return err
	}
	c.disownLocked()
	if err := v.loadVector(c.xsave); err != nil {
		return err
	}
	v.owner, c.home = c, v
	v.scrub = v.segs
	return nil
}

// release gives v back, or to who has waited longest.
func (p *Platform) release(v *vcpu, c *Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v.holder, c.vcpu = nil, nil
	p.freeLocked(v)
}

func (p *Platform) freeLocked(v *vcpu) {
	if len(p.waiters) == 0 {
		v.busy = false
		return
	}
	next := p.waiters[0]
	p.waiters = slices.Delete(p.waiters, 0, 1)
	next.granted = v
	next.wakeUp()
	p.nudgeLocked()
}
