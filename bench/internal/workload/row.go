package workload

import (
	"fmt"
	"slices"
)

// A Row is one question of the benchmark.
type Row struct {
	// Name is unique and stable: "map/others=1000".
	Name string
	// What says what one operation is, and what is not measured.
	What string
	// Cores is how many cores the row keeps busy.
	Cores int
	// Wide rows touch more memory than caches hold, so that a neighbour's use
	// of the memory disturbs them.
	Wide bool

	prepare func(run *Run, sub Subject) error
}

// batch is how many short operations follow each other without a call in
// between: enough that calling through Op and Copier, 3 to 5 ns, is below
// 0.1 ns each.
const batch = 64

// Prepare makes the row ready on sub, with short operations in batches.
func (r Row) Prepare(sub Subject) (*Run, error) {
	return r.prepareBatched(sub, batch)
}

// PrepareSingly does so with one operation per call, for callers that count
// per call.
func (r Row) PrepareSingly(sub Subject) (*Run, error) {
	return r.prepareBatched(sub, 1)
}

func (r Row) prepareBatched(sub Subject, batch int) (*Run, error) {
	run := &Run{PerCall: 1, batch: batch}
	if err := r.prepare(run, sub); err != nil {
		return nil, fmt.Errorf("%s: %w", r.Name, closeAfter(run, err))
	}
	return run, nil
}

func closeAfter(run *Run, err error) error {
	if closeErr := run.Close(); closeErr != nil {
		return fmt.Errorf("%w (and closing: %v)", err, closeErr)
	}
	return err
}

// Rows returns every row, in the order of the report.
func Rows() []Row {
	return slices.Concat(copyRows(), besideRows(), faultRows(), mapRows(), protectRows(), forkRows(), cowRows(), serveRows())
}

// Find returns the row of that name.
func Find(name string) (Row, error) {
	for _, r := range Rows() {
		if r.Name == name {
			return r, nil
		}
	}
	return Row{}, fmt.Errorf("workload: there is no row %q", name)
}
