//go:build amd64 || arm64

package floor

import (
	"context"
	"errors"
	"fmt"

	ours "github.com/guestmm/guestmm/bench/internal/guest"
	"github.com/guestmm/guestmm/bench/internal/workload"
)

// traced does n operations.
func traced(what, program string, n int) error {
	switch what {
	case tracedUFFD:
		p := &Program{ctx: context.Background(), path: program}
		_, err := p.roundTrips("missing", n)
		return err
	case tracedFault:
		return touch(n)
	}
	return fmt.Errorf("floor: nothing is called %q", what)
}

// touch does n first touches of fault/first-touch, of which one round has filled
// the pool before.
func touch(n int) (err error) {
	sub, err := ours.New()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	row, err := workload.Find("fault/first-touch")
	if err != nil {
		return err
	}
	run, err := row.PrepareSingly(sub)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, run.Close()) }()
	for i := range n {
		if i%run.Round == 0 {
			if err := run.Reset(); err != nil {
				return err
			}
		}
		if err := run.Workers[0](i % run.Round); err != nil {
			return err
		}
	}
	return nil
}
