package pager

import (
	"sync"
	"sync/atomic"
)

// A progress counts how often a page did not come, since it came last. Only
// answers that installed nothing count (EEXIST, ENOENT): a guest may give a page
// back and touch it as often as it likes, and other pages that come meanwhile
// say nothing about this one. (Trap 15.)
type progress struct {
	// n is len(times): a page that comes, which is the rule, looks at nothing
	// else. Who reads it too early leaves a count too high by what raced.
	n  atomic.Int32
	mu sync.Mutex
	// times is guarded by mu. Most of it is pages that somebody else installed,
	// each counted once and never again.
	times map[pageRef]int
}

// maxStuck bounds what is remembered. Beyond it all counts start again, of
// which a page that never comes takes no notice.
const maxStuck = 1 << 14

// failed counts page i of r, and returns how often it did not come in a row.
func (p *progress) failed(r *region, i int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.times == nil || len(p.times) >= maxStuck {
		p.times = make(map[pageRef]int)
	}
	ref := pageRef{r, i}
	p.times[ref]++
	p.n.Store(int32(len(p.times)))
	return p.times[ref]
}

// came forgets n pages that were installed.
func (p *progress) came(r *region, i, n int) {
	if p.n.Load() == 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k := i; k < i+n; k++ {
		delete(p.times, pageRef{r, k})
	}
	p.n.Store(int32(len(p.times)))
}

// noProgress counts an answer that installed nothing, and ends the guest when
// there were too many.
func (g *Guest) noProgress(r *region, i int) {
	if g.progress.failed(r, i) > g.o.LivelockLimit {
		g.fail("serve the same page again", r, i, ErrLivelock)
	}
}
