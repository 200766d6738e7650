package workload

// faultSet is the working set of the fault rows: 16 MiB, recycled, so that
// zeroing costs what a second-level cache miss costs and no more.
const faultSet = 16 * mib

func faultRows() []Row {
	return []Row{
		{"fault/first-touch", "write of 8 B to a page not there yet; frames recycled, zeroing included, set of 16 MiB", 1, true, func(run *Run, sub Subject) error {
			return prepareFault(run, sub, func(s Space) (func([]uint64) error, error) {
				c, err := newCopier(run, s, Owned)
				if err != nil {
					return nil, err
				}
				word := []byte{1, 2, 3, 4, 5, 6, 7, 8}
				return func(addrs []uint64) error { return c.WriteEach(addrs, word) }, nil
			})
		}},
		{"fault/resolve", "a guest's write fault on a page not there yet, resolved but not touched: gVisor leaves the zeroing to the touch", 1, true, func(run *Run, sub Subject) error {
			return prepareFault(run, sub, func(s Space) (func([]uint64) error, error) {
				return func(addrs []uint64) error {
					for _, addr := range addrs {
						if err := s.Fault(addr); err != nil {
							return err
						}
					}
					return nil
				}, nil
			})
		}},
	}
}

func prepareFault(run *Run, sub Subject, toucher func(Space) (func([]uint64) error, error)) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	base, err := mapTouched(s, faultSet, contiguous)
	if err != nil {
		return err
	}
	touch, err := toucher(s)
	if err != nil {
		return err
	}
	pages := stride(base, faultSet, PageSize)
	n := run.batch
	run.PerCall, run.Round = n, len(pages)/n
	run.Reset = func() error {
		err := s.Discard(base, faultSet)
		sub.Settle()
		return err
	}
	run.Workers = []Op{func(i int) error {
		return touch(pages[i*n : (i+1)*n])
	}}
	return nil
}
