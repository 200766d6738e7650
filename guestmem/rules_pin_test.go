package guestmem

import (
	"errors"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// A fork that fails for want of frames leaves the pinner its frame.
func TestR7FailedForkLeavesThePin(t *testing.T) {
	m, err := NewMemory(MemoryOptions{Size: 16 * page, Grow: page})
	mustDo(t, err)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 8*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("pinned"))
	pin := mustPin(t, as, gva, 1, Write)
	var hog []addr.PFN
	for free := uint64(0); free < 6; free++ {
		m.FreeSupervisor(hog)
		s := m.Stats()
		hog, err = m.AllocSupervisor(int(s.FramesFree - free))
		mustDo(t, err)
		if _, err := as.Fork(); err == nil {
			t.Fatalf("fork with %d free frames passed: two roots, three tables and a page are needed", free)
		} else if !errors.Is(err, ErrNoMemory) {
			t.Fatal(err)
		}
		mustCheck(t, m)
		mustWrite(t, as, gva, []byte{'0' + byte(free)})
		if got := m.arena.Bytes(pin.Frames()[0])[0]; got != '0'+byte(free) {
			t.Fatalf("with %d free frames: the device reads %q, the guest wrote %q", free, got, '0'+byte(free))
		}
	}
	m.FreeSupervisor(hog)
	pin.Release()
	mustDo(t, as.Close())
	mustCheck(t, m)
	mustDo(t, m.Close())
}

// Interleaving 9: pin against fork.
//
//	pin                              fork
//	walks to F, raises its pin
//	                                 shares the tables, waits for sections
//	reads the entry again: still F
//	leaves
//	                                 reads the pins: the child gets a copy of F
func TestR7ForkSeesPinsTakenBesideIt(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("pinned"))
	var child *AddressSpace
	// The fork has looked at the pins once, to reserve frames, and comes to the
	// change lock before there is a pin.
	tok := as.pt.LockChange()
	fork := inBackground(func() {
		var err error
		if child, err = as.Fork(); err != nil {
			t.Error(err)
		}
	})
	if !parked(fork) {
		t.Fatal("fork did not wait for the change lock")
	}
	root := as.Root()
	pinHook = func() {
		pinHook = nil
		as.pt.UnlockChange(tok)
		if !parked(fork) {
			t.Error("fork returned beside a pin that is being taken")
		}
		if as.Root() == root {
			t.Error("fork has not shared the tables: the race is not staged")
		}
	}
	defer func() { pinHook = nil }()
	pin := mustPin(t, as, gva, 1, Write)
	mustEnd(t, "fork", fork)

	device := m.arena.Bytes(pin.Frames()[0])
	copy(device, "DEVICE")
	mustSee(t, as, gva, []byte("DEVICE"))
	mustSee(t, child, gva, []byte("pinned"))
	// The pinner keeps its frame: a write by the CPU goes where the device looks.
	mustWrite(t, as, gva, []byte("driver"))
	if got := string(device[:6]); got != "driver" {
		t.Errorf("the device reads %q: the parent's write went elsewhere", got)
	}
	mustCheck(t, m)
	pin.Release()
	pin.Release()
	mustCheck(t, m)
}

// A pin outlives the area: the frame is free only when both have gone.
func TestR7PinOutlivesUnmap(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("dma"))
	p1 := mustPin(t, as, gva, 1, Read)
	p2 := mustPin(t, as, gva, 2, Write)
	mustDo(t, as.Unmap(gva, 2*page))
	mustCheck(t, m)
	if got := string(m.arena.Bytes(p1.Frames()[0])[:3]); got != "dma" {
		t.Errorf("the pinned frame reads %q after the unmap", got)
	}
	p2.Release()
	mustCheck(t, m)
	if got := string(m.arena.Bytes(p1.Frames()[0])[:3]); got != "dma" {
		t.Errorf("the frame reads %q while one of two pins is left", got)
	}
	p1.Release()
	mustCheck(t, m)
}

// A pin for reading unshares too, or the device would read what the guest no
// longer writes.
func TestR7PinUnsharesForReading(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, 2*page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("one"))
	mustWrite(t, as, gva+page, []byte("ro"))
	mustDo(t, as.Protect(gva+page, page, ProtRead))
	child := mustFork(t, as)
	pin := mustPin(t, child, gva, 2, Read)
	defer pin.Release()
	mustWrite(t, child, gva, []byte("two"))
	if got := string(m.arena.Bytes(pin.Frames()[0])[:3]); got != "two" {
		t.Errorf("the device reads %q, the guest wrote %q", got, "two")
	}
	mustSee(t, as, gva, []byte("one"))
	for i, f := range pin.Frames() {
		if f == as.leafEntry(gva+addr.GVA(i)*page).Frame() {
			t.Errorf("page %d of the pin is still shared with the parent", i)
		}
	}
}

// The entry is read again after the pin is raised:
//
//	pin                              unmap
//	walks to F, raises its pin
//	                                 marks, sweeps: F is out of the table
//	reads the entry again: gone
//	undoes the pin, leaves
//	                                 returns
//
// Else it would hand out a frame that the address space no longer leads to.
func TestR7PinReadsTheEntryAgain(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, ProtRead|ProtWrite)
	mustWrite(t, as, gva, []byte("going"))
	var unmap <-chan struct{}
	pinHook = func() {
		pinHook = nil
		unmap = inBackground(func() {
			if err := as.Unmap(gva, page); err != nil {
				t.Error(err)
			}
		})
		if !parked(unmap) {
			t.Error("unmap did not wait for the section that pins")
		}
	}
	defer func() { pinHook = nil }()
	pin, err := as.Pin(ctx, addr.Range{Start: gva, End: gva + page}, Write)
	if err == nil {
		pin.Release()
	}
	if !errors.Is(err, ErrNotMapped) {
		t.Errorf("Pin of a page that was unmapped meanwhile: %v", err)
	}
	mustEnd(t, "unmap", unmap)
	mustCheck(t, m)
	if n := len(as.pins.frames); n != 0 {
		t.Errorf("%d pins are left", n)
	}
}
