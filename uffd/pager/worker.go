package pager

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/guestmm/guestmm/uffd"
)

// A job is what a worker does for a fault.
type job struct {
	kind  jobKind
	r     *region
	i     int
	why   uffd.FaultFlags
	since time.Time
}

type jobKind uint8

const (
	jobRead  jobKind = iota // read a claimed page and install it
	jobZero                 // answer with zeroes
	jobWrite                // tell of a write and disarm
	jobFill                 // the next run of the filler
)

// A worker does jobs of all guests, one at a time.
type worker struct {
	s     *Server
	buf   []byte      // runBytes, or a huge page once one was served
	since []time.Time // when the faults were read that are served together
}

// runBytes is what is read and installed at a time when nobody waits: larger
// runs were slower in the field's measurements, and smaller ones too.
const runBytes = 64 << 10

// startWorker adds a worker. s.mu is held, or s is not shared yet.
func (s *Server) startWorker() {
	s.workers.Add(1)
	go (&worker{s: s}).run()
}

func (w *worker) run() {
	defer w.s.workers.Done()
	for {
		g, j, ok := w.s.next()
		if !ok {
			return
		}
		if w.do(g, j) == guestLeft {
			return
		}
	}
}

// do does a job. A panic of an embedder's code ends the guest, not the worker.
func (w *worker) do(g *Guest, j job) (after stay) {
	defer func() {
		if g.isComplete() {
			g.w.poke() // the reader lets go of the memory
		}
		after = w.s.finished(g, j.kind)
	}()
	defer func() { g.recovered(recover()) }()
	if g.ctx.Err() != nil {
		return after
	}
	switch j.kind {
	case jobRead:
		w.serveRead(g, j)
	case jobZero:
		err := g.paced(func() error { return g.zero(j.r, j.i, j.why) })
		if err != nil {
			g.installFailed("zero", j.r, j.i, err)
			return after
		}
		g.observe(OutcomeZeroed, j.since)
	case jobWrite:
		w.serveWrite(g, j)
	case jobFill:
		w.fillRun(g)
	}
	return after
}

// room returns n bytes of the worker's buffer.
func (w *worker) room(n uint64) []byte {
	if uint64(len(w.buf)) < n {
		w.buf = make([]byte, max(n, runBytes))
	}
	return w.buf[:n]
}

// serveRead reads a claimed page and installs it. Claimed pages after it whose
// faults wait in the queue are read along.
func (w *worker) serveRead(g *Guest, j job) {
	w.since = append(w.since[:0], j.since)
	if limit := int(runBytes >> j.r.shift); limit > 1 {
		w.since = g.s.takeFollowing(g, j, limit, w.since)
	}
	n := len(w.since)
	data, err := w.read(g, j.r, j.i, n)
	if err != nil && n > 1 {
		// One bad page must not fail its neighbours.
		for k := range n {
			w.serveOne(g, j.r, j.i+k, w.since[k:k+1])
		}
		return
	}
	w.installRead(g, j.r, j.i, data, err, w.since)
}

func (w *worker) serveOne(g *Guest, r *region, i int, since []time.Time) {
	data, err := w.read(g, r, i, 1)
	w.installRead(g, r, i, data, err, since)
}

// read gets the bytes of n pages, by the guest's retry policy. In ModeContinue
// they are in the cache afterwards, and there are no bytes.
func (w *worker) read(g *Guest, r *region, i, n int) ([]byte, error) {
	buf := w.room(r.bytes(n))
	if r.Mode == ModeContinue {
		return nil, r.Cache.fetch(g.ctx, buf, r.offset(i), func(ctx context.Context, p []byte, off uint64) error {
			return g.readRetrying(ctx, r.Cache.source, p, off)
		})
	}
	return buf, g.readRetrying(g.ctx, g.o.Source, buf, r.offset(i))
}

// readRetrying reads until it works or the policy has had enough.
func (g *Guest) readRetrying(ctx context.Context, s Source, p []byte, off uint64) error {
	wait := g.o.Retry.Backoff
	for attempt := 1; ; attempt++ {
		g.stats.Reads.Inc()
		err := g.readOnce(ctx, s, p, off)
		if err == nil {
			return nil
		}
		g.stats.ReadErrors.Inc()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if attempt >= g.o.Retry.Attempts {
			return because(ErrSource, err)
		}
		if !g.pause(wait) {
			return ctx.Err()
		}
		wait = min(2*wait, g.o.Retry.MaxWait)
	}
}

func (g *Guest) readOnce(ctx context.Context, s Source, p []byte, off uint64) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w: %v", ErrPanicked, v)
		}
	}()
	if g.o.Retry.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, g.o.Retry.Timeout)
		defer cancel()
	}
	return s.ReadPages(ctx, p, off)
}

// installRead installs what was read for claimed pages, one for each of since, or
// deals with err.
func (w *worker) installRead(g *Guest, r *region, i int, data []byte, err error, since []time.Time) {
	g.hook(pointRead)
	n := len(since)
	if err != nil {
		g.unreadable(r, i, n, err)
		return
	}
	if k, err := g.installPaced(r, i, n, data); err != nil {
		g.giveBack(r, i+k, n-k)
		g.installFailed("install", r, i+k, err)
		return
	}
	g.hook(pointSettled)
	outcome := OutcomeCopied
	if r.Mode == ModeContinue {
		outcome = OutcomeContinued
	}
	for _, read := range since {
		g.observe(outcome, read)
	}
}

// unreadable deals with claimed pages that somebody waits for and that cannot
// be read for good.
func (g *Guest) unreadable(r *region, i, n int, err error) {
	if g.ctx.Err() != nil {
		return // it is the guest that has ended; whoever takes over reads again
	}
	if g.o.OnFailure == Park {
		g.mu.Lock()
		for k := range n {
			g.parked = append(g.parked, pageRef{r, i + k})
		}
		g.mu.Unlock()
		g.stats.Parked.Add(uint64(n))
		return
	}
	g.stats.Failed.Add(uint64(n))
	g.fail("read a page", r, i, err)
}

// installPaced is install, tried again while that may help.
func (g *Guest) installPaced(r *region, i, n int, data []byte) (done int, err error) {
	tries := 0
	for {
		k, err := g.install(r, i+done, n-done, tail(data, r.bytes(done)))
		if done += k; k > 0 {
			tries = 0
		}
		if err == nil || !isTransient(err) {
			return done, err
		}
		if err := g.waitToRetry(&tries, err); err != nil {
			return done, err
		}
	}
}

func tail(b []byte, from uint64) []byte {
	if b == nil {
		return nil
	}
	return b[from:]
}

// paced calls f until it is done with transient errors.
func (g *Guest) paced(f func() error) error {
	for tries := 0; ; {
		err := f()
		if err == nil || !isTransient(err) {
			return err
		}
		if err := g.waitToRetry(&tries, err); err != nil {
			return err
		}
	}
}

// waitToRetry waits for the moment to try an install again, or says that there
// is no use in it: the guest has ended, or it has been long enough.
func (g *Guest) waitToRetry(tries *int, err error) error {
	g.stats.Retried.Inc()
	pace := retryEvery
	if errors.Is(err, syscall.ENOMEM) {
		// Memory takes its time to come back, and each attempt has the kernel look
		// for some, which costs everybody.
		pace = shortAgain
	}
	if *tries += int(pace / retryEvery); *tries >= g.o.RetryLimit {
		return because(ErrLivelock, err)
	}
	if !g.pause(pace) {
		return &Error{Op: "serve", Guest: g.o.Name, Err: ErrClosed}
	}
	return nil
}

// pause sleeps, and reports whether the guest is still served after that. A
// short sleep is not cut short by the guest's end.
func (g *Guest) pause(d time.Duration) bool {
	if d <= time.Millisecond {
		sleepShort(d)
		return g.ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-g.ctx.Done():
		return false
	}
}

// serveWrite tells the owner of a write to an armed page, and lets it happen.
func (w *worker) serveWrite(g *Guest, j job) {
	at, _, ok := g.l.layout.Load().locate(j.r, j.i, 1)
	if !ok {
		return
	}
	if g.o.OnWrite != nil {
		if err := g.o.OnWrite(g.ctx, at, j.r.offset(j.i)); err != nil {
			if g.ctx.Err() == nil {
				g.fail("tell of a write", j.r, j.i, err)
			}
			return
		}
	}
	if err := g.paced(func() error { return g.disarm(j.r, j.i) }); err != nil && !errors.Is(err, ErrClosed) {
		g.installFailed("disarm", j.r, j.i, err)
	}
}
