//go:build linux && amd64

package kernel

import (
	"crypto/rand"
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

// sysinfo is struct sysinfo with its padding, which put does not know of.
type sysinfo struct {
	Uptime                                                       int64
	Loads                                                        [3]uint64
	Totalram, Freeram, Sharedram, Bufferram, Totalswap, Freeswap uint64
	Procs                                                        uint16
	_                                                            [6]byte
	Totalhigh, Freehigh                                          uint64
	Unit                                                         uint32
	_                                                            [4]byte
}

func sysSysinfo(t *Task, a args) (uint64, error) {
	s := t.k.Memory.Stats()
	t.k.mu.Lock()
	n := len(t.k.processes)
	t.k.mu.Unlock()
	return 0, put(t, a[0], sysinfo{
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
		n, err := t.space().WriteAt(t.call, p, gva(a[0]+done))
		if done += uint64(n); err != nil {
			return partial(done, copyError(err))
		}
	}
	return done, nil
}

// sysNothing is for calls that have no effect here and succeed.
func sysNothing(*Task, args) (uint64, error) { return 0, nil }

func sysNoPermission(*Task, args) (uint64, error) { return 0, unix.EPERM }
