package workload

import (
	"fmt"
	"slices"
	"strings"
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

// OfSubject reports whether a memory manager behind Subject can answer the row.
func (r Row) OfSubject() bool {
	for _, prefix := range []string{"uffd/", "snapshot/", "clone/", "restore/", "count/calls", "growth/guests/"} {
		if strings.HasPrefix(r.Name, prefix) {
			return false
		}
	}
	return !slices.Contains([]string{"fork/vcpu", "exit/vcpu", "exit/syscall", "exit/kick"}, r.Name)
}

// Slow reports whether a round takes what it takes, whatever its budget: a
// gigabyte is made ready in each, or all is weighed.
func (r Row) Slow() bool {
	for _, prefix := range []string{"snapshot/", "uffd/arm", "fork/touched=1GiB", "heap/", "table/", "count/"} {
		if strings.HasPrefix(r.Name, prefix) {
			return true
		}
	}
	return false
}

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
	return slices.Concat(copyRows(), besideRows(), faultRows(), mapRows(), protectRows(), forkRows(), cowRows(), serveRows(),
		machineRows(), exitRows(), sizeRows(), countRows())
}

// Find returns the row of that name, be it of the report or of a series.
func Find(name string) (Row, error) {
	for _, rows := range [][]Row{Rows(), growthRows()} {
		for _, r := range rows {
			if r.Name == name {
				return r, nil
			}
		}
	}
	return Row{}, fmt.Errorf("workload: there is no row %q", name)
}
