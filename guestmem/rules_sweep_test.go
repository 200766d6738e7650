package guestmem

import (
	"errors"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A private copy that takes an object's page's place while the page is taken out of the
// object is not swept with it:
//
//	store to a private area           page taken out of the object
//	section, copies the page
//	                                  marks the area, and waits: else it
//	                                  looks, and finds the object's page
//	puts the copy in its place
//	                                  takes the copy out
func TestR1CopyBesideARemovalStays(t *testing.T) {
	m := newMemory(t, 16<<20)
	o := newWritable(t, m, newSlowFile(1))
	as := newSpace(t, m)
	shared, private := mapShared(t, as, o, 1), mapFile(t, as, o, 1, rw)
	mustRead(t, as, shared, 1)
	mustRead(t, as, private, 1) // the object's own page
	copying, looked, stored := make(chan struct{}), make(chan struct{}, 100), make(chan error, 1)
	breakHook = func() {
		breakHook = nil
		close(copying)
		for range 2000 { // until it is looked at, which it is not as long as this lasts
			select {
			case <-looked:
				return
			default:
				runtime.Gosched()
			}
		}
	}
	sweepHook = func() {
		select {
		case looked <- struct{}{}:
		default:
		}
		for range 2000 {
			runtime.Gosched()
		}
	}
	defer func() { breakHook, sweepHook = nil, nil }()
	go func() {
		_, err := as.WriteAt(ctx, []byte("mine"), private)
		stored <- err
	}()
	<-copying
	mustDo(t, as.Advise(ctx, shared, page, AdviceRemove))
	mustDo(t, <-stored)
	mustSee(t, as, private, []byte("mine"))
	mustSee(t, as, shared, make([]byte, page))
}

// A truncation that lacks frames for tables fails before anything is gone, in any space.
func TestR13TruncateWithoutTables(t *testing.T) {
	m := newMemory(t, 4<<20)
	o := newWritable(t, m, newSlowFile(4))
	as := newSpace(t, m)
	at := mapFile(t, as, o, 4, rw)
	mustWrite(t, as, at+2*page, []byte("parent"))
	child, err := as.Fork()
	mustDo(t, err)
	defer child.Close()
	grand, err := child.Fork()
	mustDo(t, err)
	defer grand.Close()
	var taken []addr.PFN
	for {
		f, err := m.AllocSupervisor(1)
		if err != nil {
			break
		}
		taken = append(taken, f...)
	}
	defer func() { m.FreeSupervisor(taken) }()
	for free := range 12 {
		err := o.Truncate(page)
		if err == nil {
			if free < 6 {
				t.Errorf("%d frames are enough for the tables of three spaces", free)
			}
			break
		}
		if !errors.Is(err, ErrNoMemory) || o.Size() != 4*page {
			t.Fatalf("%d frames: %v, size %#x", free, err, o.Size())
		}
		for i, s := range []*AddressSpace{as, child, grand} {
			if mustSee(t, s, at+2*page, []byte("parent")); t.Failed() {
				t.Fatalf("space %d, %d frames", i, free)
			}
		}
		mustCheck(t, m)
		last := len(taken) - 1
		m.FreeSupervisor(taken[last:])
		taken = taken[:last]
	}
	for i, s := range []*AddressSpace{as, child, grand} {
		if err := s.Fault(ctx, at+2*page, Read); !errors.Is(err, ErrBus) {
			t.Errorf("space %d: %v", i, err)
		}
	}
}

// What a source is unlocked of is what it is by then: not what has been moved to the
// other end of it.
func TestRemapKeepsLocksOfWhatItMoved(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	const base addr.GVA = 0x100000
	for _, a := range []struct {
		first, pages addr.GVA
		prot         Prot
	}{{0, 4, ProtRead}, {4, 6, ProtRead | ProtWrite}} {
		_, err := as.Map(ctx, MapOptions{Addr: base + a.first*page, Length: uint64(a.pages * page), Prot: a.prot, Flags: MapPrivate | MapAnonymous | MapFixed})
		mustDo(t, err)
	}
	mustDo(t, as.Lock(ctx, base, 10*page, LockOnFault))
	_, err := as.Remap(ctx, RemapOptions{Addr: base + 3*page, OldLength: 3 * page, NewLength: 3 * page, NewAddr: base + 7*page, Flags: RemapMayMove | RemapFixed | RemapDontUnmap})
	mustDo(t, err)
	for i := range addr.GVA(10) {
		a := as.tree.Snapshot().Find(base + i*page)
		if locked := a.Flags&lockFlags != 0; locked != (i >= 7) {
			t.Errorf("page %d: locked %v", i, locked)
		}
	}
}

// Who seals a file asks whether a mapping may store to it.
func TestObjectIsStorable(t *testing.T) {
	m := newMemory(t, 4<<20)
	o := newWritable(t, m, newSlowFile(2))
	as := newSpace(t, m)
	want := func(what string, want bool) {
		t.Helper()
		if got := o.IsStorable(); got != want {
			t.Errorf("%s: %v", what, got)
		}
	}
	want("not mapped", false)
	mapFile(t, as, o, 2, rw)
	want("privately", false)
	_, err := as.Map(ctx, MapOptions{Length: page, Prot: ProtRead, Flags: MapShared, Object: o, Access: ObjectReadOnly})
	mustDo(t, err)
	want("by a descriptor for reading", false)
	at, err := as.Map(ctx, MapOptions{Length: page, Prot: ProtRead, Flags: MapShared, Object: o})
	mustDo(t, err)
	want("to be read for now", true)
	child, err := as.Fork()
	mustDo(t, err)
	mustDo(t, as.Unmap(at, page))
	want("in a child", true)
	mustDo(t, child.Close())
	want("no more", false)
}
