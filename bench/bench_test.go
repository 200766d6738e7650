package main

import (
	"testing"

	"github.com/guestmm/guestmm/bench/internal/guest"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// benchmarkRow measures one row of the report on guestmm alone, one operation
// per iteration. What makes the next round ready is off the clock.
func benchmarkRow(b *testing.B, name string) {
	benchmarkRun(b, prepare(b, name))
}

func benchmarkRun(b *testing.B, run *workload.Run) {
	if run.Reset != nil {
		if err := run.Reset(); err != nil {
			b.Fatal(err)
		}
	}
	stop := besideWriter(b, run.Writer)
	defer stop()
	op, i := run.Workers[0], 0
	b.ReportAllocs()
	for b.Loop() {
		if run.Round > 0 && i == run.Round {
			b.StopTimer()
			if err := run.Reset(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
			i = 0
		}
		if err := op(i); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// prepare makes a row ready until the benchmark ends.
func prepare(b *testing.B, name string) *workload.Run {
	row, err := workload.Find(name)
	if err != nil {
		b.Fatal(err)
	}
	sub, err := guest.New()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := sub.Close(); err != nil {
			b.Error(err)
		}
	})
	run, err := row.PrepareSingly(sub)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := run.Close(); err != nil {
			b.Error(err)
		}
	})
	return run
}

// besideWriter calls write in a loop until the returned function is called.
func besideWriter(b *testing.B, write func() error) (stop func()) {
	if write == nil {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
			}
			if err := write(); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
