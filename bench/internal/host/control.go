package host

import (
	"fmt"
	"slices"
	"sync"
	"time"
)

const (
	// spinSteps is about half a millisecond of arithmetic: several times the
	// length of an interrupt, and a small part of a round.
	spinSteps = 400_000
	// chaseSteps is about as long in loads that miss every cache.
	chaseSteps = 4_000
	// chaseSize is several times the caches of one core's share.
	chaseSize = 128 << 20

	// How much longer the control may take than it has ever taken in this run
	// before a round counts as disturbed: arithmetic slows down when something
	// else has the core, loads also when a neighbour has the memory. Loads
	// vary more by themselves.
	spinTolerance  = 1.15
	chaseTolerance = 2
)

// A Control runs work of fixed length, as the row that cannot change: when it
// takes longer, something else had the machine.
type Control struct {
	chased []byte // chaseSize, written to once in each page
	best   Times
	runs   int
	slow   int   // of runs, those that took too long by one measure or the other
	worst  Times // of all
}

// Times are how long the two halves of the control took.
type Times struct{ Spin, Chase time.Duration }

// NewControl returns a Control that knows its best times.
func NewControl() *Control {
	c := &Control{chased: make([]byte, chaseSize)}
	for off := 0; off < len(c.chased); off += 4096 {
		c.chased[off+off/4096%4096] = 1
	}
	for range 10 {
		c.Run(1)
	}
	return c
}

// Run runs the control on as many goroutines as a row keeps cores busy and
// returns the longest times that one of them took.
func (c *Control) Run(cores int) Times {
	took := make([]Times, cores)
	var wg sync.WaitGroup
	for i := range took {
		wg.Go(func() {
			start := time.Now()
			sink(spin())
			spun := time.Now()
			sink(c.chase(uint64(spun.UnixNano()) + uint64(i)))
			took[i] = Times{spun.Sub(start), time.Since(spun)}
		})
	}
	wg.Wait()
	var worst Times
	for _, t := range took {
		worst.Spin, worst.Chase = max(worst.Spin, t.Spin), max(worst.Chase, t.Chase)
	}
	if c.best == (Times{}) {
		c.best = worst
	}
	c.best.Spin, c.best.Chase = min(c.best.Spin, worst.Spin), min(c.best.Chase, worst.Chase)
	c.worst.Spin, c.worst.Chase = max(c.worst.Spin, worst.Spin), max(c.worst.Chase, worst.Chase)
	c.runs++
	if worst.Spin.Seconds() > spinTolerance*c.best.Spin.Seconds() || worst.Chase.Seconds() > chaseTolerance*c.best.Chase.Seconds() {
		c.slow++
	}
	return worst
}

// Summary says how quiet the machine was in all.
func (c *Control) Summary() string {
	return fmt.Sprintf("arithmetic took %v at best and up to %.2f x that, memory %v and up to %.2f x; %d of %d times one of both took too long",
		c.best.Spin.Round(time.Microsecond), c.worst.Spin.Seconds()/c.best.Spin.Seconds(),
		c.best.Chase.Round(time.Microsecond), c.worst.Chase.Seconds()/c.best.Chase.Seconds(), c.slow, c.runs)
}

// CoresDisturbed returns why rounds around which the control took these times
// are not to be believed, or "": something else ran on the row's cores. Fewer
// than a third may be disturbed without harm to the median: a disturbance is
// likelier to be missed than to be made up.
func (c *Control) CoresDisturbed(times []Times) string {
	var multiples []float64
	for _, t := range times {
		multiples = append(multiples, float64(t.Spin)/float64(c.best.Spin))
	}
	return disturbed("arithmetic", multiples, spinTolerance)
}

// MemoryDisturbed is the same of the memory that neighbours share.
func (c *Control) MemoryDisturbed(times []Times) string {
	var multiples []float64
	for _, t := range times {
		multiples = append(multiples, float64(t.Chase)/float64(c.best.Chase))
	}
	return disturbed("memory", multiples, chaseTolerance)
}

// disturbed takes times as multiples of the best.
func disturbed(what string, times []float64, tolerance float64) string {
	slow := 0
	for _, t := range times {
		if t > tolerance {
			slow++
		}
	}
	if 3*slow < len(times) || slow == 0 {
		return ""
	}
	return fmt.Sprintf("the machine was busy: a control of %s took up to %.2f x its best time, and too long %d times of %d",
		what, slices.Max(times), slow, len(times))
}

func spin() uint64 {
	x := uint64(88172645463325252)
	for range spinSteps {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
	}
	return x
}

// chase loads from one unforeseeable place after the other: each address
// depends on what the load before it gave. Another seed is another way, which
// no cache has seen.
func (c *Control) chase(seed uint64) uint64 {
	x := seed
	for range chaseSteps {
		x = x*6364136223846793005 + 1442695040888963407
		x += uint64(c.chased[x>>37]) // 2^27 bytes
	}
	return x
}

var _ = [1]struct{}{}[chaseSize-1<<27] // chase draws 27 bits

// sink keeps the compiler from dropping the work.
//
//go:noinline
func sink(uint64) {}
