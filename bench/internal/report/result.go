package report

import "github.com/guestmm/guestmm/bench/internal/workload"

// A Cell is what one contender came to in one row.
type Cell struct {
	// Rounds holds a figure per round; none if Missing or NotApplicable.
	Rounds []workload.Figure `json:"rounds,omitempty"`
	// Missing says why there should be a figure and is none; else empty.
	Missing string `json:"missing,omitempty"`
	// NotApplicable: the row asks nothing of this contender.
	NotApplicable bool `json:"not_applicable,omitempty"`
}

func (c Cell) has() bool { return len(c.Rounds) > 0 && c.Missing == "" }

// values returns the measure of every round.
func (c Cell) values(m Measure) []float64 {
	out := make([]float64, len(c.Rounds))
	for i, fig := range c.Rounds {
		out[i] = fig.PerOp
		if m == Tail {
			out[i] = fig.P999
		}
	}
	return out
}

// A Result is one row as measured.
type Result struct {
	Row   workload.Row
	Cells map[string]Cell // by contender; Ours is always there
	// Noisy says what made the row unfit to be believed; else empty.
	Noisy string
}

// Values returns the mean of every round of a contender; none if it has no figure.
func (r Result) Values(contender string) []float64 {
	if c := r.Cells[contender]; c.has() {
		return c.values(Mean)
	}
	return nil
}

// Results are the rows of one run, in order.
type Results []Result

func (rs Results) find(row string) (Result, bool) {
	for _, r := range rs {
		if r.Row.Name == row {
			return r, true
		}
	}
	return Result{}, false
}
