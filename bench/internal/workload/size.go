package workload

import (
	"errors"
	"runtime"
)

// sizedAreas is how many areas are weighed: enough that what a space needs by
// itself, some KiB, is less than a byte of each.
const sizedAreas = 30_000

// sizeRows weigh instead of timing. Two rounds of one subject differ by what else
// lives in its process, so there are several all the same.
func sizeRows() []Row {
	return []Row{
		{"heap/areas=30000", "heap bytes per area of one page, untouched, that cannot merge with its neighbours", 1, false, func(run *Run, sub Subject) error {
			run.Count = func() (Figure, error) { return weighAreas(sub) }
			return nil
		}},
		{"table/dense=256MiB", "bytes of page tables per page, all of 256 MiB written", 1, false, func(run *Run, sub Subject) error {
			run.Count = func() (Figure, error) { return weighTables(sub) }
			return nil
		}},
	}
}

// A Tabled space knows how many bytes of page tables its subject has.
type Tabled interface{ TableBytes() uint64 }

func weighAreas(sub Subject) (fig Figure, err error) {
	before := liveHeap()
	s, err := sub.NewSpace()
	if err != nil {
		return fig, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := mapMany(s, sizedAreas, PageSize); err != nil {
		return fig, err
	}
	after := liveHeap()
	runtime.KeepAlive(s)
	return Figure{PerOp: float64(after-before) / sizedAreas, Ops: sizedAreas}, nil
}

// liveHeap returns the bytes of Go's heap that are in use. The second collection
// frees what finalizers and pools held on to in the first.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc)
}

func weighTables(sub Subject) (fig Figure, err error) {
	s, err := sub.NewSpace()
	if err != nil {
		return fig, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	t, ok := s.(Tabled)
	if !ok {
		return fig, ErrNoFigure
	}
	before := t.TableBytes()
	const size = 256 * mib
	if _, err := mapTouched(s, size, contiguous); err != nil {
		return fig, err
	}
	const pages = size / PageSize
	return Figure{PerOp: float64(t.TableBytes()-before) / pages, Ops: pages}, nil
}
