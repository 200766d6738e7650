//go:build linux && amd64

package kernel

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// cpuSet is a set of processors, of which there are 64 at most.
type cpuSet uint64

// cpus are the processors that the guest sees: as many as there are vCPUs.
func (k *Kernel) cpus() cpuSet {
	if k.VCPUs >= 64 {
		return ^cpuSet(0)
	}
	return 1<<k.VCPUs - 1
}

func sysSchedYield(*Task, args) (uint64, error) {
	runtime.Gosched() // the vCPU has been given back already, to whoever waits for one
	return 0, nil
}

// taskArgLocked finds a thread by an argument that means oneself when 0.
func (t *Task) taskArgLocked(tid uint64) (*Task, error) {
	if int32(tid) == 0 {
		return t, nil
	}
	if found := t.k.tasks[int(int32(tid))]; found != nil {
		return found, nil
	}
	return nil, unix.ESRCH
}

// sysSchedSetaffinity remembers the set and shows it again. Which vCPU runs a
// thread is the pool's choice.
func sysSchedSetaffinity(t *Task, a args) (uint64, error) {
	b := make([]byte, min(a[1], 8))
	if err := t.readGuest(b, a[2]); err != nil {
		return 0, err
	}
	want := cpuSet(0)
	for i, v := range b {
		want |= cpuSet(v) << (8 * i)
	}
	if want &= t.k.cpus(); want == 0 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	target, err := t.taskArgLocked(a[0])
	if err != nil {
		return 0, err
	}
	target.affinity = want
	return 0, nil
}

func sysSchedGetaffinity(t *Task, a args) (uint64, error) {
	if a[1] < 8 || a[1]%8 != 0 {
		return 0, unix.EINVAL
	}
	t.k.mu.Lock()
	target, err := t.taskArgLocked(a[0])
	set := t.k.cpus()
	if err == nil && target.affinity != 0 {
		set = target.affinity
	}
	t.k.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return 8, put(t, a[2], uint64(set))
}

// sysGetcpu names a processor that the thread may run on. Which vCPU runs it
// changes from call to call, and the answer is old when it arrives anyway.
func sysGetcpu(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	set := t.affinity
	t.k.mu.Unlock()
	cpu := uint32(t.tid % t.k.VCPUs)
	for set != 0 && set&(1<<cpu) == 0 {
		cpu = (cpu + 1) % uint32(t.k.VCPUs)
	}
	for i, v := range []uint32{cpu, 0} {
		if a[i] == 0 {
			continue
		}
		if err := put(t, a[i], v); err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// sysMembarrier has the host do it: its barrier reaches every processor that
// runs a thread of the sandbox, and thereby all that run a thread of a guest,
// which is out of guest mode for the interrupt.
func sysMembarrier(_ *Task, a args) (uint64, error) {
	const (
		query                                    = 0
		global, globalExpedited, registerGlobal  = 1 << 0, 1 << 1, 1 << 2
		private, registerPrivate                 = 1 << 3, 1 << 4
		privateSyncCore, registerPrivateSyncCore = 1 << 5, 1 << 6
		commands                                 = global | globalExpedited | registerGlobal | private | registerPrivate | privateSyncCore | registerPrivateSyncCore
	)
	if a[1] != 0 {
		return 0, unix.EINVAL
	}
	host := func(command int) (uint64, error) {
		r, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, uintptr(command), 0, 0)
		if errno != 0 {
			return 0, errno
		}
		return uint64(r), nil
	}
	// Registering twice costs nothing; registered with many threads it costs a
	// grace period of the host's scheduler, once.
	switch int32(a[0]) {
	case query:
		have, err := host(query)
		if have&private == 0 {
			return 0, err
		}
		if have&privateSyncCore == 0 {
			return commands &^ (privateSyncCore | registerPrivateSyncCore), nil
		}
		return commands, nil
	case registerGlobal, registerPrivate:
		return host(registerPrivate)
	case global, globalExpedited, private:
		if _, err := host(registerPrivate); err != nil {
			return 0, err
		}
		return host(private)
	case registerPrivateSyncCore:
		return host(registerPrivateSyncCore)
	case privateSyncCore:
		if _, err := host(registerPrivateSyncCore); err != nil {
			return 0, err
		}
		return host(privateSyncCore)
	}
	return 0, unix.EINVAL
}
