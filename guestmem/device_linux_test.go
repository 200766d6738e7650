package guestmem

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
)

const (
	deviceBase  addr.GPA = 4 << 30
	devicePages          = 32
)

// newDevice returns an object over pages 8 to 40 of a region of 64.
func newDevice(tb testing.TB, m *Memory) (*Region, *Object) {
	tb.Helper()
	r, err := m.AddRegion(RegionOptions{Base: deviceBase, Size: 64 * page, Name: "card"})
	mustDo(tb, err)
	o, err := m.NewDeviceObject(deviceBase+8*page, devicePages*page, "card")
	mustDo(tb, err)
	return r, o
}

// mapDevice maps pages of a device from one on; at 0 is anywhere.
func mapDevice(tb testing.TB, as *AddressSpace, o *Object, at addr.GVA, from, n int, prot Prot) addr.GVA {
	tb.Helper()
	flags := MapShared
	if at != 0 {
		flags |= MapFixed
	}
	at, err := as.Map(ctx, MapOptions{Addr: at, Length: uint64(n) * page, Prot: prot, Flags: flags, Object: o, Offset: uint64(from) * page})
	mustDo(tb, err)
	return at
}

// leafAt returns the leaf as a vCPU would find it.
func leafAt(as *AddressSpace, at addr.GVA) (e pagetable.Entry) {
	v := leafFinder{at: at.RoundDown()}
	as.pt.Visit(&v)
	return v.e
}

type leafFinder struct {
	at addr.GVA
	e  pagetable.Entry
}

func (*leafFinder) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }
func (v *leafFinder) VisitLeaf(at addr.GVA, e pagetable.Entry) {
	if at == v.at {
		v.e = e
	}
}

// What a guest maps of a device is the device's memory: for its vCPUs, for Go code, for
// other address spaces, and for who has the guest-physical address.
func TestDeviceIsSeenByAll(t *testing.T) {
	m := newMemory(t, 4<<20)
	r, o := newDevice(t, m)
	as, other := newSpace(t, m), newSpace(t, m)
	a := mapDevice(t, as, o, 0, 4, 8, ProtRead|ProtWrite)
	b := mapDevice(t, other, o, 0, 0, devicePages, ProtRead)
	want := bytes.Repeat([]byte("a device's memory, over a page's end;"), 300)
	n, err := as.WriteAt(ctx, want, a+100)
	if n != len(want) || err != nil {
		t.Fatal(n, err)
	}
	child, err := as.Fork()
	mustDo(t, err)
	defer child.Close()
	for what, read := range map[string]func(p []byte) (int, error){
		"through itself":          func(p []byte) (int, error) { return as.ReadAt(ctx, p, a+100) },
		"in another space":        func(p []byte) (int, error) { return other.ReadAt(ctx, p, b+4*page+100) },
		"in a child":              func(p []byte) (int, error) { return child.ReadAt(ctx, p, a+100) },
		"by guest-physical place": func(p []byte) (int, error) { return m.ReadAt(p, deviceBase+12*page+100) },
		"through the object":      func(p []byte) (int, error) { return o.ReadAt(ctx, p, 4*page+100) },
	} {
		got := make([]byte, len(want))
		if n, err := read(got); n != len(got) || err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %d, %v, %.40q", what, n, err, got)
		}
	}
	if err := child.Store64(ctx, a, 7); err != nil {
		t.Fatal(err)
	}
	if ok, err := other.CompareAndSwap32(ctx, b+4*page, 7, 8); ok || !errors.Is(err, ErrAccess) {
		t.Errorf("a swap where only reads are allowed: %v, %v", ok, err)
	}
	if ok, err := as.CompareAndSwap32(ctx, a, 7, 9); !ok || err != nil {
		t.Errorf("swap: %v, %v", ok, err)
	}
	if v, err := other.Load64(ctx, b+4*page); v != 9 || err != nil {
		t.Errorf("load: %d, %v", v, err)
	}
	if v, err := other.Load32(ctx, b+4*page); v != 9 || err != nil {
		t.Errorf("load of 32 bits: %d, %v", v, err)
	}
	mustDo(t, as.Store32(ctx, a+4, 1))
	if ok, err := as.CompareAndSwap64(ctx, a, 1<<32|9, 3); !ok || err != nil {
		t.Errorf("swap of 64 bits: %v, %v", ok, err)
	}
	mustDo(t, as.Fault(ctx, a, Write))
	e := leafAt(as, a)
	if !e.IsSpecial() || e.Frame().GPA() != deviceBase+12*page || !e.Has(pagetable.Writable|pagetable.User) {
		t.Errorf("the leaf is %#x", uint64(e))
	}
	if s := m.Stats(); s.FramesInUse != s.Tables {
		t.Errorf("%d frames in use, %d are tables: a device's are none", s.FramesInUse, s.Tables)
	}
	if r.dirty.has(12) != true {
		t.Error("a store through an address space is not dirty by guest-physical address")
	}
	// The end of the object is that of ReadAt and WriteAt.
	if n, err := o.ReadAt(ctx, make([]byte, 20), devicePages*page-8); n != 8 || err != io.EOF {
		t.Errorf("read over the end: %d, %v", n, err)
	}
	if n, err := o.WriteAt(ctx, make([]byte, 20), devicePages*page-8); n != 8 || !errors.Is(err, ErrBus) {
		t.Errorf("write over the end: %d, %v", n, err)
	}
	o.Close()
}

// A region stays while anything shows it.
func TestDeviceKeepsItsRegion(t *testing.T) {
	m := newMemory(t, 4<<20)
	r, o := newDevice(t, m)
	as := newSpace(t, m)
	a := mapDevice(t, as, o, 0, 0, 4, ProtRead|ProtWrite)
	mustDo(t, as.Fault(ctx, a, Read))
	snap, err := as.Snapshot()
	mustDo(t, err)
	busy := func(what string) {
		t.Helper()
		if err := m.RemoveRegion(r); !errors.Is(err, ErrBusy) {
			t.Fatalf("%s: RemoveRegion = %v", what, err)
		}
	}
	busy("object, area and snapshot")
	o.Close()
	busy("area and snapshot")
	mustDo(t, as.Unmap(a, 4*page))
	busy("snapshot")
	mustDo(t, snap.Close())
	mustDo(t, m.RemoveRegion(r))
	if _, err := m.NewDeviceObject(deviceBase, page, "gone"); !errors.Is(err, ErrNoRegion) {
		t.Errorf("an object over what was removed: %v", err)
	}
}

// What Linux refuses for VM_IO and VM_PFNMAP, and what makes no sense.
func TestDeviceRefusals(t *testing.T) {
	m := newMemory(t, 4<<20)
	_, o := newDevice(t, m)
	defer o.Close()
	for what, c := range map[string]struct {
		gpa  addr.GPA
		size uint64
		want error
	}{
		"no region":           {deviceBase - 64*page, page, ErrNoRegion},
		"over its end":        {deviceBase, 65 * page, ErrNoRegion},
		"the pool":            {0, page, ErrInvalid},
		"half a page":         {deviceBase, page / 2, ErrInvalid},
		"from half a page on": {deviceBase + 8, page, ErrInvalid},
		"nothing":             {deviceBase, 0, ErrInvalid},
		"around the world":    {deviceBase, ^uint64(page - 1), ErrInvalid},
		"to the end of all":   {^addr.GPA(page - 1), 2 * page, ErrInvalid},
	} {
		if o, err := m.NewDeviceObject(c.gpa, c.size, what); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %v", what, o, err)
		}
	}
	as := newSpace(t, m)
	rw := ProtRead | ProtWrite
	refuse := func(what string, err error, want syscall.Errno) {
		t.Helper()
		mustErrno(t, what, err, want)
		mustCheck(t, m)
	}
	try := func(what string, p MapOptions, want syscall.Errno) {
		t.Helper()
		p.Object, p.Prot = o, rw
		_, err := as.Map(ctx, p)
		refuse(what, err, want)
	}
	try("private", MapOptions{Length: page, Flags: MapPrivate}, syscall.EINVAL)
	try("over the end", MapOptions{Length: 33 * page, Flags: MapShared}, syscall.EINVAL)
	try("beyond the end", MapOptions{Length: page, Flags: MapShared, Offset: 32 * page}, syscall.EINVAL)
	try("far beyond", MapOptions{Length: page, Flags: MapShared, Offset: 1 << 62}, syscall.EINVAL)
	refuse("truncate", o.Truncate(page), syscall.EINVAL)

	a := mapDevice(t, as, o, 0x100000, 0, 8, rw)
	if as.Areas(); len(leavesOf(as)) != 0 {
		t.Error("mapped is not faulted in")
	}
	for _, v := range []Advice{
		AdviceDontNeed, AdviceDontNeedLocked, AdviceFree, AdviceCold, AdvicePageOut, AdviceRemove, AdviceDoFork, AdviceDoDump,
		AdviceWipeOnFork, AdviceGuardInstall, AdviceGuardRemove, AdviceCollapse, AdvicePopulateRead, AdvicePopulateWrite,
	} {
		refuse("advice", as.Advise(ctx, a, 8*page, v), syscall.EINVAL)
	}
	for _, v := range []Advice{AdviceNormal, AdviceRandom, AdviceWillNeed, AdviceDontFork, AdviceDontDump, AdviceKeepOnFork, AdviceMergeable, AdviceHugePage, AdviceNoHugePage} {
		refuse("advice", as.Advise(ctx, a, 8*page, v), 0)
	}
	_, err := as.Pin(ctx, addr.Range{Start: a, End: a + page}, Read)
	refuse("pin", err, syscall.EFAULT)
	remap := func(what string, p RemapOptions, want syscall.Errno) {
		t.Helper()
		p.Addr = a
		_, err := as.Remap(ctx, p)
		refuse(what, err, want)
	}
	remap("grow", RemapOptions{OldLength: 8 * page, NewLength: 9 * page, Flags: RemapMayMove}, syscall.EFAULT)
	remap("second view", RemapOptions{NewLength: page, Flags: RemapMayMove}, syscall.EFAULT)
	remap("leave", RemapOptions{OldLength: page, NewLength: page, Flags: RemapMayMove | RemapDontUnmap}, syscall.EINVAL)
	remap("leave, to there", RemapOptions{OldLength: page, NewLength: page, NewAddr: 0x700000, Flags: RemapMayMove | RemapFixed | RemapDontUnmap}, syscall.EINVAL)
	refuse("sync", as.Sync(a, 8*page, SyncWait), 0)
	if err := as.SetName(a, page, "x"); !errors.Is(err, ErrNoBacking) {
		t.Errorf("name: %v", err)
	}

	// A lock is no error, and none.
	refuse("lock", as.Lock(ctx, a, 8*page, LockNow), 0)
	mustDo(t, as.LockAll(ctx, LockAllCurrent|LockAllFuture))
	b, err := as.Map(ctx, MapOptions{Length: page, Flags: MapShared | MapPopulate | MapLocked, Prot: rw, Object: o})
	mustDo(t, err)
	for _, at := range []addr.GVA{a, b} {
		if area := as.tree.Snapshot().Find(at); area.Flags&lockFlags != 0 {
			t.Errorf("%v is locked", area)
		}
	}
	refuse("invalidate what is not locked", as.Sync(a, 8*page, SyncInvalidate), 0)
	mustDo(t, as.UnlockAll())
	if n := len(leavesOf(as)); n != 0 {
		t.Errorf("%d leaves: nothing is populated", n)
	}
	mustDo(t, as.Fault(ctx, a, Write))
	vec := make([]bool, 2)
	if _, err := as.Resident(a, 2*page, vec); err != nil || vec[0] || vec[1] {
		t.Errorf("resident: %v, %v", vec, err)
	}
	mon, err := as.NewMonitor(MonitorOptions{})
	if err == nil {
		defer mon.Close()
		_, err := mon.Register(a, page, uffd.Missing)
		refuse("monitor", err, syscall.EINVAL)
	}
	// A read-only region has read-only areas.
	ro, err := m.AddRegion(RegionOptions{Base: deviceBase + 1<<30, Size: page, Access: RegionReadOnly})
	mustDo(t, err)
	rom, err := m.NewDeviceObject(ro.Base(), page, "rom")
	mustDo(t, err)
	defer rom.Close()
	_, err = as.Map(ctx, MapOptions{Length: page, Prot: rw, Flags: MapShared, Object: rom})
	refuse("write to a rom", err, syscall.EACCES)
	c := mapDevice(t, as, rom, 0, 0, 1, ProtRead)
	refuse("protect a rom", as.Protect(c, page, rw), syscall.EACCES)
	if _, err := as.Load64(ctx, c); err != nil {
		t.Error(err)
	}
}

// leavesOf returns the leaves there are.
func leavesOf(as *AddressSpace) []pagetable.Entry {
	var v leafLister
	as.pt.Visit(&v)
	return v.list
}

type leafLister struct{ list []pagetable.Entry }

func (*leafLister) VisitTable(addr.PFN, int, pagetable.Entry) bool { return true }
func (v *leafLister) VisitLeaf(_ addr.GVA, e pagetable.Entry)      { v.list = append(v.list, e) }

// A region that has lost what is behind it is a bus error, as for other accesses.
func TestR10DeviceFileIsCutByOthers(t *testing.T) {
	m := newMemory(t, 4<<20)
	f := testFile(t, 8*page)
	_, err := m.AddRegion(RegionOptions{Base: deviceBase, Size: 8 * page, Backing: BackingFile, File: f})
	mustDo(t, err)
	o, err := m.NewDeviceObject(deviceBase, 8*page, "cut")
	mustDo(t, err)
	defer o.Close()
	as := newSpace(t, m)
	a := mapDevice(t, as, o, 0, 0, 8, ProtRead|ProtWrite)
	b := make([]byte, 8*page)
	if n, err := as.ReadAt(ctx, b, a); n != len(b) || err != nil || b[7*page] != 8 {
		t.Fatal(n, err)
	}
	mustDo(t, f.Truncate(4*page))
	if n, err := as.ReadAt(ctx, b, a); n != 4*page || !errors.Is(err, ErrBus) {
		t.Errorf("ReadAt = %d, %v", n, err)
	}
	if n, err := as.WriteAt(ctx, b, a+3*page); n != page || !errors.Is(err, ErrBus) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	if _, err := as.Load64(ctx, a+5*page); !errors.Is(err, ErrBus) {
		t.Errorf("Load64 = %v", err)
	}
}

// A change waits for who copies to a device (R1):
//
//	copier                              change
//	section, finds the area
//	                                    unmap: marks, sweeps
//	stores                              waits for the section
//	leaves
//	                                    returns
func TestR1UnmapWaitsForCopiesToDevices(t *testing.T) {
	m := newMemory(t, 4<<20)
	_, o := newDevice(t, m)
	defer o.Close()
	as := newSpace(t, m)
	a := mapDevice(t, as, o, 0, 0, 4, ProtRead|ProtWrite)
	mustDo(t, as.Store64(ctx, a, 1))
	var unmapped atomic.Bool
	done := make(chan error, 1)
	storeHookGPA = func() {
		storeHookGPA = nil
		go func() {
			err := as.Unmap(a, 4*page)
			unmapped.Store(true)
			done <- err
		}()
		for range 2000 {
			runtime.Gosched()
		}
		if unmapped.Load() {
			t.Error("it is unmapped, and is about to be stored to")
		}
	}
	defer func() { storeHookGPA = nil }()
	if _, err := as.WriteAt(ctx, []byte("12345678"), a); err != nil {
		t.Error(err)
	}
	mustDo(t, <-done)
	if err := as.Store64(ctx, a, 2); !errors.Is(err, ErrNotMapped) {
		t.Error(err)
	}
}

// frameView is a view that notes what it is told of.
type frameView struct {
	m   *Memory
	got map[addr.PFN]bool
}

func (*frameView) Stop(*AddressSpace)   {}
func (*frameView) Resume(*AddressSpace) {}
func (v *frameView) Invalidate(_ *AddressSpace, frames []addr.PFN) {
	for _, f := range frames {
		v.got[f] = true
	}
}
func (v *frameView) RetireTables(frames []addr.PFN) { v.m.ReuseTables(frames) }
func (*frameView) Flush()                           {}

// Views hear of a device's pages when leaves that lead to them go, move, or allow less
// (R8).
func TestR8ViewsForgetDevices(t *testing.T) {
	const first = addr.PFN((deviceBase + 8*page) / page)
	for what, change := range map[string]func(as *AddressSpace, a addr.GVA) error{
		"unmap":       func(as *AddressSpace, a addr.GVA) error { return as.Unmap(a, page) },
		"unmap all":   func(as *AddressSpace, a addr.GVA) error { return as.Unmap(0x10000, 1<<40) }, // with its tables
		"protect":     func(as *AddressSpace, a addr.GVA) error { return as.Protect(a, page, ProtRead) },
		"protect all": func(as *AddressSpace, a addr.GVA) error { return as.Protect(a, 4*page, ProtNone) },
		"move": func(as *AddressSpace, a addr.GVA) error {
			_, err := as.Remap(ctx, RemapOptions{Addr: a, OldLength: page, NewLength: page, NewAddr: a + 64*page, Flags: RemapMayMove | RemapFixed})
			return err
		},
		"map over": func(as *AddressSpace, a addr.GVA) error {
			_, err := as.Map(ctx, MapOptions{Addr: a, Length: page, Prot: ProtRead, Flags: MapPrivate | MapAnonymous | MapFixed})
			return err
		},
	} {
		t.Run(what, func(t *testing.T) {
			m := newMemory(t, 4<<20)
			v := &frameView{m, map[addr.PFN]bool{}}
			mustDo(t, m.AttachView(v))
			_, o := newDevice(t, m)
			defer o.Close()
			as := newSpace(t, m)
			a := mapDevice(t, as, o, 0x40000000, 0, 4, ProtRead|ProtWrite)
			mustDo(t, as.Fault(ctx, a, Write))
			clear(v.got)
			mustDo(t, change(as, a))
			if !v.got[first] {
				t.Errorf("the view was told of %v, and not of %v", v.got, first)
			}
		})
	}
}
