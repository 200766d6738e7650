//go:build linux && amd64

package kernel

import (
	"errors"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/examples/sandbox/internal/vfs"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

func gva(a uint64) addr.GVA { return addr.GVA(a) }

const (
	protBits  = unix.PROT_READ | unix.PROT_WRITE | unix.PROT_EXEC
	protKnown = protBits | 8 // PROT_SEM means nothing

	mapTypes     = 0xf
	mapValidate  = 3 // MAP_SHARED_VALIDATE
	mapFlagsHere = guestmem.MapShared | guestmem.MapPrivate | guestmem.MapFixed | guestmem.MapAnonymous |
		guestmem.MapNoReserve | guestmem.MapPopulate | guestmem.MapStack | guestmem.MapFixedNoReplace | guestmem.MapLocked |
		guestmem.MapGrowsDown | guestmem.Map32Bit
)

func (t *Task) space() *guestmem.AddressSpace { return t.proc.mm.as }

// limitedSpace is space for who asks for more of it.
func (t *Task) limitedSpace() *guestmem.AddressSpace {
	t.useLimits()
	return t.space()
}

func sysBrk(t *Task, a args) (uint64, error) {
	var before addr.GVA
	if t.replays() {
		before, _ = t.space().Brk(0)
	}
	at, _ := t.limitedSpace().BrkContext(t.call, gva(a[0])) // a failure is told by the old break
	if before != 0 && at > before {
		t.mapped(uint64(before), uint64(at-before))
	}
	return uint64(at), nil
}

func sysMmap(t *Task, a args) (uint64, error) {
	flags := a[3]
	if a[5]%pageSize != 0 {
		return 0, unix.EINVAL
	}
	o := guestmem.MapOptions{
		Addr: gva(a[0]), Length: a[1], Prot: guestmem.Prot(a[2] & protBits),
		Flags: guestmem.MapFlags(flags) & mapFlagsHere, Offset: a[5],
	}
	if flags&mapTypes == mapValidate {
		o.Flags = guestmem.MapFlags(flags) // those that are unknown are refused
	}
	if flags&unix.MAP_ANONYMOUS == 0 {
		release, err := t.mapFile(&o, a)
		if err != nil {
			return 0, err
		}
		defer release()
	} else {
		o.Offset = 0
		if flags&mapTypes == mapValidate {
			return 0, unix.EINVAL // only files tell unknown flags apart
		}
	}
	switch {
	case o.Length == 0:
		return 0, unix.EINVAL
	case flags&(unix.MAP_HUGETLB|unix.MAP_ANONYMOUS) == unix.MAP_HUGETLB|unix.MAP_ANONYMOUS:
		return 0, unix.ENOMEM // as where nobody has set pages aside
	}
	if err := t.k.checkSealed(a[0], a[1]); err != nil {
		if flags&(unix.MAP_FIXED|unix.MAP_FIXED_NOREPLACE) != 0 {
			return 0, err
		}
		o.Addr = 0 // no more than a hint
	}
	at, err := t.limitedSpace().Map(t.call, o)
	if errors.Is(err, guestmem.ErrNoMemory) && t.k.objects.shrink() {
		at, err = t.space().Map(t.call, o)
	}
	if err == nil {
		t.mapped(uint64(at), a[1])
	}
	return uint64(at), err
}

// mapFile finds the object behind a descriptor. Files of the host are read-only;
// those of /tmp, and memfds, are what is written to them and by whom ever.
func (t *Task) mapFile(o *guestmem.MapOptions, a args) (release func(), err error) {
	open, err := t.files.get(int(int32(a[4])))
	if err != nil {
		return nil, err
	}
	defer open.Unref()
	if !open.CanRead() {
		return nil, unix.EACCES
	}
	if end := o.Offset + roundUp(o.Length); end < o.Offset || int64(end) < 0 {
		return nil, unix.EOVERFLOW
	}
	if !open.CanWrite() {
		o.Access = guestmem.ObjectReadOnly
	}
	switch f := open.File.(type) {
	case *vfs.HostFile:
		obj, release, err := t.k.objects.get(f, open.Path)
		o.Object = obj
		return release, err
	case *vfs.TmpFile:
		shared := a[3]&mapTypes == unix.MAP_SHARED || a[3]&mapTypes == mapValidate
		if shared && !f.MayMapWritable() {
			if o.Access == guestmem.ObjectReadWrite && a[2]&unix.PROT_WRITE != 0 {
				return nil, unix.EPERM
			}
			o.Access = guestmem.ObjectReadOnly
		}
		// The description keeps the pages until the area does.
		held := open.Ref()
		pages, err := f.Pages(t.k.newPages(open.Path))
		if err != nil {
			held.Unref()
			return nil, err
		}
		o.Object = pages.(*filePages).obj
		return held.Unref, nil
	}
	return nil, unix.ENODEV
}

func sysMunmap(t *Task, a args) (uint64, error) {
	return 0, t.space().UnmapContext(t.call, gva(a[0]), a[1])
}

func sysMprotect(t *Task, a args) (uint64, error) {
	const grows = unix.PROT_GROWSDOWN | unix.PROT_GROWSUP
	if a[1] != 0 && a[2]&^(protKnown|grows) != 0 {
		return 0, unix.EINVAL
	}
	prot := guestmem.Prot(a[2] & (protBits | grows))
	if err := checkClockPage(a[0], a[1], prot); err != nil {
		return 0, err
	}
	if err := t.k.checkSealed(a[0], a[1]); err != nil {
		return 0, err
	}
	err := t.limitedSpace().Protect(gva(a[0]), a[1], prot)
	if err == nil {
		t.mapped(a[0], a[1])
	}
	return 0, err
}

func sysMadvise(t *Task, a args) (uint64, error) {
	advice := guestmem.Advice(int32(a[2]))
	switch advice {
	case guestmem.AdviceDontNeed, guestmem.AdviceDontNeedLocked, guestmem.AdviceDontFork, guestmem.AdviceWipeOnFork:
		if err := t.k.checkSealed(a[0], a[1]); err != nil {
			return 0, err
		}
	}
	return 0, t.space().Advise(t.call, gva(a[0]), a[1], advice)
}

func sysMsync(t *Task, a args) (uint64, error) {
	return 0, t.space().Sync(gva(a[0]), a[1], guestmem.SyncFlags(int32(a[2])))
}

func sysMlock(t *Task, a args) (uint64, error) {
	return 0, t.limitedSpace().Lock(t.call, gva(a[0]), a[1], guestmem.LockNow)
}

func sysMlock2(t *Task, a args) (uint64, error) {
	return 0, t.limitedSpace().Lock(t.call, gva(a[0]), a[1], guestmem.LockMode(int32(a[2])))
}

func sysMunlock(t *Task, a args) (uint64, error) { return 0, t.space().Unlock(gva(a[0]), a[1]) }

func sysMlockall(t *Task, a args) (uint64, error) {
	return 0, t.limitedSpace().LockAll(t.call, guestmem.LockAllFlags(int32(a[0])))
}

func sysMunlockall(t *Task, _ args) (uint64, error) { return 0, t.space().UnlockAll() }

// sysMincore answers a page of the vector at a time, like Linux: what the guest has
// been told of pages below a hole it has been told.
func sysMincore(t *Task, a args) (uint64, error) {
	var vec [pageSize]bool
	var out [pageSize]byte
	start, length, at := a[0], a[1], a[2]
	for {
		n, err := t.space().Resident(gva(start), length, vec[:])
		for i, resident := range vec[:n] {
			out[i] = 0
			if resident {
				out[i] = 1
			}
		}
		if werr := t.writeGuest(out[:n], at); werr != nil {
			return 0, werr
		}
		done := uint64(n) * pageSize
		if err != nil || done >= length {
			return 0, err
		}
		start, length, at = start+done, length-done, at+uint64(n)
	}
}
