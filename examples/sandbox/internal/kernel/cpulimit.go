//go:build linux && amd64

package kernel

import (
	"math"
	"time"

	"golang.org/x/sys/unix"
)

// initCPULimit prepares RLIMIT_CPU: an alarm by the time that the process has spent. At
// the soft limit, and each second from there on, it is sent SIGXCPU, at the hard one
// SIGKILL.
func (p *Process) initCPULimit() {
	a := &p.cpuLimit
	a.p, a.clock = p, cpuClock{p: p}
	a.fire = func(int) {
		sig := unix.SIGXCPU
		if _, hard := p.cpuLimits(); a.clock.nowLocked() >= hard {
			sig = unix.SIGKILL
		}
		_ = p.k.sendLocked(p, nil, kernelSignal(int(sig)))
	}
}

// cpuLimits are RLIMIT_CPU's: as under Linux none is less than a second.
func (p *Process) cpuLimits() (soft, hard time.Duration) {
	set, ok := p.limits[unix.RLIMIT_CPU]
	if !ok {
		return math.MaxInt64, math.MaxInt64
	}
	of := func(seconds uint64) time.Duration {
		if seconds >= math.MaxInt64/uint64(time.Second) {
			return math.MaxInt64
		}
		return time.Duration(max(seconds, 1)) * time.Second
	}
	return of(set.Cur), of(set.Max)
}

// limitCPULocked arms the alarm, when the limit has been set or inherited.
func (p *Process) limitCPULocked() {
	soft, _ := p.cpuLimits()
	if soft == math.MaxInt64 {
		p.cpuLimit.stopLocked()
		return
	}
	p.cpuLimit.setLocked(max(soft-p.cpuLimit.clock.nowLocked(), time.Microsecond), time.Second)
}
