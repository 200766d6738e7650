package guestmem

import (
	"errors"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// deviceStores stores to a page of a pin as a device does: without a fault.
func deviceStores(p *Pin, i int, what string) { copy(p.as.mem.arena.Bytes(p.Frames()[i]), what) }

// mustBeWritten syncs all of an object and compares the start of a page of the sink.
func mustBeWritten(tb testing.TB, o *Object, f *slowFile, index int, want string) {
	tb.Helper()
	mustSync(tb, o)
	if got := string(f.bytes()[index*int(page):][:len(want)]); got != want {
		tb.Errorf("page %d of the sink has %q, want %q", index, got, want)
	}
}

// mustWriteNothing syncs all of an object of which nothing has changed.
func mustWriteNothing(tb testing.TB, o *Object, f *slowFile, what string) {
	tb.Helper()
	f.took()
	mustSync(tb, o)
	if w := f.took(); len(w) != 0 {
		tb.Errorf("%s: wrote %v", what, w)
	}
}

// The mark that the fault of a pin sets may be gone by the time the page is held.
//
//	pin                          sync
//	faults, marks the page
//	                             takes the mark off, copies; nobody holds the page
//	holds the frame
//	...the device stores
//	                             the next one finds no mark
func TestR7PinBesideSyncIsMarked(t *testing.T) {
	m, f, o, as, at := newSharedFile(t, 2)
	f.gate.Lock() // its fault waits for the source
	var pin *Pin
	pinned := testutil.Go(func() {
		var err error
		if pin, err = as.Pin(ctx, addr.Range{Start: at, End: at + page}, Write); err != nil {
			t.Error(err)
		}
	})
	testutil.Proceeds(t, f.came, "the read")
	as.pins.mu.Lock() // where it goes on
	f.gate.Unlock()
	for p := o.slot(0); p.Load()&changed == 0; {
		time.Sleep(time.Millisecond) // until it has faulted
	}
	mustSync(t, o)
	as.pins.mu.Unlock()
	testutil.Proceeds(t, pinned, "Pin")
	mustCheck(t, m)
	for _, s := range []string{"first", "again"} {
		deviceStores(pin, 0, s)
		mustBeWritten(t, o, f, 0, s)
	}
	deviceStores(pin, 0, "at last")
	mustDo(t, pin.Release())
	mustBeWritten(t, o, f, 0, "at last")
	mustWriteNothing(t, o, f, "nobody holds it any more")
}

// Nor may the last stores before a release be lost.
//
//	device                       sync
//	                             takes the mark off, copies
//	stores
//	lets go
//	                             nobody holds the page any more
func TestR7ReleaseBesideSyncIsMarked(t *testing.T) {
	_, f, o, as, at := newSharedFile(t, 1)
	pin := mustPin(t, as, at, 1, Write)
	deviceStores(pin, 0, "before")
	copiedHook = func() {
		copiedHook = nil
		deviceStores(pin, 0, "after!")
		mustDo(t, pin.Release())
	}
	defer func() { copiedHook = nil }()
	mustBeWritten(t, o, f, 0, "before")
	mustBeWritten(t, o, f, 0, "after!")
}

// Two address spaces pin one page: it is held until the last of them lets go, and a
// pin that only reads holds nothing.
func TestR7PinsOfOnePageBySeveralSpaces(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(1)
	o := newWritable(t, m, f)
	var pins []*Pin
	for _, access := range []Access{Read, Write, Write, Read} {
		as := newSpace(t, m)
		at := mapShared(t, as, o, 1)
		pin := mustPin(t, as, at, 1, access)
		pins = append(pins, pin)
		mustDo(t, as.Unmap(at, page))
	}
	mustDo(t, pins[0].Release())
	mustDo(t, pins[1].Release())
	for _, s := range []string{"one", "two"} {
		deviceStores(pins[2], 0, s)
		mustBeWritten(t, o, f, 0, s)
	}
	mustDo(t, pins[2].Release())
	mustBeWritten(t, o, f, 0, "two")
	mustWriteNothing(t, o, f, "held by a pin that only reads")
	mustDo(t, pins[3].Release())
}

// What a device stores after the last area has gone, and the object was closed, is
// written back all the same: the pin keeps the object.
func TestR7PinKeepsItsObject(t *testing.T) {
	for _, closed := range []bool{false, true} {
		m := newMemory(t, 16<<20)
		f := newSlowFile(2)
		released := false
		o, err := m.NewObject(ObjectOptions{Source: f, Sink: f, Size: 2 * int64(page), Name: "file",
			Lost: func(err error) { t.Error(err) }, Released: func() { released = true }})
		mustDo(t, err)
		as := newSpace(t, m)
		at := mapShared(t, as, o, 2)
		pin := mustPin(t, as, at, 2, Write)
		if closed {
			mustDo(t, as.Close())
		} else {
			mustDo(t, as.Unmap(at, 2*page))
		}
		o.Close()
		mustCheck(t, m)
		if released {
			t.Fatal("the object ended under a device")
		}
		deviceStores(pin, 1, "device")
		mustErrno(t, "close memory", m.Close(), 16)
		mustDo(t, pin.Release())
		if got := string(f.bytes()[page:][:6]); got != "device" || !released {
			t.Errorf("the sink has %q; released: %v", got, released)
		}
	}
}

// A page that is taken out of its object stays with the device, and what that stores
// is in no file, nor in the page that comes in its place.
func TestR7PinOfAPageThatIsTakenOut(t *testing.T) {
	m, f, o, as, at := newSharedFile(t, 3)
	pin := mustPin(t, as, at, 3, Write)
	mustDo(t, as.Advise(ctx, at+page, page, AdviceRemove))
	mustDo(t, o.Truncate(2*int64(page)))
	mustDo(t, o.Truncate(3*int64(page)))
	mustRead(t, as, at, 3*int(page))
	for i := range 3 {
		deviceStores(pin, i, "device")
	}
	mustCheck(t, m)
	mustBeWritten(t, o, f, 0, "device")
	mustDo(t, pin.Release())
	mustCheck(t, m)
	none := string(make([]byte, 6))
	for i, want := range []string{"device", none, none} {
		mustBeWritten(t, o, f, i, want)
		mustSee(t, as, at+addr.GVA(i)*page, []byte(want))
	}
}

// A pin beside a page that is being taken out waits for what comes in its place, and
// does not hold what nobody else has any more.
//
//	pin                          AdviceRemove
//	has faulted the page in
//	                             marks it in the object
//	holds the frame?
//	                             sweeps, drops
func TestR7PinBesideRemove(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(1)
	o := newWritable(t, m, f)
	as, other := newSpace(t, m), newSpace(t, m)
	at, there := mapShared(t, as, o, 1), mapShared(t, other, o, 1)
	mustWrite(t, as, at, []byte("old"))
	var pin *Pin
	var pinned <-chan struct{}
	punchHook = func(*AddressSpace) {
		punchHook = nil
		pinned = testutil.Go(func() {
			var err error
			if pin, err = as.Pin(ctx, addr.Range{Start: at, End: at + page}, Write); err != nil {
				t.Error(err)
			}
		})
		testutil.Parked(t, pinned, "Pin of a page that is being taken out")
	}
	defer func() { punchHook = nil }()
	mustDo(t, other.Advise(ctx, there, page, AdviceRemove))
	testutil.Proceeds(t, pinned, "Pin")
	deviceStores(pin, 0, "new")
	mustSee(t, other, there, []byte("new"))
	mustBeWritten(t, o, f, 0, "new")
	mustDo(t, pin.Release())
}

// A failed pin holds nothing.
func TestR7FailedPinHoldsNothing(t *testing.T) {
	m := newMemory(t, 16<<20)
	f := newSlowFile(2)
	o := newWritable(t, m, f)
	as := newSpace(t, m)
	at := mapShared(t, as, o, 4)
	if _, err := as.Pin(ctx, addr.Range{Start: at, End: at + 3*page}, Write); !errors.Is(err, ErrBus) {
		t.Errorf("past the end: %v", err)
	}
	if n := len(o.held); n != 0 || len(as.pins.frames) != 0 || o.refs.Load() != 2 {
		t.Errorf("%d pages held, %d frames pinned, %d references", n, len(as.pins.frames), o.refs.Load())
	}
	mustSync(t, o)
	mustWriteNothing(t, o, f, "after a pin that failed")
}
