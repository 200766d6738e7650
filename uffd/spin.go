package uffd

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Spinning: waking a thread that sleeps in the kernel takes 5 to 70 µs, which a
// guest's fault waits for; a thread that asks again and again has the message at
// once. But it burns a core, and where the guest has to share that core it makes
// things worse. Which it is depends on the machine and on its load, so a Waiter
// tries both now and then and goes by the time that its waits took.

const (
	// spinFor is how long a Waiter asks before it sleeps: about what sleeping
	// and waking cost, so that at worst a wait costs twice what it must.
	spinFor = 50 * time.Microsecond
	// longWait is as long as a wait counts at most. Waits beyond it are the
	// guest's own time, and count alike for both ways: then sleeping wins.
	longWait = 200 * time.Microsecond
	// A Waiter goes the better way for stayWaits waits, then the other one for
	// tryWaits. A try of spinning ends with the first spin in vain, so that where
	// spinning does not pay it costs 50 µs in 512 waits: 0.1 µs for each.
	stayWaits = 512
	tryWaits  = 16
)

// The two ways to wait.
type way uint8

const (
	sleep way = iota
	spin
)

// A spinner decides for one Waiter whether to spin. It belongs to the goroutine
// that waits.
type spinner struct {
	cost   [2]time.Duration // moving average of waits, by way
	now    way
	left   int  // waits left of this stay or try
	trying bool // now is the way that seemed the worse
}

// newSpinner tries spinning first, then sleeping, then goes by what that cost.
func newSpinner() spinner {
	return spinner{now: spin, left: tryWaits, cost: [2]time.Duration{longWait, longWait}}
}

// begin returns the way to wait this time.
func (s *spinner) begin() way {
	if s.left == 0 {
		s.next()
	}
	s.left--
	return s.now
}

// next ends a stay by trying the other way, and a try by going the better one.
func (s *spinner) next() {
	if !s.trying {
		s.now, s.left, s.trying = 1-s.now, tryWaits, true
		return
	}
	s.now, s.left, s.trying = sleep, stayWaits, false
	// A tenth better, or the core is better left to others.
	if s.cost[spin] < s.cost[sleep]-s.cost[sleep]/10 {
		s.now = spin
	}
}

// end notes how long the event took to come, by the way that was gone.
func (s *spinner) end(w way, waited time.Duration) {
	waited = min(waited, longWait)
	s.cost[w] += (waited - s.cost[w]) / 8
	if s.trying && w == spin && waited > spinFor {
		s.left, s.cost[spin] = 0, waited // and so the try is lost
	}
}

// spinners is how many Waiters of this process spin now. Half of the processors
// may: the guests whose faults are waited for need the others.
var spinners atomic.Int32

func enterSpin() bool {
	limit := int32(min(runtime.NumCPU(), runtime.GOMAXPROCS(0)) / 2)
	if spinners.Add(1) <= limit {
		return true
	}
	spinners.Add(-1)
	return false
}

func leaveSpin() { spinners.Add(-1) }
