package workload

import (
	"errors"
	"fmt"
	"slices"
)

// A Series is one operation at growing sizes of one thing: how its cost grows is
// the question, not what it is.
type Series struct {
	// Name is "areas/map": what grows, and the operation.
	Name string
	What string
	// Of is what grows, and Points how far.
	Of     string
	Points []int
	row    func(point int) Row
}

// Row returns the series' row at a point.
func (s Series) Row(point int) Row { return s.row(point) }

// Growth returns every series.
func Growth() []Series {
	areas := []int{10, 100, 1_000, 10_000, 100_000, 1_000_000}
	memory := []int{1 << 20, 1 << 25, 1 << 30, 1 << 35, 1 << 40}
	return []Series{
		newSeries("areas/map", "areas", "a pair of map and unmap beside them", areas, 1, prepareMap),
		newSeries("areas/read", "areas", "a random read of 8 B over them, one page each", areas, 1, prepareReadAreas),
		newSeries("areas/fork", "areas", "a fork with them, untouched", areas, 1, func(run *Run, sub Subject, n int) error {
			return prepareFork(run, sub, func(s Space) error {
				_, err := mapMany(s, n, PageSize)
				return err
			})
		}),
		newSeries("memory/read", "bytes", "a random read of 8 B from 256 pages spread over the memory", memory, 1, prepareSparseRead),
		newSeries("memory/fork", "bytes", "a fork with 256 pages touched, spread over the memory", memory, 1, func(run *Run, sub Subject, n int) error {
			return prepareFork(run, sub, func(s Space) error {
				_, err := mapSparse(s, n)
				return err
			})
		}),
		newSeries("readers/read", "goroutines", "a random read of 8 B over 1 000 areas by that many goroutines: time over all reads",
			[]int{1, 2, 4, 8, 16, 32, 64}, 2, prepareReaders),
		newSeries("spaces/fork", "address spaces", "a fork and its end beside that many children of the same space", []int{1, 10, 100, 1_000, 10_000}, 1, prepareForkBeside),
		{
			Name: "guests/fault", Of: "guests", Points: []int{1, 4, 16, 64, 256},
			What: "a fault of one of that many guests at one page-fault server: time over all faults",
			row: func(n int) Row {
				return Row{fmt.Sprintf("growth/guests/fault=%d", n), "", 2, false, func(*Run, Subject) error { return ErrNoFigure }}
			},
		},
	}
}

func newSeries(name, of, what string, points []int, cores int, prepare func(*Run, Subject, int) error) Series {
	return Series{Name: name, What: what, Of: of, Points: points, row: func(n int) Row {
		return Row{fmt.Sprintf("growth/%s=%d", name, n), what, cores, true, func(run *Run, sub Subject) error {
			return prepare(run, sub, n)
		}}
	}}
}

func growthRows() []Row {
	var rows []Row
	for _, s := range Growth() {
		for _, n := range s.Points {
			rows = append(rows, s.Row(n))
		}
	}
	return rows
}

func prepareReadAreas(run *Run, sub Subject, n int) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	base, err := mapMany(s, n, PageSize)
	if err != nil {
		return err
	}
	// No more than 30 000 are read, or a million pages would be backed.
	read := slices.DeleteFunc(stride(base, uint64(n)*PageSize, PageSize), func(at uint64) bool {
		return (at-base)/PageSize%uint64(max(1, n/30_000)) != 0
	})
	if err := readFrom(s, read); err != nil {
		return err
	}
	return readAtRandom(run, s, read)
}

// sparsePages is what is touched of a sparse memory: all of the least.
const sparsePages = 256

func mapSparse(s Space, size int) ([]uint64, error) {
	base, err := s.Map(uint64(size), Read|Write)
	if err != nil {
		return nil, err
	}
	addrs := stride(base, uint64(size), uint64(size)/sparsePages)
	return addrs, writeTo(s, addrs)
}

func prepareSparseRead(run *Run, sub Subject, size int) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	addrs, err := mapSparse(s, size)
	if err != nil {
		return err
	}
	return readAtRandom(run, s, addrs)
}

// readAtRandom reads 8 bytes at these addresses, in an order too long to be learnt.
func readAtRandom(run *Run, s Space, addrs []uint64) error {
	order := make([]uint64, 0, 1<<18+len(addrs))
	for len(order) < 1<<18 {
		order = append(order, addrs...)
	}
	shuffle(order)
	c, err := newCopier(run, s, Owned)
	if err != nil {
		return err
	}
	buf := make([]byte, 8)
	n := min(run.batch, len(order))
	run.PerCall = n
	batches := len(order) / n
	run.Workers = []Op{func(i int) error {
		at := i % batches * n
		return c.ReadEach(order[at:at+n], buf)
	}}
	return nil
}

func prepareReaders(run *Run, sub Subject, readers int) error {
	s, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	base, err := mapMany(s, randomAreas, randomAreaSize)
	if err != nil {
		return err
	}
	const span = randomAreas * randomAreaSize
	if err := readFrom(s, stride(base, span, PageSize)); err != nil {
		return err
	}
	addrs := randomWords(base, span, 1<<18)
	run.PerCall = run.batch
	batches := len(addrs) / run.batch
	for w := range readers {
		c, err := newCopier(run, s, Owned)
		if err != nil {
			return err
		}
		buf := make([]byte, PageSize)[:8] // a page: see prepareCopy
		run.Workers = append(run.Workers, func(i int) error {
			at := (i + w*batches/readers) % batches * run.batch
			return c.ReadEach(addrs[at:at+run.batch], buf)
		})
	}
	return nil
}

func prepareForkBeside(run *Run, sub Subject, n int) error {
	parent, err := newSpace(run, sub)
	if err != nil {
		return err
	}
	if _, err := mapTouched(parent, mib, contiguous); err != nil {
		return err
	}
	var children []Space
	run.OnClose(func() error {
		var errs []error
		for _, child := range children {
			errs = append(errs, child.Close())
		}
		return errors.Join(errs...)
	})
	for range n {
		child, err := parent.Fork()
		if err != nil {
			return err
		}
		children = append(children, child)
	}
	run.Workers = []Op{func(int) error {
		child, err := parent.Fork()
		if err != nil {
			return err
		}
		return child.Close()
	}}
	return nil
}
