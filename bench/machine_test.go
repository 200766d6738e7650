package main

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"github.com/guestmm/guestmm/bench/floor"
	"github.com/guestmm/guestmm/bench/internal/machine"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/internal/testutil"
)

// benchmarkMachine measures a row of whole memories and virtual machines.
func benchmarkMachine(b *testing.B, name string) {
	row, err := workload.Find(name)
	if err != nil {
		b.Fatal(err)
	}
	run, err := machine.Prepare(row)
	if errors.Is(err, workload.ErrNoFigure) {
		b.Skip("needs Linux/amd64")
	}
	if errors.Is(err, guestmem.ErrNotSupported) {
		b.Skip(err)
	}
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := run.Close(); err != nil {
			b.Error(err)
		}
	}()
	if run.Count == nil {
		benchmarkRun(b, run)
		return
	}
	var figures []float64
	for b.Loop() {
		fig, err := run.Count()
		if errors.Is(err, guestmem.ErrNotSupported) {
			b.Skip(err)
		}
		if err != nil {
			b.Fatal(err)
		}
		figures = append(figures, fig.PerOp)
	}
	b.ReportMetric(report.Median(figures), row.Unit())
}

// benchmarkServed measures a row whose guest is the C program.
func benchmarkServed(b *testing.B, name string) {
	testutil.RequireUFFD(b, testutil.UFFDWPShmem)
	if _, err := exec.LookPath("cc"); err != nil {
		b.Skip("needs a C compiler:", err)
	}
	row, err := workload.Find(name)
	if err != nil {
		b.Fatal(err)
	}
	program, err := floor.Build(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	var figures []float64
	for b.Loop() {
		fig, err := program.Measure(row, 10*time.Millisecond)
		if err != nil {
			b.Fatal(err)
		}
		figures = append(figures, fig.PerOp)
	}
	b.ReportMetric(report.Median(figures), row.Unit())
}
