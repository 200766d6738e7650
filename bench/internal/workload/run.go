package workload

import "errors"

// ErrNoFigure is returned for a row that does not apply to a subject.
var ErrNoFigure = errors.New("workload: the row does not apply to this subject")

// An Op performs the i-th call since the last reset.
type Op func(i int) error

// A Run is a row made ready on one subject.
type Run struct {
	// Workers are timed together, each on a goroutine of its own; most runs
	// have one. Runs with several workers have no Reset.
	Workers []Op
	// PerCall is how many operations one call of an Op performs.
	PerCall int
	// Round is how many calls may follow each other before Reset must be
	// called; 0 means any number.
	Round int
	// Reset makes a new round ready, off the clock.
	Reset func() error
	// Writer, if any, is called in a loop beside the worker.
	Writer func() error
	// Count, if not nil, is all that is done in place of timing Workers.
	Count func() (Figure, error)
	// Sampled runs time some calls singly, for the distribution.
	Sampled bool

	batch   int // operations that a call of an Op shall perform, where it can
	closers []func() error
}

// OnClose adds what Close shall do; the last added is done first.
func (r *Run) OnClose(fn func() error) { r.closers = append(r.closers, fn) }

// Close gives back what the run holds. It may be called on a run that was
// made ready in part.
func (r *Run) Close() error {
	var errs []error
	for len(r.closers) > 0 {
		last := len(r.closers) - 1
		errs = append(errs, r.closers[last]())
		r.closers = r.closers[:last]
	}
	return errors.Join(errs...)
}
