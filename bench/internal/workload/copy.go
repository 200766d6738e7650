package workload

import "fmt"

func copyRows() []Row {
	row := func(name, what string, size, workers int, kind CopierKind) Row {
		return Row{name, what, workers, false, func(run *Run, sub Subject) error {
			return prepareCopy(run, sub, size, workers, kind)
		}}
	}
	return []Row{
		row("copy/size=8/handle", "read of 8 B from a present page through an owned handle", 8, 1, Owned),
		row("copy/size=8/pooled", "read of 8 B from a present page, no handle", 8, 1, Pooled),
		row("copy/size=4096/handle", "read of 4 KiB from a present page through an owned handle", 4*kib, 1, Owned),
		row("copy/size=4096/pooled", "read of 4 KiB from a present page, no handle", 4*kib, 1, Pooled),
		row("copy/size=8/cores=2", "the same 8 B read by two goroutines, each from its own page: time over all reads", 8, 2, Owned),
		row("copy/size=4096/cores=2", "the same 4 KiB read by two goroutines, each from its own page: time over all reads", 4*kib, 2, Owned),
	}
}

func prepareCopy(run *Run, sub Subject, size, workers int, kind CopierKind) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	base, err := mapTouched(s, 4*mib, contiguous)
	if err != nil {
		return err
	}
	run.PerCall = run.batch
	for w := range workers {
		c, err := newCopier(run, s, kind)
		if err != nil {
			return err
		}
		// Apart, so that no cache line is shared.
		addrs := repeat(base+uint64(w)*64*kib, run.batch)
		// Whole pages: two small buffers would share a cache line, and each
		// worker's stores would slow the other down fourfold.
		buf := make([]byte, max(size, PageSize))[:size]
		run.Workers = append(run.Workers, func(int) error { return c.ReadEach(addrs, buf) })
	}
	return nil
}

// The areas of the random-read rows.
const (
	randomAreas    = 1000
	randomAreaSize = 16 * kib
)

// prepareRandom readies random reads of 8 bytes over 1 000 present areas,
// perCall at a time, and returns the space.
func prepareRandom(run *Run, sub Subject, perCall int) (Space, error) {
	s, err := newSpace(run, sub)
	if err != nil {
		return nil, err
	}
	base, err := mapMany(s, randomAreas, randomAreaSize)
	if err != nil {
		return nil, err
	}
	const span = randomAreas * randomAreaSize
	if err := readFrom(s, stride(base, span, PageSize)); err != nil {
		return nil, fmt.Errorf("touching %d areas: %w", randomAreas, err)
	}
	c, err := newCopier(run, s, Owned)
	if err != nil {
		return nil, err
	}
	// As many addresses as a round reads: a list of 8 192 that comes round
	// again is learnt by the branch predictor, and made a search through the
	// areas look twice as fast as it is.
	addrs := randomWords(base, span, 1<<20)
	buf := make([]byte, 8)
	run.PerCall = perCall
	batches := len(addrs) / perCall
	run.Workers = []Op{func(i int) error {
		at := i % batches * perCall
		return c.ReadEach(addrs[at:at+perCall], buf)
	}}
	return s, nil
}
