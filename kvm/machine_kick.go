//go:build linux && amd64

package kvm

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Kick makes a Run in progress, or else the next, return VMExitKicked. Kicks
// before that return are one. An exit that the guest reached first is returned
// first, and the kick with the Run after it. Safe for concurrent use, and after
// Close.
func (v *VCPU) Kick() {
	v.kicked.Store(true)
	v.poke()
}

// poke has a Run in progress look again at what it was told. immediate_exit is
// for the thread that has not got to KVM_RUN yet, the signal for the one that
// has: SIGURG, which the Go runtime handles anyhow, so that one too many does
// no harm. A thread that has gone since tid was read makes it ESRCH, or a stray
// signal for another thread of this process.
func (v *VCPU) poke() {
	v.poking.Lock()
	if v.run != nil {
		atomic.OrUint32(&v.run.interruptWindow, immediateExit)
		if tid := v.tid.Load(); tid != 0 {
			unix.Tgkill(unix.Getpid(), int(tid), unix.SIGURG)
		}
	}
	v.poking.Unlock()
	if v.state.Load() == stateParked {
		v.vm.gate.wake()
	}
}
