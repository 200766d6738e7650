package workload

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// A Figure is what one round came to. Times are nanoseconds for one operation;
// with several workers, wall time over the operations of all.
type Figure struct {
	// PerOp is in the row's unit.
	PerOp float64 `json:"per_op"`
	// P50 and P999 are set by sampled runs: the median and the 99.9th
	// percentile of single calls, one reading of the clock included.
	P50  float64 `json:"p50_ns,omitempty"`
	P999 float64 `json:"p999_ns,omitempty"`
	// Ops is how many operations were timed, or what was counted.
	Ops int `json:"ops"`
	// Latency is set by sampled runs: the HdrHistogram of their samples, in
	// nanoseconds, as its own compressed encoding.
	Latency []byte `json:"latency,omitempty"`
}

const (
	// chunkAim is how long the calls between two readings of the clock should
	// take, so that the clock's own 50 ns vanish in them.
	chunkAim = 100 * time.Microsecond
	// wallFactor bounds a round whose resets take long: it ends when the wall
	// clock has gone this many times the budget. Warming up is bounded by warmFactor:
	// resets touch what rounds touch.
	wallFactor = 6
	warmFactor = 2
)

// warmUp is how long a run goes before it is timed: what another contender
// did meanwhile has emptied the caches, and filling them with the 16 MiB that
// some rows use takes 25 ms. Without it a short round measures that.
//
// A short round has a shorter one, and pays for that with its spread.
func warmUp(budget time.Duration) time.Duration {
	return min(30*time.Millisecond, 2*budget)
}

// Measure times the run for about budget, once it is warm.
func (r *Run) Measure(budget time.Duration) (Figure, error) {
	if r.Count != nil {
		return r.Count()
	}
	// What was left to collect before, by this run or another, is not this
	// round's to pay. Every contender does so in its own process.
	runtime.GC()
	stop := r.startWriter()
	warm := warmUp(budget)
	fig, err := r.measure(warm, warmFactor*warm)
	if err == nil {
		fig, err = r.measure(budget, wallFactor*budget)
	}
	return fig, errors.Join(err, stop())
}

// measure times the run for about budget, from a reset on, and for no longer than wall
// if resets take most of it.
func (r *Run) measure(budget, wall time.Duration) (Figure, error) {
	if r.Reset != nil {
		if err := r.Reset(); err != nil {
			return Figure{}, err
		}
	}
	switch {
	case r.Sampled:
		return r.measureSampled(budget)
	case len(r.Workers) > 1:
		return r.measureTogether(budget)
	}
	calls, took, err := r.timeCalls(budget, wall)
	return r.figure(calls, took), err
}

func (r *Run) figure(calls int, took time.Duration) Figure {
	ops := calls * r.PerCall
	if ops == 0 {
		return Figure{}
	}
	return Figure{PerOp: float64(took.Nanoseconds()) / float64(ops), Ops: ops}
}

// timeCalls calls the one worker until budget is spent on the clock, with
// resets off it, or wall in all; once at least.
func (r *Run) timeCalls(budget, wall time.Duration) (calls int, took time.Duration, err error) {
	op, chunk, i := r.Workers[0], 1, 0
	began := time.Now()
	for calls == 0 || took < budget && time.Since(began) < wall {
		if r.Round > 0 && i == r.Round {
			if err := r.Reset(); err != nil {
				return calls, took, err
			}
			i = 0
		}
		n := chunk
		if r.Round > 0 {
			n = min(n, r.Round-i)
		}
		start := time.Now()
		for k := range n {
			if err := op(i + k); err != nil {
				return calls, took, err
			}
		}
		chunkTook := time.Since(start)
		took += chunkTook
		calls += n
		i += n
		if chunkTook < chunkAim && n == chunk { // a round's end cuts n short
			chunk *= 2
		}
	}
	return calls, took, nil
}

// measureTogether lets all workers run until the budget is over.
func (r *Run) measureTogether(budget time.Duration) (Figure, error) {
	var (
		wg    sync.WaitGroup
		stop  atomic.Bool
		calls = make([]int, len(r.Workers))
		errs  = make([]error, len(r.Workers))
	)
	start := time.Now()
	for w, op := range r.Workers {
		wg.Go(func() {
			n := 0                                         // a local: the workers' counters would share a cache line
			for n == 0 || !stop.Load() && errs[w] == nil { // once, however late it is let run
				errs[w] = op(n)
				n++
			}
			calls[w] = n
		})
	}
	time.Sleep(budget)
	stop.Store(true)
	wg.Wait()
	took := time.Since(start)
	sum := 0
	for _, n := range calls {
		sum += n
	}
	return r.figure(sum, took), errors.Join(errs...)
}

const (
	// sampleEvery is how many calls go by for each that is timed by itself:
	// the two readings of the clock, some 200 ns, are a few in the mean then.
	sampleEvery = 32
	// What a histogram holds: up to ten seconds, to three digits. A sample above
	// that counts as ten seconds.
	longestSample = int64(10 * time.Second)
	sampleDigits  = 3
)

// measureSampled times one call in sampleEvery by itself.
func (r *Run) measureSampled(budget time.Duration) (Figure, error) {
	op := r.Workers[0]
	samples := hdrhistogram.New(1, longestSample, sampleDigits)
	start := time.Now()
	end, calls := start, 0
	for end.Sub(start) < budget {
		for range sampleEvery - 1 {
			if err := op(calls); err != nil {
				return Figure{}, err
			}
			calls++
		}
		before := time.Now()
		if err := op(calls); err != nil {
			return Figure{}, err
		}
		calls++
		end = time.Now()
		took := min(max(end.Sub(before).Nanoseconds(), 1), longestSample)
		if err := samples.RecordValue(took); err != nil {
			return Figure{}, fmt.Errorf("workload: %w", err)
		}
	}
	fig := r.figure(calls, end.Sub(start))
	fig.P50 = float64(samples.ValueAtQuantile(50))
	fig.P999 = float64(samples.ValueAtQuantile(99.9))
	var err error
	fig.Latency, err = samples.Encode(hdrhistogram.V2CompressedEncodingCookieBase)
	return fig, err
}

// startWriter starts the run's writer, if any, and returns what stops it and
// waits for it.
func (r *Run) startWriter() (stop func() error) {
	if r.Writer == nil {
		return func() error { return nil }
	}
	var stopped atomic.Bool
	running, done := make(chan struct{}), make(chan error, 1)
	go func() {
		close(running)
		for n := 0; n == 0 || !stopped.Load(); n++ { // once, however late it is let run
			if err := r.Writer(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	<-running
	return func() error {
		stopped.Store(true)
		return <-done
	}
}
