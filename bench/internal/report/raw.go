package report

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
)

// WriteRaw writes every round of every contender in the format of Go's benchmarks,
// a line for each, which benchstat reads and compares.
func WriteRaw(w io.Writer, cpu string, rs Results) error {
	fmt.Fprintf(w, "goos: %s\ngoarch: %s\npkg: github.com/guestmm/guestmm/bench\n", runtime.GOOS, runtime.GOARCH)
	if cpu != "" {
		fmt.Fprintf(w, "cpu: %s\n", cpu)
	}
	for _, r := range rs {
		for _, name := range Contenders() {
			cell := r.Cells[name]
			if !cell.has() {
				continue
			}
			for _, fig := range cell.Rounds {
				var line strings.Builder
				fmt.Fprintf(&line, "BenchmarkRow/%s/by=%s\t%d\t%g %s", r.Row.Name, name, max(1, fig.Ops), fig.PerOp, r.Row.Unit())
				if fig.P999 > 0 {
					fmt.Fprintf(&line, "\t%g p50-ns\t%g p99.9-ns", fig.P50, fig.P999)
				}
				if _, err := fmt.Fprintln(w, line.String()); err != nil {
					return fmt.Errorf("report: %w", err)
				}
			}
		}
	}
	return nil
}

// WriteRounds writes the same as JSON, with the reasons of who is missing and the
// histograms: nothing that was measured is left out.
func WriteRounds(w io.Writer, rs Results) error {
	type row struct {
		Row   string          `json:"row"`
		What  string          `json:"what"`
		Unit  string          `json:"unit"`
		Noisy string          `json:"noisy,omitempty"`
		Cells map[string]Cell `json:"contenders"`
	}
	rows := make([]row, 0, len(rs))
	for _, r := range rs {
		rows = append(rows, row{r.Row.Name, r.Row.What, r.Row.Unit(), r.Noisy, r.Cells})
	}
	if err := json.NewEncoder(w).Encode(rows); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	return nil
}
