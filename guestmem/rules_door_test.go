package guestmem

import (
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// R15: while a window is opening, no host load or store of guest memory passes.
func TestR15EveryAccessPassesTheDoor(t *testing.T) {
	m := newMemory(t, 32<<20)
	for name, access := range map[string]func(as *AddressSpace, gva addr.GVA){
		"read":             func(as *AddressSpace, gva addr.GVA) { as.ReadAt(ctx, make([]byte, 8), gva) },
		"write":            func(as *AddressSpace, gva addr.GVA) { as.WriteAt(ctx, make([]byte, 8), gva) },
		"load":             func(as *AddressSpace, gva addr.GVA) { as.Load32(ctx, gva) },
		"store":            func(as *AddressSpace, gva addr.GVA) { as.Store64(ctx, gva, 1) },
		"compare and swap": func(as *AddressSpace, gva addr.GVA) { as.CompareAndSwap32(ctx, gva, 0, 1) },
		"first touch":      func(as *AddressSpace, gva addr.GVA) { as.Fault(ctx, gva+page, Write) },
		"new table":        func(as *AddressSpace, gva addr.GVA) { as.Fault(ctx, gva+2<<20, Write) },
		"unmap":            func(as *AddressSpace, gva addr.GVA) { as.Unmap(gva, page) },
		"protect":          func(as *AddressSpace, gva addr.GVA) { as.Protect(gva, page, ProtRead) },
		"fork":             func(as *AddressSpace, gva addr.GVA) { as.Fork() },
		"pin":              func(as *AddressSpace, gva addr.GVA) { as.Pin(ctx, addr.Range{Start: gva, End: gva + 1}, Write) },
		"object page": func(as *AddressSpace, gva addr.GVA) {
			as.Fault(ctx, gva+4<<20, Read)
		},
	} {
		as := newSpace(t, m)
		gva := mapAt(t, as, 0x40000000, 4<<20, ProtRead|ProtWrite)
		mustWrite(t, as, gva, []byte("here"))
		mustMap(t, as, MapOptions{Addr: gva + 4<<20, Length: page, Prot: ProtRead, Flags: MapShared | MapAnonymous | MapFixed})
		mustDo(t, as.Fault(ctx, gva+4<<20-page, Read)) // the table before the object's
		var op <-chan struct{}
		mustDo(t, m.window(func() error {
			op = inBackground(func() { access(as, gva) })
			if !parked(op) {
				t.Errorf("%s passed the door while a window was opening", name)
			}
			return nil
		}))
		mustEnd(t, name, op)
	}
	for _, as := range m.sortedSpaces() {
		as.pins.mu.Lock()
		frames := as.pins.frames
		as.pins.mu.Unlock()
		for f := range frames {
			as.unpinPage(f)
		}
	}
}

// The window waits for accesses that had passed the door.
func TestR15WindowWaitsForAccessesThatHadPassed(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAnon(t, as, page)
	mustWrite(t, as, gva, []byte("x"))
	k := parkAt(t, as, gva, Write)
	w := inBackground(func() { m.window(func() error { return nil }) })
	if !parked(w) {
		t.Error("a window opened beside an access that had passed the door")
	}
	k.leave()
	mustEnd(t, "window", w)
}

// The slow halves of a fault come to the door later than the fault did.
func TestR15TableEditsPassTheDoor(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 4<<20, ProtRead|ProtWrite)
	as.pt.LockTables()
	fault := inBackground(func() { mustWrite(t, as, gva, []byte("x")) })
	if !parked(fault) {
		t.Fatal("the fault did not come to the tables mutex")
	}
	mustDo(t, m.window(func() error {
		as.pt.UnlockTables()
		if !parked(fault) {
			t.Error("a table was made while a window was opening")
		}
		if e := as.pt.Find(gva); e.Owned {
			t.Error("the path is there while a window is opening")
		}
		return nil
	}))
	mustEnd(t, "fault", fault)
}

// slowSource is an object's source that is held up by the test.
type slowSource struct{ asked, goOn chan struct{} }

func (s slowSource) ReadAt(p []byte, _ int64) (int, error) {
	close(s.asked)
	<-s.goOn
	return copy(p, "read late"), nil
}

func TestR15ObjectPagesPassTheDoor(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	src := slowSource{make(chan struct{}), make(chan struct{})}
	o, err := m.NewFileObject(src, 9, "slow")
	mustDo(t, err)
	defer o.Close()
	gva := mustMap(t, as, MapOptions{Length: page, Prot: ProtRead, Flags: MapPrivate, Object: o})
	mustWrite(t, as, mapAnon(t, as, page), []byte("another page: nothing waits for the source"))
	read := inBackground(func() { mustSee(t, as, gva, []byte("read late\x00")) })
	<-src.asked
	mustWrite(t, as, mapAnon(t, as, page), []byte("nor does a change"))
	mustDo(t, m.window(func() error {
		close(src.goOn)
		if !parked(read) {
			t.Error("a page was filled while a window was opening")
		}
		for f := m.arena.First() + 1; f < m.arena.First()+512; f++ {
			if string(m.arena.Bytes(f)[:9]) == "read late" {
				t.Error("the page's bytes were stored while a window was opening")
			}
		}
		return nil
	}))
	mustEnd(t, "read", read)
}
