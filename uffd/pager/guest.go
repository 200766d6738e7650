package pager

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A Guest is one guest being served. Its methods are safe for concurrent use.
//
// It ends once, for one reason: everything is there (Err is nil), Close or
// Detach, its process has ended, or it could not be served any more. Done is
// closed when that has been dealt with.
type Guest struct {
	s   *Server
	l   *ledger
	o   GuestOptions // immutable
	try TryReader    // o.Source, if it is one

	stats  Stats
	ctx    context.Context // ends when serving ends
	cancel context.CancelFunc
	w      *waiter
	reader reader // owned by the goroutine that runs readLoop
	fill   filler
	rec    recorder

	progress progress
	fetchers fetchers
	// problem is what was wrong with the ledger when it was taken over;
	// immutable after newGuest.
	problem error

	releasing, released atomic.Bool   // see mayRelease
	armings             atomic.Uint64 // by snapshots

	// Guarded by s.mu.
	queue     ring[job]
	inflight  int // jobs of faults that workers have
	filling   int // runs of filling that workers have
	inReady   bool
	inFillers bool
	left      bool

	readerDone chan struct{}
	done       chan struct{}
	told       chan struct{} // closed once the owner has been told

	mu     sync.Mutex
	err    error       // why it ended; guarded by mu
	ended  bool        // guarded by mu
	putOff *time.Timer // ends the wait of the background fill; guarded by mu
	parked []pageRef
	kept   bool // the ledger waits for Detach, Retry or Close; guarded by mu
}

type pageRef struct {
	r *region
	i int
}

// errDetached ends a guest whose ledger somebody has asked for.
var errDetached = errors.New("detached")

// newGuest makes g the owner of l. It repairs what a server that died left.
func newGuest(s *Server, l *ledger, o GuestOptions) (*Guest, error) {
	w, err := newWaiter(l.k.Fd(), o.Peer)
	if err != nil {
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
	}
	g := &Guest{s: s, l: l, o: o, w: w, readerDone: make(chan struct{}), done: make(chan struct{}), told: make(chan struct{})}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.try, _ = o.Source.(TryReader)
	g.fetchers.cond.L = &g.fetchers.mu
	g.reader.init(s.o.SpinFor)
	g.rec.on = o.Recording == Record
	if err := g.fill.init(l, &o); err != nil {
		w.close()
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: err}
	}
	if !o.fillLater {
		if err := g.findZeroes(); err != nil {
			w.close()
			return nil, err
		}
	}
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.closed || l.owner != nil {
		w.close()
		return nil, &Error{Op: "add guest", Guest: o.Name, Err: ErrClosed}
	}
	// What a server that died had begun is finished before anybody can install
	// anything: events that it had taken are marked, its claims are given back,
	// and everybody is woken, which the reader does first of all. Who was asleep
	// over a fault that the dead had read faults again.
	l.owner = g
	g.problem = l.mark(&g.stats)
	if l.served {
		for _, r := range l.regions {
			r.pages.recover()
		}
		for _, s := range l.layout.Load().spans {
			l.wakes = append(l.wakes, addrRange{s.start, s.end()})
		}
	}
	l.served = true
	return g, nil
}

// abandon undoes newGuest.
func (g *Guest) abandon() {
	g.cancel()
	g.disown()
	g.w.close()
}

// findZeroes marks what the source knows to be zero: it is treated as given
// back, so that it is answered with zeroes and never read. Known zeroes of the
// image are its content, and no stand-in for it. Pages that are there by then, or on
// their way, stay what they are.
func (g *Guest) findZeroes() error {
	z, ok := g.o.Source.(ZeroRanger)
	if !ok {
		return nil
	}
	err := z.ZeroRanges(func(off, length uint64) bool {
		for _, r := range g.l.regions {
			if r.Mode == ModeContinue {
				continue // its cache has its own source; a hole there is as cheap
			}
			first, end, ok := r.pagesWithin(off, length)
			if !ok {
				continue
			}
			r.pages.areZero(first, end)
			if g.o.Zeroes == LeaveToKernel && r.Arming == NotArmed && r.bytes(end-first) >= zeroRun {
				g.fill.zeroes = append(g.fill.zeroes, run{r: r, first: first, n: end - first})
			}
		}
		return true
	})
	if err != nil {
		return &Error{Op: "look for zeroes", Guest: g.o.Name, Err: err}
	}
	return nil
}

// zeroRun is what is worth two more mappings.
const zeroRun = 1 << 20

// pagesWithin returns the pages of r that lie in a range of the image entirely.
func (r *region) pagesWithin(off, length uint64) (first, end int, ok bool) {
	from, to := max(off, r.Offset), min(off+length, r.Offset+r.Size)
	if from >= to {
		return 0, 0, false
	}
	first = int((from - r.Offset + r.PageSize - 1) >> r.shift)
	end = int((to - r.Offset) >> r.shift)
	return first, end, first < end
}

// Name returns GuestOptions.Name.
func (g *Guest) Name() string { return g.o.Name }

// Stats returns the live counters.
func (g *Guest) Stats() *Stats { return &g.stats }

// Missing returns how many pages are neither there nor given back.
func (g *Guest) Missing() uint64 { return uint64(max(0, g.l.unsettled())) }

// Done is closed when the guest has ended: nothing is installed any more, and
// under FailGuest its process has been killed. Fail or Standby is called next.
func (g *Guest) Done() <-chan struct{} { return g.done }

// Err returns why the guest has ended: nil while it has not, and when every
// page is there. ErrClosed after Close or Detach.
func (g *Guest) Err() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if errors.Is(g.err, errDetached) {
		return &Error{Op: "serve", Guest: g.o.Name, Err: ErrClosed}
	}
	return g.err
}

// Close ends serving and gives the descriptor up. The kernel then answers
// every fault with zeroes: call it once the guest cannot run any more. It may be
// called again, and from Fail.
func (g *Guest) Close() error {
	g.end(&Error{Op: "serve", Guest: g.o.Name, Err: ErrClosed})
	<-g.done
	g.drop()
	return nil
}

// drop gives up a descriptor that was kept.
func (g *Guest) drop() {
	g.mu.Lock()
	kept := g.kept
	g.kept = false
	g.mu.Unlock()
	if kept {
		g.barMemory()
		g.l.close()
	}
}

// Detach ends serving and returns all that somebody else needs to go on. The
// guest does not notice but that its faults wait. It works on a guest that has
// ended with its descriptor kept: under Park, or under FailGuest until Close.
//
// Errors: ErrClosed (there is nothing left to serve); ErrNotSupported for the guest of a
// Restore, which has the Memory's regions behind it.
func (g *Guest) Detach() (*Takeover, error) {
	if g.o.bar != nil {
		return nil, &Error{Op: "detach", Guest: g.o.Name, Err: ErrNotSupported}
	}
	g.end(errDetached)
	<-g.done
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.kept {
		return nil, &Error{Op: "detach", Guest: g.o.Name, Err: ErrClosed}
	}
	g.kept = false
	return &Takeover{l: g.l, image: g.o.Image}, nil
}

// Retry has the pages read again that cannot be read and are parked.
func (g *Guest) Retry() {
	g.mu.Lock()
	parked := g.parked
	g.parked = nil
	g.mu.Unlock()
	for _, p := range parked {
		g.stats.Parked.Dec()
		g.giveBack(p.r, p.i, 1)
	}
}

// end begins the end, for the first reason that is given.
func (g *Guest) end(why error) {
	g.mu.Lock()
	if g.ended {
		g.mu.Unlock()
		return
	}
	g.ended, g.err = true, why
	if g.putOff != nil {
		g.putOff.Stop()
	}
	g.mu.Unlock()
	g.cancel()
	g.fetchers.tell()
	g.w.poke()
	go g.windUp(why)
}

// windUp applies the policy once nothing is installed any more. Workers that
// wait for a source are not waited for: they have lost the ledger.
func (g *Guest) windUp(why error) {
	defer close(g.told)
	<-g.readerDone
	g.disown()
	g.s.leave(g)
	g.w.close()
	switch {
	case why == nil:
		g.l.close()
	case errors.Is(why, ErrClosed):
		g.barMemory()
		g.l.close()
	case errors.Is(why, errDetached):
		g.keep()
	case errors.Is(why, ErrPeerGone):
		g.barMemory()
		g.l.close()
		defer g.callFail(why)
	case g.o.OnFailure == Standby:
		defer g.tellOwner(func() { g.o.Standby(&Takeover{l: g.l, image: g.o.Image}, why) })
	case g.o.OnFailure == Park:
		g.keep()
	default:
		why = g.failGuest(why)
		if g.barMemory() {
			g.drop()
		}
		defer g.callFail(why)
	}
	close(g.done) // before the owner is told, who may call Close or Detach then
}

// failGuest ends the guest's life, and returns why with what came on top. The
// descriptor is closed only when it is certain that nobody can see what comes
// after.
func (g *Guest) failGuest(why error) error {
	if g.o.Peer == nil {
		g.keep()
		return why
	}
	if err := g.o.Peer.Kill(); err != nil {
		g.keep()
		return errors.Join(why, err)
	}
	g.l.close()
	return why
}

// barMemory has whoever waits for a page fail, and who comes later, if the owner has a
// way: then what becomes of the descriptor is all the same to them. It comes before that
// is closed, for two reasons. What is missing would be zeroes. And what snapshots have
// armed would not be any more, so that they would be given what is stored from then on
// for what they hold:
//
//	pager               vCPU                 snapshot
//	closes              stores to page p,
//	                    and is not told
//	                                         reads p, which is armed by its books
//
// An open descriptor that nobody reads would keep who unmaps the memory waiting.
func (g *Guest) barMemory() bool {
	if g.o.bar == nil {
		return false
	}
	for _, r := range g.l.regions {
		if r.Of != nil && !r.released.Load() {
			g.o.bar(r.Of)
		}
	}
	for _, s := range g.l.layout.Load().spans {
		g.wake(addrRange{s.start, s.end()})
	}
	return true
}

func (g *Guest) callFail(why error) {
	if g.o.Fail != nil {
		g.tellOwner(func() { g.o.Fail(why) })
	}
}

// tellOwner calls a function of the owner. If it panics Err says so: the guest
// has ended, its descriptor is as it was, and other guests are served on.
func (g *Guest) tellOwner(f func()) {
	defer func() {
		if p := recover(); p != nil {
			g.mu.Lock()
			g.err = errors.Join(g.err, fmt.Errorf("%w: %v", ErrPanicked, p))
			g.mu.Unlock()
		}
	}()
	f()
}

func (g *Guest) keep() {
	g.mu.Lock()
	g.kept = true
	g.mu.Unlock()
}

// disown makes every install under way the last one.
func (g *Guest) disown() {
	g.l.gate.Lock()
	defer g.l.gate.Unlock()
	if g.l.owner == g {
		g.l.owner = nil
	}
}

// fail is end, with what was being done where.
func (g *Guest) fail(op string, r *region, i int, err error) {
	e := &Error{Op: op, Guest: g.o.Name, Err: err}
	if r != nil {
		e.Offset = r.offset(i)
		if at, _, ok := g.l.layout.Load().locate(r, i, 1); ok {
			e.Addr = at
		}
	}
	g.end(e)
}

// recovered makes an error of a panic of this package or of an embedder's code.
func (g *Guest) recovered(p any) {
	if p != nil {
		g.fail("serve", nil, 0, fmt.Errorf("%w: %v", ErrPanicked, p))
	}
}

// hook lets tests stop or kill the goroutine.
func (g *Guest) hook(p point) {
	if g.s.hook != nil {
		g.s.hook(g, p)
	}
}

// wakePages lets who waits for n pages go on; who finds no page faults again.
func (g *Guest) wakePages(r *region, i, n int) {
	for n > 0 {
		at, k, ok := g.l.layout.Load().locate(r, i, n)
		if !ok {
			i, n = i+1, n-1
			continue
		}
		g.wake(addrRange{at, at + addr.HVA(r.bytes(k))})
		i, n = i+k, n-k
	}
}

// wake never fails for a reason that matters: who has gone needs no waking.
func (g *Guest) wake(a addrRange) { _ = g.l.k.Wake(a.start, uint64(a.end-a.start)) }

// giveBack ends claims without an install.
func (g *Guest) giveBack(r *region, i, n int) {
	g.l.gate.RLock()
	if g.l.owner != g {
		g.l.gate.RUnlock()
		return // the new owner has done that
	}
	for k := i; k < i+n; k++ {
		r.pages.giveBack(k)
	}
	g.wakePages(r, i, n)
	g.l.gate.RUnlock()
	g.fetchers.tell()
}
