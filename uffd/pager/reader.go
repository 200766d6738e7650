package pager

import (
	"errors"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/uffd"
)

// A reader takes the events of one guest from the kernel and serves what can
// be served at once; the rest goes to workers. It never waits for a source.
type reader struct {
	page [smallPage]byte
	spin spinner

	// Faults of no region, kept until it is certain that no move explains them.
	orphans []uffd.Event
	tries   int
	// left is where memory was unmapped or moved away by the events that were
	// read last. Faults read together with them waited for what has gone: they
	// have been woken, and find that out.
	left []addrRange

	// short counts how often in a row a forked child found no room for a descriptor.
	short int

	// Who writes again and again, though it was disarmed.
	last    pageRef
	times   int
	armings uint64 // Guest.armings when times began
}

func (rd *reader) init(spinFor time.Duration) { rd.spin.limit = spinFor }

// run is the goroutine of a guest's reader.
func (g *Guest) run() {
	defer close(g.readerDone)
	defer func() { g.recovered(recover()) }()
	if g.problem != nil {
		g.end(g.problem)
	}
	g.leaveZeroes()
	seen := time.Now()
	for g.ctx.Err() == nil {
		n, err := g.take()
		if n == 0 && err == nil && len(g.reader.orphans) == 0 && !g.isComplete() {
			n, err = g.takeSpinning()
		}
		if g.waitsForRoom(err) {
			continue
		}
		if err != nil {
			g.fail("read events", nil, 0, err)
			return
		}
		if len(g.l.forks) == 0 {
			g.reader.short = 0
		}
		g.settleLayout()
		if n > 0 {
			g.fetchers.tell()
			g.hook(pointMarked)
			for i := range n {
				if ev := &g.l.batch[i]; ev.Kind == uffd.EventFault {
					g.serveFault(ev)
				}
			}
			continue
		}
		if time.Since(seen) >= lookForMemory {
			if seen = time.Now(); g.isMemoryGone() {
				g.fail("serve", nil, 0, ErrPeerGone)
				return
			}
		}
		timeout := lookForMemory
		children := len(g.l.forks) > 0 // that found no room yet
		if children {
			timeout = shortAgain
		}
		if len(g.reader.orphans) > 0 {
			g.adopt()
			if len(g.reader.orphans) > 0 {
				timeout = retryEvery
			}
		}
		if !children && g.isComplete() && g.mayRelease() && g.letGo() {
			g.end(nil)
			return
		}
		peer, err := g.w.wait(timeout)
		switch {
		case err != nil:
			g.fail("wait for events", nil, 0, err)
			return
		case peer:
			g.fail("serve", nil, 0, ErrPeerGone)
			return
		}
	}
}

// waitsForRoom reports whether err says that a fork cannot be told of, or its child
// be served, for want of a descriptor, and waits a moment if so: nothing is lost, and
// the guest has done nothing wrong. It takes as long as installs are tried again at
// most, since whoever forks waits for it.
func (g *Guest) waitsForRoom(err error) bool {
	if !isShort(err) {
		return false
	}
	g.stats.Retried.Inc()
	if g.reader.short++; g.reader.short > max(1, g.o.RetryLimit/int(shortAgain/retryEvery)) {
		return false
	}
	g.pause(shortAgain)
	return true
}

// lookForMemory is how often a reader that has nothing to do looks whether the
// memory is still somebody's.
const lookForMemory = time.Second

// nobodysPage is an address at which nothing is ever mapped: the last page that
// processes have on amd64.
const nobodysPage addr.HVA = 1<<47 - 2*smallPage

// isMemoryGone reports whether the memory's last process has ended, or gone on
// as another program. The kernel sends no event for that, and a pidfd tells of
// the end of one process only: not of execve(2), nor of a forked child's end.
// Nothing is protected there, and so nothing is changed.
func (g *Guest) isMemoryGone() bool {
	return errors.Is(g.l.k.WriteProtect(nobodysPage, smallPage, 0), syscall.ESRCH)
}

// take reads what events there are and marks what they changed, in one step.
func (g *Guest) take() (int, error) {
	l := g.l
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.owner != g {
		return 0, ErrClosed
	}
	l.taken, l.marked = 0, 0
	n, err := l.read()
	if n <= 0 {
		l.shared.endRead()
		return 0, err
	}
	l.taken = n
	g.hook(pointTaken)
	if problem := l.mark(&g.stats); problem != nil {
		g.end(problem)
	}
	l.shared.endRead()
	return n, nil
}

// read takes events from the kernel. Those of a ledger that others shall go on
// with are in its file from the first instant on.
func (l *ledger) read() (int, error) {
	if l.shared == nil {
		return l.k.Read(l.batch[:])
	}
	l.shared.beginRead()
	if k, ok := l.k.(readerThrough); ok {
		return k.ReadThrough(l.shared.messages(), l.batch[:])
	}
	return l.k.Read(l.batch[:])
}

// settleLayout does what layout events ask for beyond being marked: it wakes
// who waits where nothing is any more, and starts to serve children.
func (g *Guest) settleLayout() {
	l := g.l
	g.reader.left = append(g.reader.left[:0], l.wakes...)
	if len(l.wakes) == 0 && len(l.forks) == 0 {
		return // both are written by this goroutine only while it owns l
	}
	g.reader.times = 0
	for _, w := range l.wakes {
		g.wake(w)
	}
	l.gate.Lock()
	l.wakes = l.wakes[:0]
	var children []*ledger
	if g.o.Fork == ForkServe {
		children, l.forks = l.forks, nil
	}
	refused := len(l.forks) > 0
	l.gate.Unlock()
	if refused {
		g.fail("fork", nil, 0, ErrForked)
	}
	for _, c := range children {
		g.serveChild(c)
	}
}

// serveChild adds a forked child as a guest of its own.
func (g *Guest) serveChild(c *ledger) {
	o := g.o
	o.Name, o.Peer = c.name, nil
	o.Fill.Replay = nil
	fail := o.Fail
	if fail == nil && o.OnFailure == FailGuest {
		// There is no handle on the child's process but its parent's.
		fail = g.end
	}
	o.Fail = func(err error) {
		// A child may end as it likes: that is nobody's failure.
		if fail != nil && !errors.Is(err, ErrPeerGone) {
			fail(err)
		}
	}
	child, err := g.s.serve(c, o)
	if err != nil {
		g.l.gate.Lock()
		g.l.forks = append(g.l.forks, c) // held, so that it sees no zeroes
		g.l.gate.Unlock()
		if !g.waitsForRoom(err) {
			g.fail("serve a forked child", nil, 0, err)
		}
		return
	}
	g.reader.short = 0
	if g.o.OnFork != nil {
		g.o.OnFork(child)
	}
}

// serveFault answers one fault, or sees to it that somebody will.
func (g *Guest) serveFault(ev *uffd.Event) {
	switch {
	case ev.Flags&uffd.FaultWP != 0:
		g.stats.Written.Inc()
	case ev.Flags&uffd.FaultMinor != 0:
		g.stats.Minor.Inc()
	default:
		g.stats.Missing.Inc()
	}
	r, i, ok := g.l.layout.Load().find(ev.Addr)
	if !ok {
		for _, gone := range g.reader.left {
			if ev.Addr >= gone.start && ev.Addr < gone.end {
				return
			}
		}
		g.reader.orphans = append(g.reader.orphans, *ev)
		return
	}
	g.servePage(r, i, ev.Flags)
}

func (g *Guest) servePage(r *region, i int, why uffd.FaultFlags) {
	g.noteTouched(r, i)
	if why&uffd.FaultWP != 0 {
		if r.Arming == ArmForSnapshots {
			g.handWriteOver(r, i)
		} else {
			g.serveWrite(r, i)
		}
		return
	}
	g.reader.times = 0
	switch s := r.pages.claim(i); s {
	case filling:
		// Its install wakes everybody who waits for the page by then; if the
		// claim is given back instead, that does.
		g.stats.Joined.Inc()
		return
	case absent:
		g.hook(pointClaimed)
		if !g.serveNow(r, i) {
			g.s.enqueue(g, job{kind: jobRead, r: r, i: i, since: g.now()})
		}
	default:
		began := g.now()
		switch err := g.zero(r, i, why); {
		case err == nil:
			g.observe(OutcomeZeroed, began)
		case isTransient(err):
			g.stats.Retried.Inc()
			g.s.enqueue(g, job{kind: jobZero, r: r, i: i, why: why, since: began})
		default:
			g.installFailed("zero", r, i, err)
		}
	}
}

// serveNow answers a fault on a claimed page without waiting for anybody. If
// it returns false the page is still claimed.
func (g *Guest) serveNow(r *region, i int) bool {
	began := g.now()
	var data []byte
	outcome := OutcomeContinued
	switch {
	case r.PageSize != smallPage:
		return false
	case r.Mode == ModeContinue:
		if !r.Cache.has(r.offset(i), r.PageSize) {
			return false
		}
	case g.try == nil:
		return false
	default:
		data, outcome = g.reader.page[:], OutcomeCopied
		if err := g.try.TryReadPages(data, r.offset(i)); err != nil {
			return false
		}
		g.stats.Reads.Inc()
		g.hook(pointRead)
	}
	_, err := g.install(r, i, 1, data)
	g.hook(pointSettled)
	switch {
	case err == nil:
		g.observe(outcome, began)
	case isTransient(err):
		// The reader has events to read: somebody else waits for this.
		g.stats.Retried.Inc()
		return false
	default:
		g.installFailed("install", r, i, err)
	}
	return true
}

// serveWrite answers a write to an armed page.
func (g *Guest) serveWrite(r *region, i int) {
	if g.isStuck(r, i) {
		return
	}
	if g.o.OnWrite == nil {
		switch err := g.disarm(r, i); {
		case err == nil:
			return
		case !isTransient(err):
			g.installFailed("disarm", r, i, err)
			return
		}
		g.stats.Retried.Inc()
	}
	g.s.enqueue(g, job{kind: jobWrite, r: r, i: i, since: g.now()})
}

// isStuck counts writes to the same armed page in a row, and ends the guest
// when there are too many: each was answered, and none has helped. For pages
// that do not come see progress.
func (g *Guest) isStuck(r *region, i int) bool {
	rd := &g.reader
	if (rd.last != pageRef{r, i}) {
		rd.last, rd.times = pageRef{r, i}, 0
	}
	if rd.times++; rd.times <= g.o.LivelockLimit {
		return false
	}
	g.fail("serve the same fault again", r, i, ErrLivelock)
	return true
}

// adopt looks at faults outside of every region again. A page that has moved
// can fault at its new place before the move is told. Only when no change is
// under way, and all that were have been read, is it certain that the fault is
// nobody's.
func (g *Guest) adopt() {
	rd := &g.reader
	rd.tries++
	settled := g.isSettled()
	if settled {
		// Changes that have ended by now had been read before: this goroutine
		// alone reads, and has marked all that it read.
		rd.tries = 0
	} else if rd.tries <= g.o.RetryLimit {
		return
	}
	waiting := rd.orphans
	rd.orphans = nil
	for _, ev := range waiting {
		if r, i, ok := g.l.layout.Load().find(ev.Addr); ok {
			g.servePage(r, i, ev.Flags)
			continue
		}
		g.stats.Outside.Inc()
		g.end(&Error{Op: "serve a fault", Guest: g.o.Name, Addr: ev.Addr, Err: ErrOutside})
	}
}

// isSettled reports whether no layout change is under way. Every install tells
// that before it looks at its arguments; this one is for page 0, which nobody
// maps.
func (g *Guest) isSettled() bool {
	_, err := g.l.k.Zero(0, smallPage, 0)
	return err != nil && !isTransient(err)
}

// A spinner decides whether to spin before sleeping, by whether it has paid. A
// sleeping thread takes the scheduler's 5 to 70 µs to come back, a spinning one
// is there; but it takes a processor from somebody, and so it must have met
// events of late.
type spinner struct {
	limit time.Duration
	score int // above 0: spin
	skip  int // sleeps since spinning was tried last
}

const (
	maxSpinScore = 8
	// spinAgain is after how many sleeps spinning is tried once more.
	spinAgain = 16
	// looks is how many times events are looked for between two looks at the
	// clock.
	looks = 4
)

// worth reports whether to spin now.
func (sp *spinner) worth() bool {
	if sp.limit < 0 {
		return false
	}
	if sp.score > 0 {
		return true
	}
	if sp.skip++; sp.skip < spinAgain {
		return false
	}
	sp.skip = 0
	return true
}

func (sp *spinner) paid()    { sp.score = min(sp.score+1, maxSpinScore) }
func (sp *spinner) notPaid() { sp.score = max(sp.score-1, 0) }

// takeSpinning looks for events for a little while, if that is worth it and not
// too many others do.
func (g *Guest) takeSpinning() (int, error) {
	sp := &g.reader.spin
	if !sp.worth() {
		return 0, nil
	}
	defer g.s.spinning.Add(-1)
	if g.s.spinning.Add(1) > g.s.maxSpin {
		return 0, nil
	}
	for began := time.Now(); time.Since(began) < sp.limit; {
		for range looks {
			if n, err := g.take(); n > 0 || err != nil {
				sp.paid()
				return n, err
			}
		}
	}
	sp.notPaid()
	return 0, nil
}

func (g *Guest) now() time.Time {
	if g.o.Observe == nil {
		return time.Time{}
	}
	return time.Now()
}

func (g *Guest) observe(o Outcome, since time.Time) {
	if g.o.Observe != nil {
		g.o.Observe(o, time.Since(since))
	}
}

// installFailed deals with an error of the kernel on a page that is claimed or
// was: it is of no use to try again.
func (g *Guest) installFailed(op string, r *region, i int, err error) {
	if errors.Is(err, ErrClosed) && g.ctx.Err() != nil {
		return // lost the ledger
	}
	if !isAny(err, ErrPeerGone, ErrLivelock, ErrPanicked, ErrSource) {
		err = because(ErrKernel, err)
	}
	g.stats.Failed.Inc()
	g.fail(op, r, i, err)
}
