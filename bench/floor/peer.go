package floor

import (
	"fmt"
	"strings"
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
// others that it does not answer, and in Spinning for rows in which nobody serves.
func (p *Peer) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	switch {
	case HasPeer(row) && p.serve == "block":
		return p.program.run(peerRows[row.Name]...)
	case !Has(row):
		return workload.Figure{}, workload.ErrNoFigure
	case strings.HasPrefix(row.Name, callsPrefix):
		if row.Name != callsPrefix+tracedUFFD || p.serve != "block" {
			return workload.Figure{}, workload.ErrNoFigure
		}
		return p.program.callsPer(func(n string) []string { return []string{p.program.path, "serve", "missing", n, "block"} })
	case guests(row) > 0:
		if p.serve != "block" {
			return workload.Figure{}, workload.ErrNoFigure
		}
		return p.program.run("many", "missing", fmt.Sprint(guestPages), fmt.Sprint(guests(row)))
	case mode(row) == "bulk=64KiB", mode(row) == "arm=1GiB":
		if p.serve != "block" {
			return workload.Figure{}, workload.ErrNoFigure
		}
	}
	n := fmt.Sprint(pagesOf(row, budget))
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
