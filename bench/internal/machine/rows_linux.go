//go:build linux && amd64

package machine

import (
	"errors"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/kvm"
)

var ours = map[string]func(*workload.Run) error{
	"fork/vcpu":                      forkUnderVCPU,
	"snapshot/pause=first":           firstPause,
	"snapshot/pause=again":           func(run *workload.Run) error { return nextPause(run, 400) },
	"snapshot/pause=again/scattered": func(run *workload.Run) error { return nextPause(run, dirtyPages) },
	"clone/first-exit":               cloneToExit,
	"exit/vcpu":                      exitByPort,
	"exit/syscall":                   exitBySyscall,
	"exit/kick":                      kick,
}

var kernel = map[string]func(*workload.Run) error{
	"clone/first-exit": rawCloneToExit,
	"exit/vcpu":        rawExitByPort,
}

// Prepare readies a row of ours. It returns workload.ErrNoFigure for rows of
// others.
func Prepare(row workload.Row) (*workload.Run, error) { return prepare(ours, row) }

// PrepareKernel readies the kernel's counterpart, by bare system calls.
func PrepareKernel(row workload.Row) (*workload.Run, error) { return prepare(kernel, row) }

func prepare(rows map[string]func(*workload.Run) error, row workload.Row) (*workload.Run, error) {
	ready, ok := rows[row.Name]
	if !ok {
		return nil, workload.ErrNoFigure
	}
	run := &workload.Run{PerCall: 1}
	if err := ready(run); err != nil {
		// As it is: a report says once what ails many rows alike.
		return nil, errors.Join(err, run.Close())
	}
	return run, nil
}

// Kind says what kind of KVM there is: how a system call arrives in its guests, and
// what drops a translation, is what exits cost.
func Kind() string {
	sys, err := kvm.Open()
	if err != nil {
		return "none: " + err.Error()
	}
	defer sys.Close()
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 4 << 20, Name: "bench-kind"})
	if err != nil {
		return err.Error()
	}
	defer mem.Close()
	p, err := kvm.NewPlatform(sys, mem, kvm.PlatformOptions{MaxVCPUs: 1})
	if err != nil {
		return err.Error()
	}
	defer p.Close()
	return p.String()
}
