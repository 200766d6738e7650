package floor

import (
	"fmt"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// A Peer measures the C program alone. It makes nothing ready between rounds.
type Peer struct {
	program *Program
	serve   string // "block" or "spin"
}

// Blocking serves by blocking reads: what the goals are set against.
func (p *Program) Blocking() *Peer { return &Peer{p, "block"} }

// Spinning serves by reads that do not block, and sleeps after 50 µs.
func (p *Program) Spinning() *Peer { return &Peer{p, "spin"} }

// Measure runs the program once. It answers workload.ErrNoFigure for rows of
// others, and in Spinning for rows in which nobody serves.
func (p *Peer) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	switch {
	case !Has(row):
		return workload.Figure{}, workload.ErrNoFigure
	case mode(row) == "bulk=64KiB", mode(row) == "arm=1GiB":
		if p.serve != "block" {
			return workload.Figure{}, workload.ErrNoFigure
		}
	}
	n := fmt.Sprint(pages(budget))
	switch mode(row) {
	case "bulk=64KiB":
		return p.program.run("bulk", n, fmt.Sprint(bulkRun))
	case "arm=1GiB":
		return p.program.run("arm", fmt.Sprint(armSize))
	default:
		return p.program.run("serve", mode(row), n, p.serve)
	}
}

// Finish does nothing.
func (*Peer) Finish() error { return nil }

// Close does nothing.
func (*Peer) Close() error { return nil }
