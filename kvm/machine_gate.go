//go:build linux && amd64

package kvm

import (
	"context"
	"sync"
	"sync/atomic"
)

// The gate between a VM's vCPUs and whoever has to have them out of the guest
// for a moment. As gate.go's: each side writes its flag before it reads the
// other's.
//
//	the vCPU's thread                     Pause
//	  immediate_exit = 0                    stops++
//	  kicked? closing? ctx?                 for each vCPU: if state is in, poke
//	  state = in                            wait until none of them is in
//	  if stops > 0: state = out, park
//	  KVM_RUN ...
//	  state = out
//
// A vCPU that reads stops = 0 has stored in before Pause reads its state, and so
// is poked; the poke stores immediate_exit after the vCPU's own store of 0,
// which comes before its state.
type vmGate struct {
	stops atomic.Int32 // open pauses

	mu   sync.Mutex
	cond *sync.Cond // on mu: a vCPU has left, or the gate has opened
}

func (g *vmGate) init() { g.cond = sync.NewCond(&g.mu) }

// wake has everyone who waits at the gate look again.
func (g *vmGate) wake() {
	g.mu.Lock()
	g.cond.Broadcast()
	g.mu.Unlock()
}

// stateParked, beside the states of gate.go, is a vCPU whose Run waits at the
// gate. Its state may be looked at and replaced.
const stateParked = 3

// Pause returns once no vCPU executes the guest; until the matching Resume none
// begins to. Runs in progress wait inside Run and go on afterwards, and nobody
// sees an exit for it. Pauses nest, from any goroutine.
//
// A vCPU whose access is being resolved by the host's fault handler (a
// userfaultfd) may leave only when that is done, so whoever serves such faults
// must not wait for a Pause; nor for a change of regions, for which KVM waits until
// each vCPU has left the fault that it is in.
func (vm *VM) Pause() {
	vm.gate.stops.Add(1)
	vm.mu.Lock()
	vcpus := vm.vcpus
	vm.mu.Unlock()
	for _, v := range vcpus {
		if v.isIn() {
			v.poke()
		}
	}
	g := &vm.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range vcpus {
		v.state.CompareAndSwap(stateIn, stateAwaited)
		for v.state.Load() == stateAwaited {
			g.cond.Wait()
		}
	}
}

// Resume undoes one Pause.
func (vm *VM) Resume() {
	n := vm.gate.stops.Add(-1)
	if n < 0 {
		panic("kvm: Resume of a VM that is not paused")
	}
	if n == 0 {
		vm.gate.wake()
	}
}

// isIn reports whether the vCPU may be executing the guest.
func (v *VCPU) isIn() bool {
	s := v.state.Load()
	return s == stateIn || s == stateAwaited
}

// pass takes the vCPU through the gate, and returns false, with the vCPU out,
// if it was closed.
func (v *VCPU) pass() bool {
	v.state.Store(stateIn)
	if v.vm.gate.stops.Load() == 0 {
		return true
	}
	v.leave()
	return false
}

// leave says that the vCPU is out of the guest.
func (v *VCPU) leave() {
	if v.state.Swap(stateOut) == stateAwaited {
		v.vm.gate.wake()
	}
}

// park waits for the gate to open, or for a reason to return from Run.
//
// Preconditions:
//   - v.mu is not held: whoever has paused may look at the state.
func (v *VCPU) park(ctx context.Context) {
	g := &v.vm.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	v.state.Store(stateParked)
	for g.stops.Load() != 0 && !v.kicked.Load() && !v.vm.closing.Load() && ctx.Err() == nil {
		g.cond.Wait()
	}
	v.state.Store(stateOut)
}
