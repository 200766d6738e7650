//go:build linux && amd64

package machine

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/bench/internal/workload"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	armedSize = 1 << 30
	// dirtyPages are written between two snapshots: one in a hundred.
	dirtyPages = armedSize / workload.PageSize / 100
)

// newArmable returns a memory of size bytes that are all there, in the mapping for
// vCPUs, as if a guest had touched all: arming what is not mapped costs the kernel less.
// Nobody runs in it: what is left of the pause is arming.
func newArmable(size uint64) (*guestmem.Memory, error) {
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		return nil, err
	}
	r, err := m.AddRegion(guestmem.RegionOptions{Size: size, Name: "bench-snapshot"})
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	if err := populate(uintptr(r.Slot()), size); err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return m, nil
}

// snapshot takes one that copies nothing but what is written, and returns how long
// it paused.
func snapshot(m *guestmem.Memory) (*guestmem.Snapshot, workload.Figure, error) {
	s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{
		Sweep: guestmem.SweepOnDemand,
		After: guestmem.KeepArmed,
	})
	if err != nil {
		return nil, workload.Figure{}, err
	}
	stats := s.Stats()
	fig := workload.Figure{PerOp: float64(stats.Pause.Nanoseconds()), Ops: 1}
	return s, fig, nil
}

func firstPause(run *workload.Run) error {
	f, err := newFirst(armedSize)
	if err != nil {
		return err
	}
	run.OnClose(f.Close)
	run.Count = f.pause
	return nil
}

// first is a memory of which no snapshot is open, so that nothing is armed.
type first struct {
	mem  *guestmem.Memory
	slot uintptr
	size uint64
}

func newFirst(size uint64) (*first, error) {
	m, err := newArmable(size)
	if err != nil {
		return nil, err
	}
	return &first{m, uintptr(m.Regions()[0].Slot()), size}, nil
}

// pause takes one and closes it again, which disarms all; and makes every page
// writable for vCPUs once more, as it was before.
func (f *first) pause() (workload.Figure, error) {
	s, fig, err := snapshot(f.mem)
	if err != nil {
		return fig, err
	}
	if armed := s.Stats().PagesArmed; armed < f.size/workload.PageSize {
		err = fmt.Errorf("%d pages were armed of %d", armed, f.size/workload.PageSize)
	}
	return fig, errors.Join(err, s.Close(), populate(f.slot, f.size))
}

func (f *first) Close() error { return f.mem.Close() }

// populate makes pages writable in the page tables of the mapping for vCPUs.
func populate(slot uintptr, size uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_MADVISE, slot, uintptr(size), unix.MADV_POPULATE_WRITE); errno != 0 {
		return fmt.Errorf("populate: %w", errno)
	}
	return nil
}

func nextPause(run *workload.Run, runs int) error {
	a, err := newAgain(armedSize, runs, dirtyPages/runs)
	if err != nil {
		return err
	}
	run.OnClose(a.Close)
	run.Count = a.pause
	return nil
}

// again is a memory of which there is always one snapshot open, so that the next
// arms only what was written since.
type again struct {
	mem         *guestmem.Memory
	last        *guestmem.Snapshot
	size        uint64
	runs, pages int
}

func newAgain(size uint64, runs, pages int) (*again, error) {
	m, err := newArmable(size)
	if err != nil {
		return nil, err
	}
	s, _, err := snapshot(m)
	if err != nil {
		return nil, errors.Join(err, m.Close())
	}
	return &again{m, s, size, runs, pages}, nil
}

// pause writes to runs of pages, the same distance apart, and takes the next.
func (a *again) pause() (workload.Figure, error) {
	step := a.size / uint64(a.runs) / workload.PageSize * workload.PageSize
	for i := range uint64(a.runs) {
		for k := range uint64(a.pages) {
			if _, err := a.mem.WriteAt([]byte{2}, addr.GPA(i*step+k*workload.PageSize)); err != nil {
				return workload.Figure{}, err
			}
		}
	}
	s, fig, err := snapshot(a.mem)
	if err != nil {
		return fig, err
	}
	if written, want := s.Stats().Written, uint64(a.runs*a.pages); written < want {
		err = fmt.Errorf("%d pages count as written, and were %d", written, want)
	}
	last := a.last
	a.last = s
	return fig, errors.Join(err, last.Close())
}

// Close closes the snapshot and the memory.
func (a *again) Close() error { return errors.Join(a.last.Close(), a.mem.Close()) }
