package guestmem

import "testing"

// An area becomes read-only while a page of it is pinned for reading:
//
//	pin                              protect
//	sees that the area is writable
//	                                 takes writing away, returns
//	asks for a page to write to: denied
//	unshares the page for reading
//
// It may be read all the while: the pin is not refused.
func TestR7PinForReadingBesideProtect(t *testing.T) {
	m := newMemory(t, 16<<20)
	as := newSpace(t, m)
	gva := mapAt(t, as, 0x40000000, page, rw)
	mustWrite(t, as, gva, []byte("read"))
	child := mustFork(t, as)
	unshareHook = func() {
		unshareHook = nil
		mustDo(t, as.Protect(gva, page, ProtRead))
	}
	defer func() { unshareHook = nil }()
	pin := mustPin(t, as, gva, 1, Read)
	defer pin.Release()
	if unshareHook != nil {
		t.Error("nothing was in between")
	}
	if got := string(m.arena.Bytes(pin.Frames()[0])[:4]); got != "read" {
		t.Errorf("the device reads %q", got)
	}
	if pin.Frames()[0] == child.leafEntry(gva).Frame() {
		t.Error("what is pinned is shared with the child")
	}
	mustCheck(t, m)
}
