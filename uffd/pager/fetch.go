package pager

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// fetchers are goroutines of the embedder that wait for pages.
type fetchers struct {
	n    atomic.Int32
	mu   sync.Mutex
	cond sync.Cond // on mu
}

// tell wakes fetchers after the state of some page has changed. Who waits has
// counted itself in before it looked at the state, and who changes a state
// looks at the count afterwards: one of them sees the other.
func (f *fetchers) tell() {
	if f.n.Load() > 0 {
		f.mu.Lock()
		f.cond.Broadcast()
		f.mu.Unlock()
	}
}

// Fetch returns once every page of [start, start+length) is there or given
// back, as if somebody had touched each: an embedder that reads memory of this
// process through an alias calls it first, since there is no fault at the alias.
//
// Errors: ErrOutside, ctx's, ErrClosed or that of the guest if it has ended.
// Pages that cannot be read follow the guest's policy; under Park it waits.
func (g *Guest) Fetch(ctx context.Context, start addr.HVA, length uint64) error {
	stop := context.AfterFunc(ctx, g.fetchers.tell)
	defer stop()
	g.fetchers.n.Add(1)
	defer g.fetchers.n.Add(-1)
	end := start + addr.HVA(length)
	if end < start {
		return &Error{Op: "fetch", Guest: g.o.Name, Addr: start, Err: ErrOutside}
	}
	for at := start; at < end; {
		r, i, ok := g.l.layout.Load().find(at)
		if !ok {
			return &Error{Op: "fetch", Guest: g.o.Name, Addr: at, Err: ErrOutside}
		}
		g.noteTouched(r, i)
		if err := g.fetchPage(ctx, r, i, int((end-at-1)>>r.shift)+1); err != nil {
			return err
		}
		at = (at &^ addr.HVA(r.PageSize-1)) + addr.HVA(r.PageSize)
	}
	return nil
}

// fetchPage returns once page i is there. It asks for those of the n pages from i on
// along with it that are in the same run: they are wanted next, and read at once.
func (g *Guest) fetchPage(ctx context.Context, r *region, i, n int) error {
	isThere := func() bool {
		s := r.pages.at(i) & stateMask
		return s == present || s == removed
	}
	for {
		if isThere() {
			return nil
		}
		if err := g.whyEnded(ctx); err != nil {
			if isThere() { // it has come since, and as the last of all ended the serving
				return nil
			}
			return err
		}
		if k := g.claim(r, i, min(n, r.runLength(i), r.pages.n-i)); k > 0 {
			for at := range k {
				g.s.enqueue(g, job{kind: jobRead, r: r, i: i + at, since: g.now()})
			}
			continue
		}
		g.fetchers.mu.Lock()
		for r.pages.at(i)&stateMask == filling && ctx.Err() == nil && g.ctx.Err() == nil {
			g.fetchers.cond.Wait()
		}
		g.fetchers.mu.Unlock()
	}
}

// whyEnded returns why there is no more to wait for.
func (g *Guest) whyEnded(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if g.ctx.Err() == nil {
		return nil
	}
	if err := g.Err(); err != nil {
		return err
	}
	return &Error{Op: "fetch", Guest: g.o.Name, Err: ErrClosed}
}

// Remove says that memory is about to be given back in a way that the kernel
// does not tell of, such as a hole punched into the file behind it. From its
// return on nothing of the image is installed in [start, start+length), and
// faults there are answered by zeroes. It is called before the memory goes.
//
// Errors: ErrOutside if nothing of it is served.
func (g *Guest) Remove(start addr.HVA, length uint64) error {
	g.l.gate.Lock()
	n := g.l.forget(start, start+addr.HVA(length), &g.stats)
	g.l.gate.Unlock()
	g.fetchers.tell()
	if n == 0 {
		return &Error{Op: "remove", Guest: g.o.Name, Addr: start, Err: ErrOutside}
	}
	return nil
}
