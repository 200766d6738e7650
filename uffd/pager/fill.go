package pager

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A run is pages of a region that follow each other.
type run struct {
	r     *region
	first int
	n     int
}

// A filler says what is installed next without being asked for: first the
// working set as a set, in runs, in the order in which it was touched; then, if
// that is wanted, everything else from the start to the end.
type filler struct {
	background bool          // immutable
	total      uint64        // pages of 4 KiB in all; immutable
	zeroes     []run         // left to the kernel; the reader's, before it reads
	idle       atomic.Bool   // nothing is left to be begun
	held       atomic.Bool   // the background fill waits for its time; written under mu
	resting    atomic.Bool   // held, and nothing else is left; written under mu
	active     atomic.Int32  // runs under way
	skipped    atomic.Uint64 // pages that could not be read
	told       atomic.Uint64 // pages done since OnProgress
	reported   atomic.Bool   // that the end was reached

	mu      sync.Mutex
	set     *WorkingSet // yet to be made into runs, by who wants the first; guarded by mu
	replay  []run       // guarded by mu
	regions []*region
	at      int // region that the background fill is in; guarded by mu
	page    int // and where; guarded by mu
	// foundZeroes: with fillLater they are looked for here; guarded by mu.
	foundZeroes bool
	err         error // the first that a run had; guarded by mu

	progress sync.Mutex // held while the owner's function runs
}

func (f *filler) init(l *ledger, o *GuestOptions) error {
	f.background = o.Fill.Background == FillAll
	f.regions = l.regions
	for _, r := range l.regions {
		f.total += r.Size / smallPage
	}
	f.set = o.Fill.Replay
	f.idle.Store(!f.background && f.set == nil && !o.fillLater)
	return nil
}

// wanted reports whether there may be a run to begin.
func (f *filler) wanted() bool { return !f.idle.Load() && !f.resting.Load() }

// goOn ends the time for which the background fill was put off.
func (f *filler) goOn() {
	f.mu.Lock()
	f.held.Store(false)
	f.resting.Store(false)
	f.mu.Unlock()
}

// next claims the next run for g. n is 0 when there is none: then the filler is
// idle for good.
func (f *filler) next(g *Guest) (run, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.set != nil {
		// Here and not when the guest is added: that takes no longer for a large one.
		f.replay, f.set = f.set.runsIn(f.regions), nil
	}
	for len(f.replay) > 0 && g.ctx.Err() == nil {
		at := &f.replay[0]
		if at.n == 0 {
			f.replay = f.replay[1:]
			continue
		}
		limit := min(at.n, at.r.runLength(at.first))
		n := g.claim(at.r, at.first, limit)
		first := at.first
		skip := max(n, 1)
		at.first, at.n = at.first+skip, at.n-skip
		if n > 0 {
			return run{at.r, first, n}, true
		}
	}
	if g.o.fillLater && !f.foundZeroes {
		// What is zero need not be filled, nor fetched. Nobody has waited for this until
		// now: who faults there meanwhile gets what the source says.
		if f.foundZeroes = true; g.ctx.Err() == nil {
			if err := g.findZeroes(); err != nil {
				g.end(err)
			}
		}
	}
	if f.held.Load() {
		f.resting.Store(true)
		return run{}, false
	}
	for f.background && f.at < len(f.regions) && g.ctx.Err() == nil {
		r := f.regions[f.at]
		if f.page = r.pages.nextAbsent(f.page); f.page >= r.pages.n {
			f.at, f.page = f.at+1, 0
			continue
		}
		first := f.page
		n := g.claim(r, first, min(r.runLength(first), r.pages.n-first))
		f.page += max(n, 1)
		if n > 0 {
			return run{r, first, n}, false
		}
	}
	f.idle.Store(true)
	return run{}, false
}

// runLength is how many pages there are to the end of the 64 KiB that page i
// of the image is in: runs that begin anywhere still end at the same places.
func (r *region) runLength(i int) int {
	if r.PageSize > runBytes {
		return 1
	}
	return int((runBytes - r.offset(i)%runBytes) >> r.shift)
}

// nextAbsent returns the first absent page at or after i, or n.
func (p *pages) nextAbsent(i int) int {
	for ; i < p.n; i++ {
		if i%pagesPerChunk == 0 && p.flat == nil {
			if c := p.chunks[i/pagesPerChunk].Load(); c.isShared() && c.all()&stateMask == removed {
				i += pagesPerChunk - 1
				continue
			}
		}
		if p.at(i)&stateMask == absent {
			return i
		}
	}
	return p.n
}

// startFillWith is startFill of a guest with fillLater: what is replayed is known
// only now, and the background fill is put off.
func (g *Guest) startFillWith(replay *WorkingSet, putOff time.Duration) {
	f := &g.fill
	f.mu.Lock()
	f.set = replay
	f.held.Store(f.background && putOff > 0)
	f.mu.Unlock()
	if putOff > 0 {
		g.putOffFill(putOff, putOffTimes)
	}
	g.startFill()
}

// putOffTimes is how often the fill is put off for a guest that misses nothing: it
// does not run yet, and has no working set before it does.
const putOffTimes = 10

// putOffFill puts the background fill off for a while, and again while nothing was
// missed, times in all.
func (g *Guest) putOffFill(putOff time.Duration, times int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended {
		return
	}
	after := g.o.after
	if after == nil {
		after = time.AfterFunc
	}
	g.putOff = after(putOff, func() {
		if times > 1 && g.stats.Missing.Load() == 0 {
			g.putOffFill(putOff, times-1)
			return
		}
		g.fill.goOn()
		g.s.fillAgain(g)
	})
}

// startFill has workers fill, those of the replay at once.
func (g *Guest) startFill() { g.s.fillAgain(g) }

// fillRun installs the next run.
func (w *worker) fillRun(g *Guest) {
	f := &g.fill
	f.active.Add(1)
	defer g.ranOut()
	run, isReplay := f.next(g)
	if run.n == 0 {
		return
	}
	g.hook(pointClaimed)
	w.fillClaimed(g, run, isReplay)
	// Runs follow each other without anybody waiting for anything. A reader that has been
	// woken by a fault, or a vCPU that has left its guest, wants this processor, and
	// would get it only when the runtime's patience ends, after 10 ms.
	runtime.Gosched()
	g.tell(isReplay, uint64(run.n)<<(run.r.shift-addr.PageShift))
	if !isReplay && g.o.Fill.Pause > 0 {
		g.pause(g.o.Fill.Pause)
	}
}

func (w *worker) fillClaimed(g *Guest, run run, isReplay bool) {
	r, first, n := run.r, run.first, run.n
	data, err := w.read(g, r, first, n)
	g.hook(pointRead)
	switch {
	case err != nil && n > 1 && g.ctx.Err() == nil:
		for k := range n {
			one := run
			one.first, one.n = first+k, 1
			w.fillClaimed(g, one, isReplay)
		}
		return
	case err != nil:
		// Nobody may ever want this page: it is the guest's end only when it
		// does. Whoever does by now faults again.
		g.giveBack(r, first, n)
		g.fill.failed(uint64(n), err)
		return
	case r.Mode == ModeContinue && !isReplay:
		// It is in the cache now, where everybody finds it at once.
		g.giveBack(r, first, n)
		return
	}
	k, err := g.installPaced(r, first, n, data)
	g.stats.Prefetch.Add(uint64(k))
	if err != nil {
		g.giveBack(r, first+k, n-k)
		g.installFailed("fill", r, first+k, err)
		return
	}
	g.hook(pointSettled)
}

func (f *filler) failed(n uint64, err error) {
	f.skipped.Add(n)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}

// ranOut is called at the end of each run. The last one tells the reader, who
// lets go of the memory if all of it is there, and the owner.
func (g *Guest) ranOut() {
	f := &g.fill
	if f.active.Add(-1) > 0 || f.wanted() || g.ctx.Err() != nil {
		return
	}
	g.w.poke()
	if left := g.l.unsettled(); left > 0 && !f.resting.Load() && f.reported.CompareAndSwap(false, true) {
		f.mu.Lock()
		err := f.err
		f.mu.Unlock()
		if err != nil {
			err = &Error{Op: "fill", Guest: g.o.Name, Err: fmt.Errorf("%d pages left: %w", f.skipped.Load(), err)}
		}
		g.report(Progress{Phase: f.phase(), Err: err})
	}
}

func (f *filler) phase() string {
	if f.background {
		return "background"
	}
	return "replay"
}

// tellEvery is how many pages are filled from one call of OnProgress to the next.
const tellEvery = 4096

// tell counts filled pages, and calls OnProgress now and then.
func (g *Guest) tell(isReplay bool, n uint64) {
	if g.o.OnProgress == nil || g.fill.told.Add(n) < tellEvery {
		return
	}
	g.fill.told.Store(0)
	phase := "background"
	if isReplay {
		phase = "replay"
	}
	g.report(Progress{Phase: phase})
}

func (g *Guest) report(p Progress) {
	if g.o.OnProgress == nil {
		return
	}
	p.Total = g.fill.total
	left := uint64(0)
	for _, r := range g.l.regions {
		missing := uint64(max(0, r.pages.unsettled.Load()))
		if r.Mode == ModeContinue {
			missing = min(missing, r.Cache.Missing())
		}
		left += missing << (r.shift - addr.PageShift)
	}
	p.Done = p.Total - min(left, p.Total)
	g.fill.progress.Lock()
	defer g.fill.progress.Unlock()
	g.o.OnProgress(p)
}

// isComplete reports whether the memory can be let go of: every page is there,
// or zero because the guest wanted it so, and nobody wants to be told of
// writes. A page of ModeContinue is there when the cache has it, but only
// where nothing can be given back: the mapping beneath would show the image
// again.
func (g *Guest) isComplete() bool {
	if !g.fill.background || g.fill.wanted() || g.fill.active.Load() > 0 {
		return false
	}
	for _, r := range g.l.regions {
		switch {
		case r.Arming == ArmInstalled:
			return false // for good: somebody wants to be told of writes
		case r.Mode == ModeContinue:
			if g.l.removals || !r.Cache.has(r.Offset, r.Size) {
				return false
			}
		case r.pages.unsettled.Load() > 0:
			return false
		}
	}
	return true
}

// letGo unregisters the memory. It returns false if a layout change is under
// way: what it moves must be found first.
func (g *Guest) letGo() bool {
	for {
		if !g.isSettled() {
			g.w.pokeIn(retryEvery)
			return false
		}
		for _, s := range g.l.layout.Load().spans {
			// What has gone needs no unregistering: the error says only that.
			_ = g.l.k.Unregister(s.start, uint64(s.end()-s.start))
		}
		// A change that has begun since may have moved some of it away.
		n, err := g.take()
		if err != nil {
			return false
		}
		g.settleLayout()
		if n == 0 && g.isSettled() {
			g.report(Progress{Phase: "complete"})
			return true
		}
	}
}

// leaveZeroes unregisters long runs that the image knows to be zero, so that
// the kernel answers there. It is done before any event is read, and the
// answers are the same.
func (g *Guest) leaveZeroes() {
	for _, z := range g.fill.zeroes {
		at, n, ok := g.l.layout.Load().locate(z.r, z.first, z.n)
		if ok && n == z.n {
			_ = g.l.k.Unregister(at, z.r.bytes(n)) // served with zeroes if it fails
		}
	}
	g.fill.zeroes = nil
}
