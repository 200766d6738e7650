//go:build linux && amd64

package kernel

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

const (
	mremapMayMove   = 1
	mremapFixed     = 2
	mremapDontUnmap = 4
)

// sysMremap is mremap(2) by way of Map, a copy and Unmap: right for private
// anonymous memory, which is what realloc asks for. What cannot be done so
// (moving shared memory or files) is ENOMEM, which every caller must expect.
func sysMremap(t *Task, a args) (uint64, error) {
	old, oldLen, newLen, flags, target := a[0], roundUp(a[1]), roundUp(a[2]), a[3], a[4]
	switch {
	case old%pageSize != 0, flags&^(mremapMayMove|mremapFixed|mremapDontUnmap) != 0,
		newLen == 0, newLen > stackTop,
		flags&(mremapFixed|mremapDontUnmap) != 0 && flags&mremapMayMove == 0,
		flags&mremapDontUnmap != 0 && oldLen != newLen,
		flags&mremapFixed != 0 && (target%pageSize != 0 || target > stackTop-newLen),
		flags&mremapFixed != 0 && target < old+oldLen && old < target+newLen:
		return 0, unix.EINVAL
	}
	if err := t.k.checkSealed(old, max(oldLen, newLen)); err != nil {
		return 0, err
	}
	if flags&mremapFixed != 0 {
		if err := t.k.checkSealed(target, newLen); err != nil {
			return 0, err
		}
	}
	area, ok := t.space().FindArea(gva(old))
	if !ok {
		return 0, unix.EFAULT
	}
	if oldLen == 0 {
		return 0, unix.EINVAL // a second view of shared memory: not here
	}
	if flags&(mremapFixed|mremapDontUnmap) == 0 && newLen <= oldLen {
		if newLen == oldLen {
			return old, nil
		}
		return old, t.space().Unmap(gva(old+newLen), oldLen-newLen)
	}
	if oldLen > uint64(area.Range.End)-old {
		return 0, unix.EFAULT
	}
	m := moving{t: t, area: area, old: old, oldLen: oldLen, newLen: newLen, flags: flags, target: target}
	if flags&(mremapFixed|mremapDontUnmap) == 0 && m.growInPlace() {
		return old, nil
	}
	if flags&mremapMayMove == 0 || area.Shared || !m.isAnonymous() {
		return 0, unix.ENOMEM
	}
	return m.move()
}

// moving is one mremap that has to do something.
type moving struct {
	t                          *Task
	area                       guestmem.AreaInfo
	old, oldLen, newLen, flags uint64
	target                     uint64
}

// isAnonymous: an area without a file is nameless, or has a name in brackets.
func (m *moving) isAnonymous() bool {
	return m.area.Name == "" || m.area.Name[0] == '['
}

func (m *moving) growInPlace() bool {
	end := m.old + m.oldLen
	if uint64(m.area.Range.End) != end || !m.isAnonymous() || m.area.Shared {
		return false
	}
	at, err := m.t.space().Map(m.t.k.ctx, guestmem.MapOptions{
		Addr: gva(end), Length: m.newLen - m.oldLen, Prot: m.area.Prot,
		Flags: guestmem.MapPrivate | guestmem.MapAnonymous | guestmem.MapFixedNoReplace,
	})
	return err == nil && uint64(at) == end
}

func (m *moving) move() (uint64, error) {
	as, ctx := m.t.space(), m.t.k.ctx
	o := guestmem.MapOptions{
		Length: m.newLen, Prot: guestmem.ProtRead | guestmem.ProtWrite,
		Flags: guestmem.MapPrivate | guestmem.MapAnonymous,
	}
	if m.flags&mremapFixed != 0 {
		o.Addr, o.Flags = gva(m.target), o.Flags|guestmem.MapFixed
	}
	to, err := as.Map(ctx, o)
	if err != nil {
		return 0, err
	}
	if m.area.Prot == guestmem.ProtNone {
		if err := as.Protect(gva(m.old), m.oldLen, guestmem.ProtRead); err != nil {
			return 0, errors.Join(err, as.Unmap(to, m.newLen))
		}
	}
	if err := m.copy(to); err != nil {
		return 0, errors.Join(err, as.Unmap(to, m.newLen))
	}
	if m.flags&mremapDontUnmap != 0 {
		if err := as.Discard(gva(m.old), m.oldLen); err != nil {
			return 0, err
		}
		if err := as.Protect(gva(m.old), m.oldLen, m.area.Prot); err != nil {
			return 0, err
		}
	} else if err := as.Unmap(gva(m.old), m.oldLen); err != nil {
		return 0, err
	}
	return uint64(to), as.Protect(to, m.newLen, m.area.Prot)
}

// copy moves the bytes. Pages of zeroes are left out: most of a large sparse
// area has never been touched, and stays so.
func (m *moving) copy(to addr.GVA) error {
	n := min(m.oldLen, m.newLen)
	zero := make([]byte, pageSize)
	for done := uint64(0); done < n; {
		p := m.t.bounce(n - done)
		if err := m.t.readGuest(p, m.old+done); err != nil {
			return err
		}
		for at := 0; at < len(p); at += pageSize {
			if page := p[at : at+pageSize]; !bytes.Equal(page, zero) {
				if err := m.t.writeGuest(page, uint64(to)+done+uint64(at)); err != nil {
					return err
				}
			}
		}
		done += uint64(len(p))
	}
	return nil
}
