package workload

import (
	"fmt"

	"github.com/guestmm/guestmm/bench/internal/lines"
)

// countRows count what a machine of few cores cannot time.
func countRows() []Row {
	return []Row{
		{"count/lines=owned", "cache lines that two readers of different pages both write to while they read 8 B, each through its own handle", 2, false, func(run *Run, sub Subject) error {
			run.Count = func() (Figure, error) { return countLines(sub, Owned) }
			return nil
		}},
		{"count/calls=fault", "system calls per first touch, frames recycled", 1, false, func(*Run, Subject) error { return ErrNoFigure }},
		{"count/calls=uffd", "system calls of the server per fault served through userfaultfd, UFFDIO_COPY", 1, false, func(*Run, Subject) error { return ErrNoFigure }},
	}
}

// A Rooted copier names what its subject's state hangs from.
type Rooted interface{ Roots() []any }

// countLines watches all state that can be reached while one reader reads, and
// then while another does.
func countLines(sub Subject, kind CopierKind) (fig Figure, err error) {
	run := &Run{batch: batch}
	defer func() {
		if closeErr := run.Close(); err == nil {
			err = closeErr
		}
	}()
	s, err := newSpace(run, sub)
	if err != nil {
		return fig, err
	}
	base, err := mapTouched(s, mib, contiguous)
	if err != nil {
		return fig, err
	}
	var readers []func() error
	var roots []any
	for r := range uint64(2) {
		c, err := newCopier(run, s, kind)
		if err != nil {
			return fig, err
		}
		rooted, ok := c.(Rooted)
		if !ok {
			return fig, ErrNoFigure
		}
		roots = append(roots, rooted.Roots()...)
		addrs, buf := repeat(base+r*64*kib, batch), make([]byte, PageSize)[:8]
		read := func() error { return c.ReadEach(addrs, buf) }
		if err := read(); err != nil { // what only the first does is no part of it
			return fig, err
		}
		readers = append(readers, read)
	}
	watch := lines.NewWatch(roots...)
	var written []lines.Set
	for _, read := range readers {
		set, err := watch.During(read)
		if err != nil {
			return fig, err
		}
		written = append(written, set)
	}
	if watch.Bytes() == 0 {
		return fig, fmt.Errorf("workload: no state was found to watch")
	}
	return Figure{PerOp: float64(len(written[0].And(written[1]))), Ops: watch.Bytes()}, nil
}
