//go:build linux && amd64

package kernel

import (
	"crypto/rand"
	"math"
	"time"

	"golang.org/x/sys/unix"
)

func sysUname(t *Task, a args) (uint64, error) {
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return 0, err
	}
	u := unix.Utsname{Release: host.Release}
	copy(u.Sysname[:], "Linux")
	copy(u.Nodename[:], "sandbox")
	copy(u.Version[:], "#1 guestmm")
	copy(u.Machine[:], "x86_64")
	copy(u.Domainname[:], "(none)")
	return 0, put(t, a[0], u)
}

func sysSysinfo(t *Task, a args) (uint64, error) {
	s := t.k.Memory.Stats()
	t.k.mu.Lock()
	n := len(t.k.processes)
	t.k.mu.Unlock()
	return 0, put(t, a[0], unix.Sysinfo_t{
		Uptime: int64(time.Since(t.k.started) / time.Second), Procs: uint16(n), Unit: 1,
		Totalram: t.k.MemorySize, Freeram: t.k.MemorySize - min(t.k.MemorySize, uint64(s.FramesInUse)*pageSize),
	})
}

func sysGetrandom(t *Task, a args) (uint64, error) {
	if a[2]&^(unix.GRND_NONBLOCK|unix.GRND_RANDOM|4) != 0 {
		return 0, unix.EINVAL
	}
	done := uint64(0)
	for n := min(a[1], maxCount); done < n; {
		p := t.bounce(n - done)
		rand.Read(p)
		if err := t.writeGuest(p, a[0]+done); err != nil {
			return partial(done, err)
		}
		done += uint64(len(p))
	}
	return done, nil
}

// rlimits are what getrlimit reports. Setting them is accepted and forgotten:
// the bounds that hold are the sandbox's.
func rlimit(which uint64) (unix.Rlimit, error) {
	const unlimited = math.MaxUint64
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

func sysGetrlimit(t *Task, a args) (uint64, error) {
	r, err := rlimit(a[0])
	if err != nil {
		return 0, err
	}
	return 0, put(t, a[1], r)
}

func sysSetrlimit(t *Task, a args) (uint64, error) { return sysPrlimit64(t, args{0, a[0], a[1], 0}) }

func sysPrlimit64(t *Task, a args) (uint64, error) {
	t.k.mu.Lock()
	_, err := t.processArgLocked(a[0])
	t.k.mu.Unlock()
	if err != nil {
		return 0, err
	}
	r, err := rlimit(a[1])
	if err != nil {
		return 0, err
	}
	if a[2] != 0 {
		want, err := get[unix.Rlimit](t, a[2])
		if err != nil {
			return 0, err
		}
		switch {
		case want.Cur > want.Max:
			return 0, unix.EINVAL
		case want.Max > r.Max:
			return 0, unix.EPERM
		}
	}
	if a[3] != 0 {
		return 0, put(t, a[3], r)
	}
	return 0, nil
}

func sysGetpriority(*Task, args) (uint64, error) { return 20, nil }

// sysNothing is for calls that have no effect here and succeed.
func sysNothing(*Task, args) (uint64, error) { return 0, nil }

func sysNoPermission(*Task, args) (uint64, error) { return 0, unix.EPERM }
