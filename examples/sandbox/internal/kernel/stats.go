//go:build linux && amd64

package kernel

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/guestmem"
)

// counters are what -stats and -json report.
type counters struct {
	syscalls, processes, peak           atomic.Uint64 // peak: processes at once; stored under Kernel.mu
	threads                             atomic.Uint64 // processes' first ones too
	readFaults, writeFaults, execFaults atomic.Uint64
	faultsRefused, outOfMemory          atomic.Uint64

	mu        sync.Mutex
	forkTimes []time.Duration // of the last forks, in a ring; guarded by mu
	forks     uint64          // guarded by mu
	spaces    SpaceTotals     // of the address spaces that are closed; guarded by mu
	unknown   map[string]int  // system calls that there are not here, by name; guarded by mu
}

// maxForkTimes bounds what is remembered of a guest that forks for ever.
const maxForkTimes = 1 << 16

func (c *counters) fault(access guestmem.Access) {
	switch {
	case access&guestmem.Execute != 0:
		c.execFaults.Add(1)
	case access&guestmem.Write != 0:
		c.writeFaults.Add(1)
	default:
		c.readFaults.Add(1)
	}
}

func (c *counters) fork(took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.forkTimes) < maxForkTimes {
		c.forkTimes = append(c.forkTimes, took)
	} else {
		c.forkTimes[c.forks%maxForkTimes] = took
	}
	c.forks++
}

// maxUnknown bounds how many are told apart: a guest may ask for any number.
const maxUnknown = 512

// unknownCall notes a call that there is not.
func (c *counters) unknownCall(nr uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unknown == nil {
		c.unknown = make(map[string]int)
	}
	name := callName(nr)
	if _, seen := c.unknown[name]; !seen && len(c.unknown) >= maxUnknown {
		name = "others"
	}
	c.unknown[name]++
}

// Report is what has happened by now.
type Report struct {
	Syscalls, Processes, ProcessesMax   uint64
	Threads                             uint64
	ReadFaults, WriteFaults, ExecFaults uint64
	FaultsRefused, OutOfMemory          uint64
	Forks                               uint64
	ForkMedian, ForkMax                 time.Duration // 0 without forks
	Spaces                              SpaceTotals
	UnknownCalls                        map[string]int // how often each, by name: they were answered with ENOSYS
}

// Faults is how often ring 3 stopped at a page.
func (r *Report) Faults() uint64 { return r.ReadFaults + r.WriteFaults + r.ExecFaults }

// Report is complete after Close.
func (k *Kernel) Report() Report {
	c := &k.stats
	r := Report{
		Syscalls: c.syscalls.Load(), Processes: c.processes.Load(), ProcessesMax: c.peak.Load(),
		ReadFaults: c.readFaults.Load(), WriteFaults: c.writeFaults.Load(), ExecFaults: c.execFaults.Load(),
		FaultsRefused: c.faultsRefused.Load(), OutOfMemory: c.outOfMemory.Load(), Threads: c.threads.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Forks, r.Spaces, r.UnknownCalls = c.forks, c.spaces, maps.Clone(c.unknown)
	if sorted := slices.Sorted(slices.Values(c.forkTimes)); len(sorted) > 0 {
		r.ForkMedian, r.ForkMax = sorted[len(sorted)/2], sorted[len(sorted)-1]
	}
	return r
}

// SpaceTotals is what the address spaces were like when they were closed.
type SpaceTotals struct {
	MostAreas  uint64 // in one of them
	MostMapped uint64 // bytes mapped in one of them
}

func (c *counters) addSpace(s guestmem.SpaceStats) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spaces.MostAreas = max(c.spaces.MostAreas, uint64(s.Areas))
	c.spaces.MostMapped = max(c.spaces.MostMapped, s.MappedBytes)
}
