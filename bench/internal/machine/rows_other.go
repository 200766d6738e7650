//go:build !linux || !amd64

package machine

import "github.com/guestmm/guestmm/bench/internal/workload"

// Prepare has no figure on this system.
func Prepare(workload.Row) (*workload.Run, error) { return nil, workload.ErrNoFigure }

// PrepareKernel has no figure on this system.
func PrepareKernel(workload.Row) (*workload.Run, error) { return nil, workload.ErrNoFigure }

// Kind says that there is no KVM.
func Kind() string { return "none" }
