package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/guestmm/guestmm/bench/floor"
	"github.com/guestmm/guestmm/bench/internal/guest"
	"github.com/guestmm/guestmm/bench/internal/kernelmm"
	"github.com/guestmm/guestmm/bench/internal/machine"
	"github.com/guestmm/guestmm/bench/internal/peer"
	"github.com/guestmm/guestmm/bench/internal/plain"
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
	ours := &inProcess{prepare: func(row workload.Row) (*workload.Run, error) {
		run, err := machine.Prepare(row)
		if errors.Is(err, workload.ErrNoFigure) {
			run, err = row.Prepare(sub)
		}
		return run, err
	}, close: sub.Close}
	bare := &inProcess{prepare: func(row workload.Row) (*workload.Run, error) {
		run, err := kernelmm.Prepare(row)
		if errors.Is(err, workload.ErrNoFigure) {
			run, err = machine.PrepareKernel(row)
		}
		return run, err
	}}
	all := map[string]measurer{
		report.Ours:      ours,
		report.GVisor:    absent{workload.ErrNoFigure},
		report.Kernel:    bare,
		report.Floor:     absent{workload.ErrNoFigure},
		report.FloorSpin: absent{workload.ErrNoFigure},
		report.BTree:     ofSubject(plain.NewBTree()),
		report.PageMap:   ofSubject(plain.NewPageMap()),
	}
	rows := cfg.allRows()
	if slices.ContainsFunc(rows, workload.Row.OfSubject) {
		all[report.GVisor] = gvisorContender(ctx, cfg.gvisor, progress)
	}
	if slices.ContainsFunc(rows, floorRow) {
		all[report.Ours], all[report.Floor], all[report.FloorSpin] = withFloor(ctx, ours)
	}
	var out []contender
	for _, name := range report.Contenders() {
		out = append(out, contender{name, all[name]})
	}
	return out, nil
}

// ofSubject measures a memory manager of this process. Its pages are objects of the
// Go heap that ours is in too: a gigabyte of them would have everybody's collector
// busy.
func ofSubject(sub workload.Subject) measurer {
	return &inProcess{prepare: func(row workload.Row) (*workload.Run, error) {
		if strings.HasPrefix(row.Name, "fork/touched=1GiB") || strings.HasSuffix(row.Name, "MiB/scattered") || row.Name == "table/dense=256MiB" {
			return nil, workload.ErrNoFigure
		}
		return row.Prepare(sub)
	}, close: sub.Close}
}

// withFloor builds the C program, which the rows of bench/floor need for ours
// too: it is the guest that faults.
func withFloor(ctx context.Context, others measurer) (ours, blocking, spinning measurer) {
	dir, err := os.MkdirTemp("", "guestmm-bench-")
	if err != nil {
		return serving{others, absent{err}, nil}, floorless{err, floorRow}, floorless{err, floor.Has}
	}
	remove := func() error { return os.RemoveAll(dir) }
	program, err := floor.Build(ctx, dir)
	if err != nil {
		return serving{others, absent{err}, remove}, floorless{err, floorRow}, floorless{err, floor.Has}
	}
	program.Self = self
	return serving{others, program, remove}, program.Blocking(), program.Spinning()
}

// serving measures the rows about serving faults by themselves, and leaves the
// others to another measurer.
type serving struct {
	measurer
	program interface {
		Measure(workload.Row, time.Duration) (workload.Figure, error)
		Finish() error
	}
	close func() error // nil: nothing to close
}

func (s serving) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	if floor.Has(row) {
		return s.program.Measure(row, budget)
	}
	return s.measurer.Measure(row, budget)
}

func (s serving) Finish() error { return errors.Join(s.program.Finish(), s.measurer.Finish()) }

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
		return noGVisor{absent{errors.New("left out by -gvisor none")}}
	case "build":
		fmt.Fprintln(progress, "building bench/gvisorpeer ...")
		dir, err := os.MkdirTemp("", "guestmm-bench-")
		if err != nil {
			return noGVisor{absent{err}}
		}
		// A running binary needs its file no more.
		defer os.RemoveAll(dir)
		if how, err = peer.BuildGVisor(ctx, dir); err != nil {
			return noGVisor{absent{err}}
		}
	}
	p, err := peer.Start(ctx, report.GVisor, how)
	if err != nil {
		return noGVisor{absent{err}}
	}
	return p
}

// noGVisor is missing in the rows that a memory manager answers.
type noGVisor struct{ absent }

func (n noGVisor) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	if !row.OfSubject() {
		return workload.Figure{}, workload.ErrNoFigure
	}
	return n.absent.Measure(row, budget)
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

func floorRow(row workload.Row) bool { return floor.Has(row) || floor.HasPeer(row) }

// floorless stands in for the C program where there is no compiler: it is missing
// in its own rows alone.
type floorless struct {
	why error
	has func(workload.Row) bool
}

func (f floorless) Measure(row workload.Row, _ time.Duration) (workload.Figure, error) {
	if f.has(row) {
		return workload.Figure{}, f.why
	}
	return workload.Figure{}, workload.ErrNoFigure
}
func (floorless) Finish() error { return nil }
func (floorless) Close() error  { return nil }

// absent stands in for a peer that is missing.
type absent struct{ why error }

func (a absent) Measure(workload.Row, time.Duration) (workload.Figure, error) {
	return workload.Figure{}, a.why
}
func (absent) Finish() error { return nil }
func (absent) Close() error  { return nil }
