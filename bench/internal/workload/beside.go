package workload

// besideRows are random reads while another goroutine changes the same space
// as fast as it can. Each call is one read, and some are timed by themselves,
// which adds a little to the mean; beside=none has it too, and is what the
// others are held against.
func besideRows() []Row {
	random := Row{"random/areas=1000", "read of 8 B at random over 1 000 areas of 16 KiB", 1, true, func(run *Run, sub Subject) error {
		_, err := prepareRandom(run, sub, run.batch)
		return err
	}}
	row := func(name, what string, writer func(s Space, scratch uint64) func() error) Row {
		cores := 2
		if writer == nil {
			cores = 1
		}
		return Row{"random/beside=" + name, "random read of 8 B over 1 000 areas beside " + what, cores, true, func(run *Run, sub Subject) error {
			return prepareBeside(run, sub, writer)
		}}
	}
	return []Row{
		random,
		row("none", "nothing; the others' base", nil),
		row("map", "a loop of map and unmap of 64 KiB", mapWriter),
		row("protect", "a loop of protect and back of one page", protectWriter),
		row("fault", "a loop of first faults, and a discard after each 1 024", faultWriter),
		row("fork", "a loop of fork and the child's close", forkWriter),
	}
}

// scratchSize is what writers have to themselves.
const scratchSize = 4 * mib

func prepareBeside(run *Run, sub Subject, writer func(Space, uint64) func() error) error {
	s, err := prepareRandom(run, sub, 1)
	if err != nil {
		return err
	}
	run.Sampled = true
	if writer == nil {
		return nil
	}
	scratch, err := mapTouched(s, scratchSize, contiguous)
	if err != nil {
		return err
	}
	run.Writer = writer(s, scratch)
	return nil
}

func mapWriter(s Space, _ uint64) func() error {
	return func() error { return mapUnmap(s, 64*kib) }
}

func protectWriter(s Space, scratch uint64) func() error {
	return func() error { return protectPair(s, scratch+scratchSize/2) }
}

func faultWriter(s Space, scratch uint64) func() error {
	next := uint64(scratchSize)
	return func() error {
		if next == scratchSize {
			next = 0
			if err := s.Discard(scratch, scratchSize); err != nil {
				return err
			}
		}
		at := scratch + next
		next += PageSize
		return s.Fault(at)
	}
}

func forkWriter(s Space, _ uint64) func() error {
	return func() error {
		child, err := s.Fork()
		if err != nil {
			return err
		}
		return child.Close()
	}
}
