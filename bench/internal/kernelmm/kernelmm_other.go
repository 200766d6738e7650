//go:build !linux

package kernelmm

import "github.com/guestmm/guestmm/bench/internal/workload"

// Prepare has no figure on this system.
func Prepare(workload.Row) (*workload.Run, error) { return nil, workload.ErrNoFigure }
