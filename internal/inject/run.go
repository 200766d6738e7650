package inject

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"syscall"
)

// Odd is an errno that no kernel gives: where it is found in an error, that
// error came from an injected failure and from nowhere else.
const Odd syscall.Errno = 0xbad

// Plan says what fails. The zero Plan only counts.
type Plan struct {
	// Match says which points the plan is about; nil for all.
	Match func(*Point) bool
	// From and Until say which passes fail, [From, Until), counted from 0 over
	// all points that the plan is about.
	From, Until int
	// OneIn, if not 0, has each pass fail by chance too, with Seed.
	OneIn int
	Seed  uint64
	// Errno is what to fail with; Odd if 0.
	Errno syscall.Errno
	// Missing, if not nil, names points that fail with EINVAL each time, as calls
	// do that a kernel does not have. Their passes are not counted.
	Missing func(*Point) bool
}

// Only returns a Match for points whose names begin in one of the ways given.
func Only(prefixes ...string) func(*Point) bool {
	return func(p *Point) bool {
		for _, s := range prefixes {
			if strings.HasPrefix(p.name, s) {
				return true
			}
		}
		return false
	}
}

// Run is a plan being carried out. Safe for concurrent use.
type Run struct {
	plan Plan // immutable

	mu     sync.Mutex
	rng    *rand.Rand // mu
	passes int        // mu
	failed []string   // which points have failed, in order; mu
}

// Start begins to carry a plan out; nothing fails but during During.
func Start(plan Plan) *Run {
	if plan.Errno == 0 {
		plan.Errno = Odd
	}
	return &Run{plan: plan, rng: rand.New(rand.NewPCG(plan.Seed, 1))}
}

// During runs fn with the plan armed.
func (r *Run) During(fn func() error) error {
	if !armed.CompareAndSwap(nil, r) {
		panic("inject: two runs are armed at a time")
	}
	defer armed.Store(nil)
	return fn()
}

// Passes returns how often points that the plan is about were passed.
func (r *Run) Passes() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.passes
}

// Failures returns how many passes have failed.
func (r *Run) Failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed)
}

// String names what has failed.
func (r *Run) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Sprintf("passes [%d, %d) of %d failing (1 in %d, seed %d; %v): %s",
		r.plan.From, r.plan.Until, r.passes, r.plan.OneIn, r.plan.Seed, uint(r.plan.Errno), strings.Join(r.failed, ", "))
}

func (r *Run) ask(p *Point) error {
	if e := r.errno(p); e != 0 {
		return e
	}
	return nil
}

func (r *Run) errno(p *Point) syscall.Errno {
	if r.plan.Missing != nil && r.plan.Missing(p) {
		p.failed.Add(1)
		return syscall.EINVAL
	}
	if r.plan.Match != nil && !r.plan.Match(p) {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.passes
	r.passes++
	if fails := n >= r.plan.From && n < r.plan.Until || r.plan.OneIn > 0 && r.rng.IntN(r.plan.OneIn) == 0; !fails {
		return 0
	}
	p.failed.Add(1)
	r.failed = append(r.failed, p.name)
	return r.plan.Errno
}
