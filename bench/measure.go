package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/guestmm/guestmm/bench/internal/growth"
	"github.com/guestmm/guestmm/bench/internal/host"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// A measurement is a run of the report, and what it has come to.
type measurement struct {
	cfg      config
	all      []contender
	control  *host.Control
	progress io.Writer

	results report.Results
	points  report.Results // of the series
	grown   []growth.Growth
	entries []report.Entry
}

// rows measures the rows until ctx ends, and keeps those that were finished.
func (m *measurement) rows(ctx context.Context) {
	for i, row := range m.cfg.rows {
		if ctx.Err() != nil {
			return
		}
		fmt.Fprintf(m.progress, "[%d/%d] %s\n", i+1, len(m.cfg.rows), row.Name)
		rounds := m.cfg.rounds
		switch {
		case row.Unit() != "ns/op":
			rounds = min(rounds, m.cfg.count)
		case row.Slow():
			rounds = min(rounds, m.cfg.slow)
		}
		if r := m.row(ctx, row, rounds, m.cfg.budget, m.all); ctx.Err() == nil {
			m.results = append(m.results, r)
		}
	}
}

// seriesRounds are few: a point that is off shows among its neighbours.
const seriesRounds = 3

// series measures how costs grow, likewise. A contender that has no figure at one
// size is not asked for the greater.
func (m *measurement) series(ctx context.Context) {
	for i, s := range m.cfg.series {
		if ctx.Err() != nil {
			return
		}
		fmt.Fprintf(m.progress, "[%d/%d] growth/%s\n", i+1, len(m.cfg.series), s.Name)
		g := growth.Growth{Name: s.Name, What: s.What, Of: s.Of}
		curves := make(map[string]*growth.Curve)
		left := m.all
		for _, n := range s.Points {
			r := m.row(ctx, s.Row(n), seriesRounds, m.cfg.budget/2, left)
			if ctx.Err() != nil {
				break
			}
			m.points = append(m.points, r)
			if r.Noisy != "" {
				g.Noisy = r.Noisy
			}
			left = addPoints(curves, left, r, n)
		}
		for _, c := range m.all {
			if curve := curves[c.name]; curve != nil {
				g.Curves = append(g.Curves, *curve)
			}
		}
		m.grown = append(m.grown, g)
	}
}

// addPoints returns who is still in the race.
func addPoints(curves map[string]*growth.Curve, all []contender, r report.Result, n int) (left []contender) {
	for _, c := range all {
		cell := r.Cells[c.name]
		if cell.NotApplicable {
			continue
		}
		curve := curves[c.name]
		if curve == nil {
			curve = &growth.Curve{Name: c.name}
			curves[c.name] = curve
		}
		values := r.Values(c.name)
		if len(values) == 0 {
			curve.Missing = fmt.Sprintf("at %d: %s", n, cell.Missing)
			continue
		}
		curve.Points = append(curve.Points, growth.Point{N: float64(n), Cost: report.Median(values)})
		left = append(left, c)
	}
	return left
}

func (m *measurement) row(ctx context.Context, row workload.Row, rounds int, budget time.Duration, all []contender) report.Result {
	cells, spent := make(map[string]*report.Cell), newTally()
	if m.cfg.verbose {
		defer func() { spent.write(m.progress) }()
	}
	for _, c := range all {
		cells[c.name] = &report.Cell{}
		if row.Slow() {
			continue
		}
		// A short round that does not count makes the row ready.
		spent.during(c.name, func() {
			_, err := c.Measure(row, budget/5)
			note(cells[c.name], err)
		})
	}
	cores := min(row.Cores, runtime.NumCPU())
	var controls []host.Times
	for round := 0; round < rounds && ctx.Err() == nil; round++ {
		for _, c := range all {
			cell := cells[c.name]
			if cell.NotApplicable || cell.Missing != "" || ctx.Err() != nil {
				continue
			}
			before := m.control.Run(cores)
			spent.during(c.name, func() {
				fig, err := c.Measure(row, budget)
				if note(cell, err); err == nil {
					cell.Rounds = append(cell.Rounds, fig)
				}
			})
			controls = append(controls, before, m.control.Run(cores))
		}
	}
	r := report.Result{Row: row, Cells: make(map[string]report.Cell)}
	for _, c := range all {
		cell := cells[c.name]
		spent.during(c.name, func() { note(cell, c.Finish()) })
		r.Cells[c.name] = *cell
	}
	if row.Unit() != "ns/op" {
		return r // what is counted or weighed is not disturbed
	}
	r.Noisy = m.control.CoresDisturbed(controls)
	if r.Noisy == "" && row.Wide {
		r.Noisy = m.control.MemoryDisturbed(controls)
	}
	if cores < row.Cores {
		r.Noisy = fmt.Sprintf("the row needs %d cores and the machine has %d", row.Cores, cores)
	}
	return r
}

// note keeps the first error of a contender in a row.
func note(cell *report.Cell, err error) {
	switch {
	case err == nil:
	case errors.Is(err, workload.ErrNoFigure):
		cell.NotApplicable = true
	case cell.Missing == "":
		cell.Missing = err.Error()
	}
}

// footer says how quiet the machine was, and what was not finished.
func (m *measurement) footer(ctx context.Context) string {
	text := "control " + m.control.Summary() + "\n"
	if ctx.Err() != nil {
		text += fmt.Sprintf("\ninterrupted: %d of %d rows", len(m.results), len(m.cfg.rows))
		if n := len(m.cfg.series); n > 0 {
			text += fmt.Sprintf(", %d of %d series", len(m.grown), n)
		}
		text += "\n"
	}
	return text
}

func (m *measurement) writeTable(w io.Writer, footer string) error {
	if err := report.WriteTable(w, m.entries); err != nil {
		return err
	}
	for _, g := range m.grown {
		fmt.Fprintln(w)
		if err := g.Write(w); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "\n%s", footer)
	return err
}
