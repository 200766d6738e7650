package guestmem

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

const everyEvent = uffd.FeatureEventFork | uffd.FeatureEventRemap | uffd.FeatureEventRemove | uffd.FeatureEventUnmap

func newTestMonitor(t testing.TB, as *AddressSpace, f uffd.Features) *Monitor {
	t.Helper()
	m, err := as.NewMonitor(MonitorOptions{Features: f})
	mustDo(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

// nextEvent waits for one event.
func nextEvent(t testing.TB, m *Monitor) MonitorEvent {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	mustDo(t, m.Wait(ctx))
	var e [1]MonitorEvent
	if n, err := m.Read(e[:]); n != 1 || err != nil {
		t.Fatalf("%d events, %v", n, err)
	}
	return e[0]
}

// monitoredChanges are the changes that a monitor is told of, of 16 pages that are
// registered for all that there is, all there but the last two.
var monitoredChanges = []struct {
	name string
	kind uffd.EventKind
	do   func(ctx context.Context, as *AddressSpace) error
}{
	{"unmap", uffd.EventUnmap, func(ctx context.Context, as *AddressSpace) error {
		return as.UnmapContext(ctx, 0x100000, 4*page)
	}},
	{"map over", uffd.EventUnmap, func(ctx context.Context, as *AddressSpace) error {
		_, err := as.Map(ctx, MapOptions{Addr: 0x100000, Length: 4 * page, Prot: ProtRead | ProtWrite, Flags: MapPrivate | MapAnonymous | MapFixed})
		return err
	}},
	{"discard", uffd.EventRemove, func(ctx context.Context, as *AddressSpace) error {
		return as.Advise(ctx, 0x100000, 4*page, AdviceDontNeed)
	}},
	{"free", uffd.EventRemove, func(ctx context.Context, as *AddressSpace) error {
		return as.Advise(ctx, 0x100000, 4*page, AdviceFree)
	}},
	{"remap", uffd.EventRemap, func(ctx context.Context, as *AddressSpace) error {
		_, err := as.Remap(ctx, RemapOptions{Addr: 0x100000, OldLength: 4 * page, NewLength: 4 * page, Flags: RemapMayMove | RemapFixed | RemapDontUnmap, NewAddr: 0x900000})
		return err
	}},
	{"fork", uffd.EventFork, func(ctx context.Context, as *AddressSpace) error {
		child, err := as.ForkContext(ctx)
		if err == nil {
			err = child.Close()
		}
		return err
	}},
}

// monitoredSpace has 16 pages at 0x100000, registered, of which the last two are not
// there, and 4 at 0x800000 with which no monitor has to do.
func monitoredSpace(t testing.TB, features uffd.Features) (*AddressSpace, *Monitor) {
	t.Helper()
	as := newSpace(t, newMemory(t, 4<<20))
	mapAt(t, as, 0x100000, 16*page, ProtRead|ProtWrite)
	mapAt(t, as, 0x800000, 4*page, ProtRead|ProtWrite)
	m := newTestMonitor(t, as, features)
	_, err := m.Register(0x100000, 16*page, uffd.Missing|uffd.WP)
	mustDo(t, err)
	_, err = m.Copy(0x100000, bytes.Repeat([]byte{7}, 14*page), 0)
	mustDo(t, err)
	return as, m
}

// From the moment a change begins until its event was read, the monitor's installs
// fail with ErrAgain and do nothing; readers that have nothing to do with it go on.
func TestR9InstallsFailUntilTheEventWasRead(t *testing.T) {
	for _, c := range monitoredChanges {
		t.Run(c.name, func(t *testing.T) {
			as, m := monitoredSpace(t, everyEvent|uffd.FeaturePoison|uffd.FeatureMove)
			changed := testutil.Go(func() { mustDo(t, c.do(ctx, as)) })
			mustDo(t, m.Wait(ctx))
			const free = 0x10e000
			_, e1 := m.Copy(free, make([]byte, page), 0)
			_, e2 := m.Zero(free, page, 0)
			_, e3 := m.Poison(free, page, 0)
			_, e4 := m.Move(free, 0x108000, page, 0)
			_, e5 := m.Continue(free, page, 0)
			for i, err := range []error{e1, e2, e3, e4, e5, m.WriteProtect(0x100000, page, uffd.Armed), m.WriteProtect(0x100000, page, 0)} {
				if !errors.Is(err, ErrAgain) {
					t.Errorf("install %d beside the change: %v", i, err)
				}
			}
			var there [1]bool
			if _, err := as.Resident(free, page, there[:]); err != nil || there[0] {
				t.Errorf("a page was installed: %v", err)
			}
			// Others are not held up: a change among them.
			mustWrite(t, as, 0x800000, []byte{1})
			mustSee(t, as, 0x800000, []byte{1})
			mustSee(t, as, 0x108000, []byte{7})
			mustDo(t, as.Unmap(0x801000, page))
			testutil.Parked(t, changed, "the change, before its event was read")
			e := nextEvent(t, m)
			if e.Kind != c.kind {
				t.Errorf("event %v", e.Kind)
			}
			if e.Child != nil {
				defer e.Child.Close()
			}
			testutil.Proceeds(t, changed, "the change")
			if _, err := m.Zero(free, page, 0); err != nil {
				t.Errorf("install after the change: %v", err)
			}
		})
	}
}

// An install that found no change under way has ended before the monitor can read
// of one that came meanwhile:
//
//	install                          change
//	enter, changing is 0
//	                                 changing++, mark
//	                                 grace period …
//	installs, leaves
//	                                 … ends; the event can be read
func TestR9AnInstallUnderWayEndsBeforeTheEvent(t *testing.T) {
	for _, c := range monitoredChanges {
		t.Run(c.name, func(t *testing.T) {
			as, m := monitoredSpace(t, everyEvent)
			var changed <-chan struct{}
			fillHook = func() {
				fillHook = nil
				changed = testutil.Go(func() { mustDo(t, c.do(ctx, as)) })
				for m.changing.Load() == 0 {
					time.Sleep(time.Millisecond)
				}
				time.Sleep(20 * time.Millisecond)
				if m.Readable() {
					t.Error("the event can be read while an install is under way that saw no change")
				}
			}
			defer func() { fillHook = nil }()
			// It may be told that there is a change after all, at its next section.
			if _, err := m.Zero(0x10e000, page, 0); err != nil && !errors.Is(err, ErrAgain) {
				t.Error(err)
			}
			if e := nextEvent(t, m); e.Child != nil {
				defer e.Child.Close()
			}
			testutil.Proceeds(t, changed, "the change")
		})
	}
}

// A fault that finds nothing, and enters the monitor's list only after the page came,
// looks again:
//
//	fault                     monitor
//	nothing there
//	                          installs, wakes nobody
//	enters the list
//	looks again, goes on
func TestR9NobodySleepsBesideHisPage(t *testing.T) {
	as, m := monitoredSpace(t, 0)
	parkHook = func() {
		parkHook = nil
		_, err := m.Copy(0x10e000, bytes.Repeat([]byte{9}, page), 0)
		mustDo(t, err)
	}
	defer func() { parkHook = nil }()
	done := testutil.Go(func() { mustSee(t, as, 0x10e000, []byte{9}) })
	testutil.Proceeds(t, done, "the fault")
	if m.Readable() {
		t.Error("the fault is still told of")
	}
}

// A change whose event nobody reads, and a fault that nobody answers, end with their
// contexts, with Kill, and with the monitor; and installs go on then.
func TestR9WhoWaitsCanBeKilled(t *testing.T) {
	waits := append(monitoredChanges[:len(monitoredChanges):len(monitoredChanges)], monitoredChanges[0])
	waits[len(waits)-1].name = "fault"
	waits[len(waits)-1].do = func(ctx context.Context, as *AddressSpace) error { return as.Fault(ctx, 0x10f000, Write) }
	for _, c := range waits {
		for how, want := range map[string]error{"context": context.Canceled, "kill": ErrKilled, "close": nil} {
			t.Run(c.name+"/"+how, func(t *testing.T) {
				as, m := monitoredSpace(t, everyEvent)
				ctx, cancel := context.WithCancel(ctx)
				defer cancel()
				var err error
				done := testutil.Go(func() { err = c.do(ctx, as) })
				mustDo(t, m.Wait(ctx))
				switch how {
				case "context":
					cancel()
				case "kill":
					as.Kill()
				case "close":
					mustDo(t, m.Close())
				}
				testutil.Proceeds(t, done, "who waits")
				if !errors.Is(err, want) {
					t.Errorf("it ended with %v", err)
				}
				if how != "close" {
					if m.Readable() {
						t.Error("its event can still be read")
					}
					if _, err := m.Zero(0x10e000, page, 0); err != nil {
						t.Errorf("installs after it: %v", err)
					}
				}
				if n := as.mem.Stats().MonitorWaiting; n != 0 {
					t.Errorf("%d wait", n)
				}
			})
		}
	}
}

// When WriteProtect has returned, nobody is storing to a page any more who was not
// told of: not even a copier that had walked to it before.
func TestR1WhoArmsWaitsForWriters(t *testing.T) {
	as, m := monitoredSpace(t, 0)
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{}, 2)
	for i := range 2 {
		go func() {
			for v := uint64(0); as.Store64(ctx, offset(0x100000+uint64(i)*page), v) == nil; v++ {
			}
			done <- struct{}{}
		}()
	}
	for range 300 {
		mustDo(t, m.WriteProtect(0x100000, 2*page, uffd.Armed))
		for i := range 2 {
			at := offset(0x100000 + uint64(i)*page)
			was, _ := as.Load64(ctx, at)
			for range 200 {
				if now, err := as.Load64(ctx, at); err != nil || now != was {
					t.Fatalf("%d was stored after %d to an armed page, %v", now, was, err)
				}
			}
		}
		mustDo(t, m.WriteProtect(0x100000, 2*page, 0))
	}
	cancel()
	mustDo(t, m.WriteProtect(0x100000, 2*page, uffd.Armed)) // who waits finds out
	<-done
	<-done
}

// What fork hands on to the child's monitor, and what without the event.
func TestMonitorOfAChild(t *testing.T) {
	as, m := monitoredSpace(t, everyEvent|uffd.FeatureThreadID)
	mustDo(t, m.WriteProtect(0x100000, page, uffd.Armed))
	var child *AddressSpace
	done := testutil.Go(func() { child = mustFork(t, as) })
	e := nextEvent(t, m)
	testutil.Proceeds(t, done, "the fork")
	c := e.Child
	if c == nil || c.AddressSpace() != child {
		t.Fatal("no monitor of the child")
	}
	for _, gva := range []uint64{0x100000, 0x10e000} { // armed, and missing
		wrote := testutil.Go(func() {
			_, err := child.WriteAt(WithThreadID(ctx, 42), []byte{5}, offset(gva))
			mustDo(t, err)
		})
		e := nextEvent(t, c)
		if e.Kind != uffd.EventFault || e.Addr != offset(gva) || e.ThreadID != 42 || e.Flags&uffd.FaultWrite == 0 {
			t.Errorf("event %+v", e)
		}
		if e.Flags&uffd.FaultWP != 0 {
			mustDo(t, c.WriteProtect(offset(gva), page, 0))
		} else {
			_, err := c.Zero(offset(gva), page, 0)
			mustDo(t, err)
		}
		testutil.Proceeds(t, wrote, "the write")
	}
	mustSee(t, as, 0x100000, []byte{7})
	mustSee(t, child, 0x100000, []byte{5})
	mustDo(t, child.Close())
	if _, err := c.Zero(0x10f000, page, 0); !errors.Is(err, ErrGone) {
		t.Errorf("install in a space that is gone: %v", err)
	}
	mustDo(t, c.Close())

	as, m = monitoredSpace(t, 0)
	mustDo(t, m.WriteProtect(0x100000, page, uffd.Armed))
	child = mustFork(t, as)
	mustWrite(t, child, 0x100000, []byte{5})
	mustSee(t, child, 0x10e000, []byte{0})
	mustSee(t, as, 0x100000, []byte{7})
	if m.Readable() {
		t.Error("the parent's monitor was told of a child's faults")
	}
}

// No access of a page that is there costs an allocation where there is a monitor.
func TestMonitorCostsPresentPagesNothing(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checks allocate: build without the invariants and race tags")
	}
	as, _ := monitoredSpace(t, 0)
	h := as.mem.NewHandle()
	defer h.Close()
	a, p := as.With(h), make([]byte, 8)
	if n := testing.AllocsPerRun(100, func() { _, _ = a.ReadAt(ctx, p, 0x100000) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
