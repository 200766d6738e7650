//go:build linux && amd64

package kernel

import (
	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
)

// sysProcessVMReadv and sysProcessVMWritev copy between the caller's memory and
// another process's, which goes on running.
func sysProcessVMReadv(t *Task, a args) (uint64, error) {
	return t.copyAcross(a, func(other *guestmem.AddressSpace, p []byte, local, remote uint64) (int, error) {
		n, err := other.ReadAt(t.call, p, gva(remote))
		if n > 0 {
			m, werr := t.space().WriteAt(t.call, p[:n], gva(local))
			if werr != nil {
				return m, werr
			}
		}
		return n, err
	})
}

func sysProcessVMWritev(t *Task, a args) (uint64, error) {
	return t.copyAcross(a, func(other *guestmem.AddressSpace, p []byte, local, remote uint64) (int, error) {
		n, err := t.space().ReadAt(t.call, p, gva(local))
		if n > 0 {
			m, werr := other.WriteAt(t.call, p[:n], gva(remote))
			if werr != nil {
				return m, werr
			}
		}
		return n, err
	})
}

// copyAcross walks both vectors at once. What was copied before something went wrong
// counts. EINVAL, EFAULT, ESRCH.
func (t *Task) copyAcross(a args, move func(other *guestmem.AddressSpace, p []byte, local, remote uint64) (int, error)) (done uint64, err error) {
	if a[5] != 0 {
		return 0, unix.EINVAL
	}
	local, err := t.vector(args{0, a[1], a[2]})()
	if err != nil {
		return 0, err
	}
	remote, err := t.remoteVector(a[3], a[4])
	if err != nil || len(local) == 0 || len(remote) == 0 {
		return 0, err
	}
	m, err := t.memoryOf(a[0])
	if err != nil {
		return 0, err
	}
	defer m.release()
	for len(local) > 0 && len(remote) > 0 {
		l, r := &local[0], &remote[0]
		switch {
		case l.length == 0:
			local = local[1:]
			continue
		case r.length == 0:
			remote = remote[1:]
			continue
		}
		n, err := move(m.as, t.bounce(min(l.length, r.length)), l.base, r.base)
		l.base, l.length = l.base+uint64(n), l.length-uint64(n)
		r.base, r.length = r.base+uint64(n), r.length-uint64(n)
		if done += uint64(n); err != nil {
			return partial(done, copyError(err))
		}
	}
	return done, nil
}

// remoteVector reads what may name any address: those that are none are found out.
func (t *Task) remoteVector(at, n uint64) ([]iovec, error) {
	if n > maxIOVecs {
		return nil, unix.EINVAL
	}
	iovs := make([]iovec, 0, n)
	for i := range n {
		v, err := get[[2]uint64](t, at+i*16)
		if err != nil {
			return nil, err
		}
		if int64(v[1]) < 0 {
			return nil, unix.EINVAL
		}
		iovs = append(iovs, iovec{v[0], v[1]})
	}
	return iovs, nil
}

// memoryOf returns a process's memory with a reference, which keeps it there should the
// process end or execute another program. ESRCH.
func (t *Task) memoryOf(pid uint64) (*mm, error) {
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	id := int(int32(pid))
	p := t.k.processes[id]
	if other := t.k.tasks[id]; other != nil {
		p = other.proc
	}
	if p == nil || p.mm == nil {
		return nil, unix.ESRCH
	}
	return p.mm.refLocked(), nil
}
