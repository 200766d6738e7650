package floor

import (
	"fmt"
	"strings"
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

// A Peer measures the C program alone.
type Peer struct {
	program *Program
	serve   string // "block" or "spin"

	row  string    // whose program is kept
	kept *resident // nil: none
}

// Blocking serves by blocking reads: what the goals are set against.
func (p *Program) Blocking() *Peer { return &Peer{program: p, serve: "block"} }

// Spinning serves by reads that do not block, and sleeps after 50 µs.
func (p *Program) Spinning() *Peer { return &Peer{program: p, serve: "spin"} }

// Measure runs the program once, or has the one that is kept for the row go on. It
// answers workload.ErrNoFigure for rows of others that it does not answer, and in
// Spinning for rows in which nobody serves.
func (p *Peer) Measure(row workload.Row, budget time.Duration) (workload.Figure, error) {
	block := p.serve == "block"
	switch {
	case HasPeer(row) && block:
		return p.again(row, peerRows[row.Name])
	case !Has(row):
		return workload.Figure{}, workload.ErrNoFigure
	case strings.HasPrefix(row.Name, callsPrefix):
		if row.Name != callsPrefix+tracedUFFD || !block {
			return workload.Figure{}, workload.ErrNoFigure
		}
		return p.program.callsPer(func(n string) []string { return []string{p.program.path, "serve", "missing", n, "block"} })
	}
	n := fmt.Sprint(pagesOf(row, budget))
	switch {
	case mode(row) != "bulk=64KiB" && mode(row) != "arm=1GiB" && guests(row) == 0:
		return p.program.run("serve", mode(row), n, p.serve)
	case !block:
		return workload.Figure{}, workload.ErrNoFigure
	case guests(row) > 0:
		return p.program.run("many", "missing", fmt.Sprint(guestPages), fmt.Sprint(guests(row)))
	case mode(row) == "bulk=64KiB":
		return p.program.run("bulk", n, fmt.Sprint(bulkRun))
	default:
		return p.again(row, []string{"arm", fmt.Sprint(armSize)})
	}
}

// again measures a row whose program is kept from round to round.
func (p *Peer) again(row workload.Row, args []string) (fig workload.Figure, err error) {
	if p.kept != nil && p.row == row.Name {
		fig, err = p.kept.next()
	} else {
		if err := p.Finish(); err != nil {
			return fig, err
		}
		if p.kept, err = p.program.keep(args); err != nil {
			return fig, err
		}
		p.row = row.Name
		fig, err = p.kept.first()
	}
	if err != nil {
		p.kept = nil // it has ended, and said why
	}
	return fig, err
}

// Finish lets go of the program that is kept.
func (p *Peer) Finish() error {
	kept := p.kept
	p.kept = nil
	if kept == nil {
		return nil
	}
	return kept.close()
}

// Close does so too.
func (p *Peer) Close() error { return p.Finish() }
