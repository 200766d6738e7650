package workload

import "errors"

// exitRows are about the end of an address space. The spaces that end are made
// off the clock, several for each reset.
func exitRows() []Row {
	return []Row{
		{"exit/child", "end of a fork's child that has written nothing, of 16 MiB", 1, false, func(run *Run, sub Subject) error {
			parent, err := newSpace(run, sub)
			if err != nil {
				return err
			}
			if _, err := mapTouched(parent, 16*mib, contiguous); err != nil {
				return err
			}
			prepareExit(run, sub, forkRound, parent.Fork)
			return nil
		}},
		{"exit/touched=4MiB", "end of an address space of 4 MiB that has all been written", 1, true, func(run *Run, sub Subject) error {
			prepareExit(run, sub, 4, func() (Space, error) {
				s, err := sub.NewSpace()
				if err != nil {
					return nil, err
				}
				if _, err := mapTouched(s, 4*mib, contiguous); err != nil {
					return nil, errors.Join(err, s.Close())
				}
				return s, nil
			})
			return nil
		}},
	}
}

// prepareExit has n spaces of make end in each round.
func prepareExit(run *Run, sub Subject, n int, make func() (Space, error)) {
	var living []Space
	closeRest := func() error {
		var errs []error
		for _, s := range living {
			errs = append(errs, s.Close())
		}
		living = living[:0]
		return errors.Join(errs...)
	}
	run.OnClose(closeRest)
	run.Round = n
	run.Reset = func() error {
		if err := closeRest(); err != nil {
			return err
		}
		sub.Settle()
		for range n {
			s, err := make()
			if err != nil {
				return err
			}
			living = append(living, s)
		}
		return nil
	}
	run.Workers = []Op{func(int) error {
		last := len(living) - 1
		s := living[last]
		living = living[:last]
		return s.Close()
	}}
}
