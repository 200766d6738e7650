package kernelmm

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/bench/internal/workload"
)

const (
	pageSize  = workload.PageSize
	faultSet  = 16 << 20
	sparseSet = 64 << 20
	hugeSize  = 2 << 20

	readWrite = unix.PROT_READ | unix.PROT_WRITE
	anonymous = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
)

// Prepare readies the kernel's counterpart of row. It returns
// workload.ErrNoFigure where there is none.
func Prepare(row workload.Row) (*workload.Run, error) {
	prepare, ok := rows[row.Name]
	if n, err := strconv.Atoi(strings.TrimPrefix(row.Name, growthPrefix)); err == nil {
		prepare, ok = func(run *workload.Run) error { return mapUnmap(run, n) }, true
	}
	if !ok {
		return nil, workload.ErrNoFigure
	}
	run := &workload.Run{PerCall: 1}
	if err := prepare(run); err != nil {
		run.Close()
		return nil, fmt.Errorf("kernel, %s: %w", row.Name, err)
	}
	return run, nil
}

// growthPrefix begins the rows of the one series that the kernel has, up to the areas
// that vm.max_map_count allows.
const growthPrefix = "growth/areas/map="

var rows = map[string]func(*workload.Run) error{
	"fault/first-touch":    firstTouch,
	"map/others=10":        func(run *workload.Run) error { return mapUnmap(run, 10) },
	"map/others=1000":      func(run *workload.Run) error { return mapUnmap(run, 1_000) },
	"map/others=30000":     func(run *workload.Run) error { return mapUnmap(run, 30_000) },
	"protect/others=10":    func(run *workload.Run) error { return protect(run, 10) },
	"protect/others=30000": func(run *workload.Run) error { return protect(run, 30_000) },
	"cow/dense":            func(run *workload.Run) error { return cow(run, faultSet, pageSize) },
	"cow/sparse":           func(run *workload.Run) error { return cow(run, sparseSet, hugeSize) },
	"exit/touched=4MiB":    unmapTouched,
	"table/dense=256MiB":   tables,
}

// region maps length bytes of anonymous memory in 4 KiB pages, until the run
// closes.
func region(run *workload.Run, length int) ([]byte, error) {
	mem, err := unix.Mmap(-1, 0, length, readWrite, anonymous)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	run.OnClose(func() error { return unix.Munmap(mem) })
	if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
		return nil, fmt.Errorf("madvise: %w", err) // EINVAL: a kernel without huge pages
	}
	return mem, nil
}

// others makes n adjacent areas that cannot merge, as the subjects have.
func others(run *workload.Run, n int) error {
	mem, err := region(run, n*pageSize)
	if err != nil {
		return err
	}
	for i := 1; i < n; i += 2 {
		if err := unix.Mprotect(mem[i*pageSize:(i+1)*pageSize], unix.PROT_READ); err != nil {
			return fmt.Errorf("area %d of %d: %w", i, n, err)
		}
	}
	return nil
}

func firstTouch(run *workload.Run) error {
	mem, err := region(run, faultSet)
	if err != nil {
		return err
	}
	const batch = 64
	run.PerCall, run.Round = batch, faultSet/pageSize/batch
	run.Reset = func() error { return unix.Madvise(mem, unix.MADV_DONTNEED) }
	run.Workers = []workload.Op{func(i int) error {
		part := mem[i*batch*pageSize : (i+1)*batch*pageSize]
		for off := 0; off < len(part); off += pageSize {
			part[off] = 1
		}
		return nil
	}}
	return nil
}

// mapUnmap calls the kernel without unix.Mmap, which keeps a table of its
// own under a mutex. The memory is never touched.
func mapUnmap(run *workload.Run, n int) error {
	if err := others(run, n); err != nil {
		return err
	}
	run.Workers = []workload.Op{func(int) error {
		addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, pageSize, unix.PROT_READ|unix.PROT_EXEC, anonymous, ^uintptr(0), 0)
		if errno != 0 {
			return errno
		}
		if _, _, errno := unix.Syscall(unix.SYS_MUNMAP, addr, pageSize, 0); errno != 0 {
			return errno
		}
		return nil
	}}
	return nil
}

func protect(run *workload.Run, n int) error {
	if err := others(run, n); err != nil {
		return err
	}
	mem, err := region(run, faultSet)
	if err != nil {
		return err
	}
	touch(mem)
	page := mem[faultSet/2 : faultSet/2+pageSize]
	run.Workers = []workload.Op{func(int) error {
		if err := unix.Mprotect(page, unix.PROT_READ); err != nil {
			return err
		}
		return unix.Mprotect(page, readWrite)
	}}
	return nil
}

func touch(mem []byte) {
	for off := 0; off < len(mem); off += pageSize {
		mem[off] = 1
	}
}

// cow writes to a private mapping of a file in memory: the kernel's own copy
// on write, without a fork.
func cow(run *workload.Run, size, step int) error {
	fd, err := unix.MemfdCreate("bench-kernel", unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	run.OnClose(func() error { return unix.Close(fd) })
	if err := unix.Ftruncate(fd, int64(size)); err != nil {
		return fmt.Errorf("memfd: %w", err)
	}
	shared, err := unix.Mmap(fd, 0, size, readWrite, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	run.OnClose(func() error { return unix.Munmap(shared) })
	touch(shared)

	var private []byte // nil before the first round
	drop := func() error {
		if private == nil {
			return nil
		}
		err := unix.Munmap(private)
		private = nil
		return err
	}
	run.OnClose(drop)
	run.Round = size / step
	run.Reset = func() error {
		if err := drop(); err != nil {
			return err
		}
		var err error
		private, err = unix.Mmap(fd, 0, size, readWrite, unix.MAP_PRIVATE)
		return err
	}
	run.Workers = []workload.Op{func(i int) error {
		private[i*step] = 2
		return nil
	}}
	return nil
}

// unmapTouched gives back what an address space of its own would at its end; the
// rest of a process's end is not in it.
func unmapTouched(run *workload.Run) error {
	const size, round = 4 << 20, 4
	var mems [][]byte
	drop := func() error {
		for len(mems) > 0 {
			last := len(mems) - 1
			if err := unix.Munmap(mems[last]); err != nil {
				return err
			}
			mems = mems[:last]
		}
		return nil
	}
	run.OnClose(drop)
	run.Round = round
	run.Reset = func() error {
		if err := drop(); err != nil {
			return err
		}
		for range round {
			mem, err := unix.Mmap(-1, 0, size, readWrite, anonymous)
			if err != nil {
				return err
			}
			mems = append(mems, mem)
			if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
				return err
			}
			touch(mem)
		}
		return nil
	}
	run.Workers = []workload.Op{func(int) error {
		last := len(mems) - 1
		mem := mems[last]
		mems = mems[:last]
		return unix.Munmap(mem)
	}}
	return nil
}

// tables weighs the kernel's own page tables of this process.
func tables(run *workload.Run) error {
	const size = 256 << 20
	run.Count = func() (fig workload.Figure, err error) {
		before, err := tableBytes()
		if err != nil {
			return fig, err
		}
		mem, err := unix.Mmap(-1, 0, size, readWrite, anonymous)
		if err != nil {
			return fig, fmt.Errorf("mmap: %w", err)
		}
		defer unix.Munmap(mem)
		if err := unix.Madvise(mem, unix.MADV_NOHUGEPAGE); err != nil && err != unix.EINVAL {
			return fig, fmt.Errorf("madvise: %w", err)
		}
		touch(mem)
		after, err := tableBytes()
		return workload.Figure{PerOp: float64(after-before) / (size / pageSize), Ops: size / pageSize}, err
	}
	return nil
}

// tableBytes reads VmPTE.
func tableBytes() (int, error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := bytes.Cut(status, []byte("VmPTE:"))
	var kib int
	if _, err := fmt.Sscanf(string(rest), "%d kB", &kib); err != nil {
		return 0, fmt.Errorf("/proc/self/status: VmPTE: %w", err)
	}
	return kib << 10, nil
}
