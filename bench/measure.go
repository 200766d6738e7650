package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"github.com/guestmm/guestmm/bench/internal/host"
	"github.com/guestmm/guestmm/bench/internal/report"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// measure returns the rows that were finished before ctx ended.
func measure(ctx context.Context, cfg config, all []contender, progress io.Writer) report.Results {
	var results report.Results
	control := host.NewControl()
	for i, row := range cfg.rows {
		if ctx.Err() != nil {
			break
		}
		fmt.Fprintf(progress, "[%d/%d] %s\n", i+1, len(cfg.rows), row.Name)
		r := measureRow(ctx, cfg, row, all, control)
		if ctx.Err() != nil {
			break // cut short
		}
		results = append(results, r)
	}
	return results
}

func measureRow(ctx context.Context, cfg config, row workload.Row, all []contender, control *host.Control) report.Result {
	cells := make(map[string]*report.Cell)
	for _, c := range all {
		cells[c.name] = &report.Cell{}
		// A short round that does not count makes the row ready.
		_, err := c.Measure(row, cfg.budget/5)
		note(cells[c.name], err)
	}
	cores := min(row.Cores, runtime.NumCPU())
	var controls []host.Times
	for round := 0; round < cfg.rounds && ctx.Err() == nil; round++ {
		for _, c := range all {
			cell := cells[c.name]
			if cell.NotApplicable || cell.Missing != "" {
				continue
			}
			before := control.Run(cores)
			fig, err := c.Measure(row, cfg.budget)
			controls = append(controls, before, control.Run(cores))
			if note(cell, err); err == nil {
				cell.Rounds = append(cell.Rounds, fig)
			}
		}
	}
	r := report.Result{Row: row, Cells: make(map[string]report.Cell), Noisy: control.CoresDisturbed(controls)}
	for _, c := range all {
		cell := cells[c.name]
		note(cell, c.Finish())
		r.Cells[c.name] = *cell
	}
	if r.Noisy == "" && row.Wide {
		r.Noisy = control.MemoryDisturbed(controls)
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
