//go:build linux && amd64

package kernel

import (
	"math"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

const unlimited = math.MaxUint64

// rlimits are the resource limits of a process: those that it or an ancestor has set.
// Those on memory are kept by its address space, that on processor time by an alarm, that
// on descriptors by their table, that on the size of files by who writes; the others are
// noted, and the bounds that hold are the sandbox's.
type rlimits map[uint64]unix.Rlimit

// get returns a limit. EINVAL.
func (l rlimits) get(which uint64) (unix.Rlimit, error) {
	if set, ok := l[which]; ok {
		return set, nil
	}
	switch which {
	case unix.RLIMIT_STACK:
		return unix.Rlimit{Cur: stackSize, Max: unlimited}, nil
	case unix.RLIMIT_NOFILE:
		return unix.Rlimit{Cur: maxFiles, Max: maxFiles}, nil
	case unix.RLIMIT_NPROC:
		return unix.Rlimit{Cur: DefaultMaxProcesses, Max: DefaultMaxProcesses}, nil
	case unix.RLIMIT_CORE:
		return unix.Rlimit{Max: unlimited}, nil
	case unix.RLIMIT_MEMLOCK:
		return unix.Rlimit{Cur: 8 << 20, Max: 8 << 20}, nil
	}
	if which > 15 {
		return unix.Rlimit{}, unix.EINVAL
	}
	return unix.Rlimit{Cur: unlimited, Max: unlimited}, nil
}

// onMemory are those that an address space keeps. The stack is mapped whole from the
// start: what it has not grown to under Linux is not counted.
func (l rlimits) onMemory(stack uint64) (now guestmem.Limits) {
	ungrown := stack - min(stack, minStack)
	for which, set := range l {
		switch which {
		case unix.RLIMIT_AS:
			now.MaxSpace = atMost(addUpTo(set.Cur, ungrown+stackGuard))
		case unix.RLIMIT_DATA:
			if set.Cur == 0 { // as Linux has it, for Valgrind's sake
				set.Cur = set.Max
			}
			now.MaxData = atMost(addUpTo(set.Cur, stack)) // of which a stack is no part
		case unix.RLIMIT_MEMLOCK:
			now.MaxLocked = atMost(set.Cur)
		case unix.RLIMIT_STACK:
			now.MaxStack = max(set.Cur, 1)
		}
	}
	return now
}

// addUpTo is a sum that ends at the largest number.
func addUpTo(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

// limitLocked has the address space keep those of p, which is in it.
func (m *mm) limitLocked(p *Process) {
	m.as.SetLimits(p.limits.onMemory(m.stack))
	m.limited.Store(p)
}

// useLimits has the address space keep the process's own: limits are a process's,
// and between vfork and exec the memory is its parent's as well. Who asks for memory
// comes by here; of two that do so at a time, one can be held to what the other may.
func (t *Task) useLimits() {
	if t.proc.mm.limited.Load() == t.proc {
		return
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	t.proc.mm.limitLocked(t.proc)
}

// atMost is a limit as guestmem has it.
func atMost(v uint64) int64 {
	switch {
	case v == 0:
		return -1
	case v > math.MaxInt64:
		return 0
	}
	return int64(v)
}

func sysGetrlimit(t *Task, a args) (uint64, error) { return sysPrlimit64(t, args{0, a[0], 0, a[1]}) }

func sysSetrlimit(t *Task, a args) (uint64, error) { return sysPrlimit64(t, args{0, a[0], a[1], 0}) }

func sysPrlimit64(t *Task, a args) (uint64, error) {
	var want unix.Rlimit
	if a[2] != 0 {
		var err error
		if want, err = get[unix.Rlimit](t, a[2]); err != nil {
			return 0, err
		}
	}
	was, err := t.swapLimit(a, want)
	if err == nil && a[3] != 0 {
		err = put(t, a[3], was)
	}
	return 0, err
}

func (t *Task) swapLimit(a args, want unix.Rlimit) (was unix.Rlimit, err error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	p, err := t.processArgLocked(a[0])
	if err != nil {
		return was, err
	}
	if was, err = p.limits.get(a[1]); err != nil || a[2] == 0 {
		return was, err
	}
	switch {
	case want.Cur > want.Max:
		return was, unix.EINVAL
	case want.Max > was.Max:
		return was, unix.EPERM
	}
	if p.limits == nil {
		p.limits = make(rlimits)
	}
	p.limits[a[1]] = want
	switch a[1] {
	case unix.RLIMIT_CPU:
		p.limitCPULocked()
	case unix.RLIMIT_NOFILE:
		for _, t := range p.tasks {
			t.files.limit(int(want.Cur))
		}
	}
	if p.mm != nil && p.mm.limited.Load() == p {
		p.mm.limitLocked(p)
	} // or it does so when it asks for memory
	return was, nil
}

// prSetVMA and prSetVMAAnonName are of prctl.
const (
	prSetVMA         = 0x53564d41
	prSetVMAAnonName = 0
)

// setAreaName names anonymous memory: /proc/self/maps shows it.
func (t *Task) setAreaName(a args) error {
	if a[1] != prSetVMAAnonName {
		return unix.EINVAL
	}
	if a[4] == 0 {
		return t.space().ClearName(gva(a[2]), a[3])
	}
	name, err := t.space().ReadCString(t.call, gva(a[4]), guestmem.MaxNameLength+1)
	switch {
	case isErrno(err, unix.ENAMETOOLONG):
		return unix.EINVAL
	case err != nil:
		return copyError(err)
	}
	return t.space().SetName(gva(a[2]), a[3], name)
}
