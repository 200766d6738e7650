package workload

import (
	"errors"
	"fmt"
)

// forkRound is how many children live at once: closing them is off the clock.
// They have written nothing, so nothing has to settle: a pause would leave
// the caches cold.
const forkRound = 16

func forkRows() []Row {
	touched := func(label string, size uint64, order pageOrder) Row {
		what := "fork with " + label + " touched in one area, frames contiguous; the child's close is not in it"
		name := "fork/touched=" + label
		if order == scattered {
			what = "fork with " + label + " touched in random order; the child's close is not in it"
			name += "/scattered"
		}
		return Row{name, what, 1, true, func(run *Run, sub Subject) error {
			return prepareFork(run, sub, func(s Space) error {
				_, err := mapTouched(s, size, order)
				return err
			})
		}}
	}
	rows := []Row{
		touched("1MiB", mib, contiguous),
		touched("256MiB", 256*mib, contiguous),
		touched("1GiB", gib, contiguous),
		touched("256MiB", 256*mib, scattered),
	}
	for _, areas := range []int{1, 1_000, 30_000} {
		rows = append(rows, Row{
			fmt.Sprintf("fork/areas=%d", areas),
			fmt.Sprintf("fork with %d areas of one page, each read once", areas),
			1, true,
			func(run *Run, sub Subject) error {
				return prepareFork(run, sub, func(s Space) error {
					base, err := mapMany(s, areas, PageSize)
					if err != nil {
						return err
					}
					return readFrom(s, stride(base, uint64(areas)*PageSize, PageSize))
				})
			},
		})
	}
	return rows
}

func prepareFork(run *Run, sub Subject, fill func(Space) error) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	if err := fill(s); err != nil {
		return err
	}
	var children []Space
	closeAll := func() error {
		var errs []error
		for _, child := range children {
			errs = append(errs, child.Close())
		}
		children = children[:0]
		return errors.Join(errs...)
	}
	run.OnClose(closeAll)
	run.Round, run.Reset = forkRound, closeAll
	run.Workers = []Op{func(int) error {
		child, err := s.Fork()
		if err != nil {
			return err
		}
		children = append(children, child)
		return nil
	}}
	return nil
}
