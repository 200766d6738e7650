package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/guestmm/guestmm/bench/floor"
	"github.com/guestmm/guestmm/bench/internal/guest"
	"github.com/guestmm/guestmm/bench/internal/kernelmm"
	"github.com/guestmm/guestmm/bench/internal/peer"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// A contender is measured in every row.
type contender struct {
	name string
	measurer
}

// A measurer answers for one row at a time: Finish lets go of it.
type measurer interface {
	Measure(row workload.Row, budget time.Duration) (workload.Figure, error)
	Finish() error
	Close() error
}

// contenders returns ours first, then the peers. A peer that cannot be had
// takes part with its reason in place of figures; one that no row asks for is not
// built.
func contenders(ctx context.Context, cfg config, progress io.Writer) ([]contender, error) {
	sub, err := guest.New()
	if err != nil {
		return nil, err
	}
	ours := &inProcess{prepare: func(row workload.Row) (*workload.Run, error) { return row.Prepare(sub) }, close: sub.Close}
	all := []contender{
		{report.Ours, ours},
		{report.GVisor, absent{workload.ErrNoFigure}},
		{report.Kernel, &inProcess{prepare: kernelmm.Prepare}},
		{report.Floor, absent{workload.ErrNoFigure}},
		{report.FloorSpin, absent{workload.ErrNoFigure}},
	}
	if !allOf(cfg.rows, floor.Has) {
		all[1].measurer = gvisorContender(ctx, cfg.gvisor, progress)
	}
	if slices.ContainsFunc(cfg.rows, floor.Has) {
		all[0].measurer, all[3].measurer, all[4].measurer = withFloor(ctx, ours)
	}
	return all, nil
}

func allOf(rows []workload.Row, has func(workload.Row) bool) bool {
	return !slices.ContainsFunc(rows, func(row workload.Row) bool { return !has(row) })
}

// withFloor builds the C program, which the rows of bench/floor need for ours
// too: it is the guest that faults.
func withFloor(ctx context.Context, others measurer) (ours, blocking, spinning measurer) {
	dir, err := os.MkdirTemp("", "guestmm-bench-")
	if err != nil {
		return serving{others, absent{err}, nil}, absent{err}, absent{err}
	}
	remove := func() error { return os.RemoveAll(dir) }
	program, err := floor.Build(ctx, dir)
	if err != nil {
		return serving{others, absent{err}, remove}, absent{err}, absent{err}
	}
	return serving{others, program, remove}, program.Blocking(), program.Spinning()
}

// serving measures the rows about serving faults by themselves, and leaves the
// others to another measurer.
type serving struct {
	measurer
	program interface {
		Measure(workload.Row, time.Duration) (workload.Figure, error)
	}
	close func() error // nil: nothing to close
}

func (s serving) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	if floor.Has(row) {
		return s.program.Measure(row, budget)
	}
	return s.measurer.Measure(row, budget)
}

func (s serving) Close() error {
	err := s.measurer.Close()
	if s.close != nil {
		err = errors.Join(err, s.close())
	}
	return err
}

func gvisorContender(ctx context.Context, how string, progress io.Writer) measurer {
	switch how {
	case "none":
		return absent{errors.New("left out by -gvisor none")}
	case "build":
		fmt.Fprintln(progress, "building bench/gvisorpeer ...")
		dir, err := os.MkdirTemp("", "guestmm-bench-")
		if err != nil {
			return absent{err}
		}
		// A running binary needs its file no more.
		defer os.RemoveAll(dir)
		if how, err = peer.BuildGVisor(ctx, dir); err != nil {
			return absent{err}
		}
	}
	p, err := peer.Start(ctx, report.GVisor, how)
	if err != nil {
		return absent{err}
	}
	return p
}

// inProcess measures a subject of this process.
type inProcess struct {
	prepare func(workload.Row) (*workload.Run, error)
	close   func() error // nil: nothing to close
	row     string
	run     *workload.Run // nil while no row is ready
}

func (c *inProcess) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	if c.run == nil || c.row != row.Name {
		if err := c.Finish(); err != nil {
			return workload.Figure{}, err
		}
		run, err := c.prepare(row)
		if err != nil {
			return workload.Figure{}, err
		}
		c.row, c.run = row.Name, run
	}
	return c.run.Measure(budget)
}

func (c *inProcess) Finish() error {
	run := c.run
	c.run = nil
	if run == nil {
		return nil
	}
	return run.Close()
}

func (c *inProcess) Close() error {
	err := c.Finish()
	if c.close != nil {
		err = errors.Join(err, c.close())
	}
	return err
}

// absent stands in for a peer that is missing.
type absent struct{ why error }

func (a absent) Measure(workload.Row, time.Duration) (workload.Figure, error) {
	return workload.Figure{}, a.why
}
func (absent) Finish() error { return nil }
func (absent) Close() error  { return nil }
