//go:build !linux || !(amd64 || arm64)

package floor

import (
	"time"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/uffd"
)

// Measure answers uffd.ErrNotSupported.
func (*Program) Measure(workload.Row, time.Duration) (workload.Figure, error) {
	return workload.Figure{}, uffd.ErrNotSupported
}

// Finish does nothing.
func (*Program) Finish() error { return nil }

type armable struct{}

func traced(string, string, int) error { return uffd.ErrNotSupported }
