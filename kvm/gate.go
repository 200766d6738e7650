//go:build linux && amd64

package kvm

import (
	"runtime"
	"time"
)

// The gate between vCPUs and those who change what vCPUs walk.
//
// Two flags, each written by one side before it reads the other's (Dekker):
//
//	the vCPU's thread                     Stop
//	  state = in                            stops++
//	  if stops > 0: state = out, park       for each vCPU: if state is in, kick
//	  KVM_RUN ...                           wait until state is out
//	  state = out
//
// Go's atomics are sequentially consistent, so one of the two sees the other:
// either the vCPU finds stops > 0 and does not enter, or Stop finds it in and
// waits. A kick between the check and KVM_RUN is not lost: it stores
// immediate_exit, which KVM_RUN reads after it has begun, and which only the
// thread itself clears, before it checks the flags again.
//
// A vCPU that leaves for another space while Stop waits has left all the same:
// Stop waits for the change of state from awaited, not for the vCPU's rest.

// States of a vCPU.
const (
	stateOut     = 0
	stateIn      = 1 // between the gate and the end of KVM_RUN
	stateAwaited = 2 // in, and someone waits for it to leave
)

// spaceLocked returns what the Platform knows of an address space. It is kept
// while a Context has run in the space last or a Stop is open.
func (p *Platform) spaceLocked(as rooted) *space {
	s := p.spaces[as]
	if s == nil {
		s = &space{as: as}
		// Whatever a vCPU cached of the same root earlier is not to be trusted.
		s.generation.Store(p.generation.Add(1))
		p.spaces[as] = s
	}
	return s
}

func (p *Platform) dropLocked(s *space) {
	if s.refs--; s.refs == 0 {
		delete(p.spaces, s.as)
	}
}

// pass takes the vCPU through the gate, and returns false if c was told to
// stop while it was closed.
func (p *Platform) pass(v *vcpu, s *space, c *Context) bool {
	for {
		v.state.Store(stateIn)
		if s.stops.Load() == 0 && p.stops.Load() == 0 {
			return true
		}
		p.leave(v)
		spin(gateSpin, func() bool { return s.stops.Load() == 0 && p.stops.Load() == 0 })
		if !p.park(s, c) {
			return false
		}
	}
}

// How long to spin before sleeping. A vCPU is out 40 µs after a kick here, and
// a gate is mostly closed for the time of a store; to sleep and be woken costs
// each side as much again on an idle machine, and milliseconds on a busy one.
const (
	evictSpin = 100 * time.Microsecond
	gateSpin  = 50 * time.Microsecond
)

// spin waits for a condition for at most d, if there is a second processor
// that could bring it about.
func spin(d time.Duration, ok func() bool) {
	if runtime.NumCPU() == 1 {
		return
	}
	for start := time.Now(); !ok() && time.Since(start) < d; {
	}
}

// leave says that the vCPU is out of the guest.
func (p *Platform) leave(v *vcpu) {
	if v.state.Swap(stateOut) == stateAwaited {
		p.mu.Lock()
		p.out.Broadcast()
		p.mu.Unlock()
	}
}

// park waits for the gate to open, and returns false if c was told to stop.
func (p *Platform) park(s *space, c *Context) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for s.stops.Load() != 0 || p.stops.Load() != 0 {
		if c.told() {
			return false
		}
		p.sleepLocked(c)
	}
	return true
}

// mustLeave reports whether the vCPU's thread has a reason not to go on in the
// guest.
func (p *Platform) mustLeave(v *vcpu, s *space, c *Context) bool {
	return s.stops.Load() != 0 || p.stops.Load() != 0 || v.preempt.Load() || c.told()
}

// stop closes the gate of one space and waits until no vCPU is in it.
func (p *Platform) stop(as rooted) {
	p.mu.Lock()
	s := p.spaceLocked(as)
	s.refs++
	s.stops.Add(1)
	p.evictLocked(func(v *vcpu) bool { return v.space == s })
	p.mu.Unlock()
}

// resume undoes one stop.
func (p *Platform) resume(as rooted) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.spaces[as]
	if s == nil || s.stops.Load() == 0 {
		panic("kvm: Resume of a space that is not stopped")
	}
	if s.stops.Add(-1) == 0 {
		p.wakeParkedLocked()
	}
	p.dropLocked(s)
}

// stopAll closes every gate; it nests with stop.
func (p *Platform) stopAll() {
	p.mu.Lock()
	p.stops.Add(1)
	p.evictLocked(func(*vcpu) bool { return true })
	p.mu.Unlock()
}

func (p *Platform) resumeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stops.Add(-1) == 0 {
		p.wakeParkedLocked()
	}
}

// evictLocked kicks the vCPUs that match and waits until each has left. A vCPU
// that is out costs one load.
//
// Preconditions:
//   - the matching vCPUs' gate is closed.
func (p *Platform) evictLocked(match func(*vcpu) bool) {
	kicked := false
	for _, v := range p.vcpus {
		if match(v) && v.state.Load() != stateOut {
			v.kick()
			kicked = true
		}
	}
	if !kicked {
		return
	}
	for _, v := range p.vcpus {
		if !match(v) {
			continue
		}
		spin(evictSpin, func() bool { return v.state.Load() != stateIn })
		v.state.CompareAndSwap(stateIn, stateAwaited)
		for match(v) && v.state.Load() == stateAwaited {
			p.out.Wait()
		}
	}
}

func (p *Platform) wakeParkedLocked() {
	for _, v := range p.vcpus {
		if v.holder != nil && v.holder.asleep {
			v.holder.wakeUp()
		}
	}
}
