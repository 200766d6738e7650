package guestmem

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/pagetable"
	"github.com/guestmm/guestmm/uffd"
)

// A page that a monitor brings to a shared object beside a truncation does not stay
// beyond its end, to be found there when the object grows again:
//
//	Copy                          Truncate
//	asks how long the object is
//	                              sets the length, marks the pages that there are
//	puts its page in
//	                              sweeps each space
func TestTruncationBesideAMonitorsInstall(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	o, err := m.NewObject(ObjectOptions{Size: 4 * page})
	mustDo(t, err)
	defer o.Close()
	base := mustMap(t, as, MapOptions{Addr: 0x100000, Length: 4 * page, Prot: rw, Flags: MapShared | MapFixed, Object: o})
	mon := newTestMonitor(t, as, 0)
	_, err = mon.Register(base, 4*page, uffd.Missing)
	mustDo(t, err)
	mustWrite(t, newTestWriter(t, m, o), 0x100000, []byte{1}) // so that there is something to sweep
	punchHook = func(*AddressSpace) {
		// As an install that has asked before: its section has not ended.
		punchHook = nil
		size := o.size.Swap(4 * page)
		_, err := mon.Copy(base+3*page, bytes.Repeat([]byte{9}, page), 0)
		mustDo(t, err)
		o.size.Store(size)
	}
	defer func() { punchHook = nil }()
	mustDo(t, o.Truncate(page))
	if punchHook != nil {
		t.Fatal("no space was swept")
	}
	if _, there := o.page(3); there {
		t.Error("a page stays beyond the end")
	}
	if _, err := as.ReadAt(WithoutMonitors(ctx), make([]byte, 1), base+3*page); !errors.Is(err, ErrBus) {
		t.Errorf("a read beyond the end: %v", err)
	}
	mustDo(t, o.Truncate(4*page))
	b := []byte{1}
	if _, err := o.ReadAt(ctx, b, 3*page); err != nil || b[0] != 0 {
		t.Errorf("what the object has gained reads as %d, %v", b[0], err)
	}
}

// newTestWriter returns a space that maps the object, and that nobody watches.
func newTestWriter(t *testing.T, m *Memory, o *Object) *AddressSpace {
	as := newSpace(t, m)
	mustMap(t, as, MapOptions{Addr: 0x100000, Length: page, Prot: rw, Flags: MapShared | MapFixed, Object: o})
	return as
}

// A fork that fails leaves nothing of the children of monitors either, and no
// monitor waiting for an event that does not come.
func TestR13ForkFailsBesideAMonitor(t *testing.T) {
	for n := 0; ; n++ {
		m := newMemory(t, 4<<20)
		as := newSpace(t, m)
		mapAt(t, as, 0x100000, 8*page, rw)
		mustWrite(t, as, 0x100000, bytes.Repeat([]byte{7}, 8*page))
		mustDo(t, as.Advise(ctx, 0x102000, page, AdviceWipeOnFork))
		mon := newTestMonitor(t, as, everyEvent)
		_, err := mon.Register(0x100000, 2*page, uffd.Missing|uffd.WP)
		mustDo(t, err)
		run := inject.Start(inject.Plan{Match: inject.Only("pool:"), From: n, Until: n + 9})
		forked := make(chan error, 1)
		var child *AddressSpace
		go func() {
			forked <- run.During(func() (err error) {
				child, err = as.Fork()
				return err
			})
		}()
		if run.Failures() == 0 {
			// It may be waiting for its event to be read.
			for len(forked) == 0 && !mon.Readable() {
				time.Sleep(time.Millisecond)
			}
			if mon.Readable() {
				e := nextEvent(t, mon)
				defer e.Child.Close()
			}
		}
		err = <-forked
		if run.Failures() == 0 {
			mustDo(t, err)
			mustDo(t, child.Close())
			if n < 2 {
				t.Errorf("only %d allocations could fail", n)
			}
			return
		}
		if !errors.Is(err, ErrNoMemory) {
			t.Fatalf("with %v: %v", run, err)
		}
		if mon.Readable() {
			t.Errorf("with %v: there is an event", run)
		}
		if _, err := mon.Zero(0x100000, page, 0); !errors.Is(err, ErrExists) {
			t.Errorf("with %v: an install after it: %v", run, err)
		}
		mustWrite(t, as, 0x102000, []byte{1})
		mustCheck(t, m)
	}
}

// What a parent's monitor has armed means nothing to another's, whatever that is
// registered for.
func TestMarksOfAnotherMonitorAreForgotten(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	mapAt(t, as, 0x100000, 4*page, rw)
	mon := newTestMonitor(t, as, uffd.FeatureWPUnpopulated)
	_, err := mon.Register(0x100000, 4*page, uffd.Missing|uffd.WP)
	mustDo(t, err)
	mustDo(t, mon.WriteProtect(0x100000, 4*page, uffd.Armed))
	child := mustFork(t, as)
	own := newTestMonitor(t, child, uffd.FeaturePoison)
	_, err = own.Register(0x100000, 4*page, uffd.Missing)
	mustDo(t, err)
	if _, err := own.Zero(0x100000, page, 0); err != nil {
		t.Errorf("zeroes: %v", err)
	}
	if _, err := own.Poison(0x101000, page, 0); err != nil {
		t.Errorf("poison: %v", err)
	}
	if e := child.pt.Find(0x102000); e.Marked() {
		t.Error("the mark is still there")
	}
	mustWrite(t, child, 0x100000, []byte{1})
	if child.leafEntry(0x100000).Has(pagetable.Armed) {
		t.Error("a page is armed")
	}
}

// Who is registering while the monitor is closed leaves nothing registered.
func TestRegisterBesideClose(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	mapAt(t, as, 0x100000, 4*page, rw)
	for range 100 {
		mon := newTestMonitor(t, as, 0)
		as.mon.life.Lock() // both have begun
		registering := testutil.Go(func() {
			if _, err := mon.Register(0x100000, 4*page, uffd.Missing); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		time.Sleep(100 * time.Microsecond)
		closing := testutil.Go(func() { mustDo(t, mon.Close()) })
		for !mon.closed.Load() {
			time.Sleep(10 * time.Microsecond)
		}
		as.mon.life.Unlock()
		<-registering
		<-closing
		if a := as.tree.Snapshot().Find(0x100000); a.Watch != nil {
			t.Fatalf("%v is registered with a monitor that is closed", a)
		}
	}
}

// Nor do such marks keep pages from being made a block of.
func TestMarksOfAnotherMonitorDoNotKeepFromCollapse(t *testing.T) {
	_, as := hugeMemory(t, 16<<20, HugeLeavesAdvised)
	mapAt(t, as, hugeAddr, hugeLen, rw)
	mustWrite(t, as, hugeAddr, []byte("here"))
	mon := newTestMonitor(t, as, uffd.FeatureWPUnpopulated)
	_, err := mon.Register(hugeAddr, hugeLen, uffd.WP)
	mustDo(t, err)
	mustDo(t, mon.WriteProtect(hugeAddr, hugeLen, uffd.Armed))
	if err := as.Advise(ctx, hugeAddr, hugeLen, AdviceCollapse); !errors.Is(err, ErrInvalid) {
		t.Errorf("of what is registered: %v", err)
	}
	child := mustFork(t, as)
	mustDo(t, child.Advise(ctx, hugeAddr, hugeLen, AdviceCollapse))
	if e := child.leafEntry(hugeAddr); !e.Has(pagetable.Huge | pagetable.Writable) {
		t.Errorf("leaf %#x", uint64(e))
	}
	mustSee(t, child, hugeAddr, []byte("here"))
	mustWrite(t, child, hugeAddr+page, []byte("x"))
}

// A pin for reading is no write: nobody is told of one, and the page stays armed.
func TestPinForReadingOfAnArmedPage(t *testing.T) {
	m := newMemory(t, 4<<20)
	as := newSpace(t, m)
	mapAt(t, as, 0x100000, 2*page, rw)
	mustWrite(t, as, 0x100000, bytes.Repeat([]byte{7}, 2*page))
	child := mustFork(t, as)
	for _, s := range []*AddressSpace{as, child} { // shared, and then not
		mon := newTestMonitor(t, s, uffd.FeatureSigbus)
		_, err := mon.Register(0x100000, 2*page, uffd.WP)
		mustDo(t, err)
		mustDo(t, mon.WriteProtect(0x100000, 2*page, uffd.Armed))
		pin, err := s.Pin(ctx, addr.Range{Start: 0x100000, End: 0x101000}, Read)
		if err != nil {
			t.Fatal(err)
		}
		if !s.leafEntry(0x100000).Has(pagetable.Armed) {
			t.Error("the page is armed no more")
		}
		if _, err := s.Pin(ctx, addr.Range{Start: 0x100000, End: 0x101000}, Write); !errors.Is(err, ErrBus) {
			t.Errorf("a pin for writing: %v", err)
		}
		if _, err := s.WriteAt(ctx, []byte{1}, 0x100000); !errors.Is(err, ErrBus) {
			t.Errorf("a write: %v", err)
		}
		mustDo(t, pin.Release())
		mustCheck(t, m)
	}
}

// Poison is broken memory to who touches it, and no guard.
func TestPoisonIsABusError(t *testing.T) {
	as, mon := monitoredSpace(t, uffd.FeaturePoison)
	_, err := mon.Poison(0x10e000, page, 0)
	mustDo(t, err)
	for _, err := range []error{as.Fault(ctx, 0x10e000, Read), as.Fault(ctx, 0x10e000, Write)} {
		if !errors.Is(err, ErrPoison) {
			t.Error(err)
		}
	}
	if err := as.Advise(ctx, 0x10e000, page, AdvicePopulateRead); !errors.Is(err, errBadMemory) {
		t.Errorf("populated ahead: %v", err)
	}
}
