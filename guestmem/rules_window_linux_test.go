package guestmem

import (
	"bytes"
	"context"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
)

// haltAt has the first who passes a point of package inject wait there.
func haltAt(t *testing.T, point string) *halt {
	h := newHalt(t)
	run := inject.Start(inject.Plan{Match: func(p *inject.Point) bool {
		if p.Name() == point {
			h.one()
		}
		return false
	}})
	armed, over := make(chan struct{}), make(chan struct{})
	ended := testutil.Go(func() {
		_ = run.During(func() error { close(armed); <-over; return nil })
	})
	<-armed
	t.Cleanup(func() { h.goOn(); close(over); <-ended })
	return h
}

// R15, interleaving 13: a window does not open while somebody who has claimed a page
// is about to disarm it.
//
//	handler                     second snapshot
//	claims, copies to the first
//	                            finds the page armed, and skips it
//	disarms
//	             a store is not trapped, and the second has its byte
//
// Nor while somebody has claimed one who leaves it armed: the window writes whole
// words of the books, and the claim would be gone while the page is read.
func TestR15WindowWaitsForClaims(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	for who, claims := range map[string]func(t *testing.T, r *Region, s *Snapshot) error{
		"the kernel's store": func(_ *testing.T, r *Region, _ *Snapshot) error { return slotStore(r, page, []byte{1}) },
		"a store of Go code": func(_ *testing.T, r *Region, _ *Snapshot) error { return r.mem.Store8(r.base+page, 1) },
		"a fault read late":  func(_ *testing.T, r *Region, _ *Snapshot) error { return r.WriteFault(context.Background(), 1) },
		"a discard":          func(_ *testing.T, r *Region, _ *Snapshot) error { return r.disarmRange(context.Background(), 1, 1) },
		"a sweep":            func(_ *testing.T, _ *Region, s *Snapshot) error { return s.Sweep(context.Background()) },
		"a read": func(t *testing.T, r *Region, s *Snapshot) error {
			_, err := s.ReadAt(make([]byte, page), r.base+page)
			return err
		},
	} {
		t.Run(who, func(t *testing.T) { testWindowBesideAClaim(t, claims) })
	}
}

func testWindowBesideAClaim(t *testing.T, claims func(t *testing.T, r *Region, s *Snapshot) error) {
	m, r, want := patterned(t, 8)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	mustDo(t, slotStore(r, 3*page, []byte{1})) // the next window has something to write down
	want3 := bytes.Clone(want)
	want3[3*page] = 1
	claimed := haltAt(t, "snapshot: pread") // where the page is read that is claimed
	claim, opened := make(chan struct{}), make(chan struct{})
	var s2 *Snapshot
	second := testutil.Go(func() {
		var err error
		s2, err = m.Snapshot(context.Background(), SnapshotOptions{
			Sweep: SweepOnDemand,
			Prepare: func() error { // the last moment before the window
				go func() {
					defer close(claim)
					if err := claims(t, r, s); err != nil {
						t.Error(err)
					}
				}()
				<-claimed.reached
				return nil
			},
			AtInstant: func() error {
				close(opened)
				return nil
			},
		})
		if err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		claimed.goOn()
		<-second
		<-claim
		if s2 != nil {
			mustDo(t, s2.Close())
		}
	})
	testutil.Proceeds(t, claimed.reached, "whoever claims a page")
	testutil.Parked(t, opened, "a window beside a claimed page")
	claimed.goOn()
	testutil.Proceeds(t, claim, "whoever has claimed a page")
	testutil.Proceeds(t, second, "the window")
	if t.Failed() {
		return
	}
	mustDo(t, slotStore(r, page, []byte{2}))
	mustShow(t, s, r.base, want, "the first")
	mustSweep(t, s2)
	if got := s2.Stats(); got.PagesLeft != 0 {
		t.Errorf("the second lacks %d pages", got.PagesLeft)
	}
	b := make([]byte, 1)
	if _, err := s2.ReadAt(b, r.base+page); err != nil || b[0] > 1 {
		t.Errorf("the second has %d, %v: a store of after its instant", b[0], err)
	}
	want3[page] = b[0] // the first store may be on either side
	mustShow(t, s2, r.base, want3, "the second")
}

// R15, interleaving 14: who has passed the door before the window opens has stored
// before the instant, and who comes later stores after it.
//
//	W1                          snapshot                    W2
//	passes the door
//	                            opens
//	                                                        copies p, stores
//	stores p and q
//	             the layer has neither store to p, and W1's to q
func TestR15WindowIsACut(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	const at = page - 8 // the last word of p
	for how, store := range map[string]func(m *Memory, gpa addr.GPA, b byte) error{
		"WriteAt": func(m *Memory, gpa addr.GPA, b byte) error {
			_, err := m.WriteAt(bytes.Repeat([]byte{b}, 16), gpa) // and of q
			return err
		},
		"Store64": func(m *Memory, gpa addr.GPA, b byte) error { return m.Store64(gpa, uint64(b)) },
		"CompareAndSwap64": func(m *Memory, gpa addr.GPA, b byte) error {
			for {
				old, err := m.Load64(gpa)
				if err != nil {
					return err
				}
				if swapped, err := m.CompareAndSwap64(gpa, old, uint64(b)); swapped || err != nil {
					return err
				}
			}
		},
	} {
		ok := t.Run(how, func(t *testing.T) {
			m, r, want := patterned(t, 8)
			mustWritePhys(t, m, r.base, want)
			passed, inWindow := newHalt(t), newHalt(t)
			storeHookGPA = passed.one
			t.Cleanup(func() { storeHookGPA = nil })
			goStore := func(b byte) <-chan struct{} {
				return testutil.Go(func() {
					if err := store(m, r.base+at, b); err != nil {
						t.Error(err)
					}
				})
			}
			w1 := goStore(1)
			<-passed.reached
			var s *Snapshot
			snapshot := testutil.Go(func() {
				var err error
				s, err = m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand, AtInstant: func() error {
					inWindow.one()
					return nil
				}})
				if err != nil {
					t.Error(err)
				}
			})
			var w2 <-chan struct{}
			t.Cleanup(func() {
				passed.goOn()
				inWindow.goOn()
				<-w1
				<-snapshot
				if w2 != nil {
					<-w2
				}
				if s != nil {
					mustDo(t, s.Close())
				}
			})
			mustShut(t, m)
			testutil.Parked(t, inWindow.reached, "a window beside a store that has passed the door")
			w2 = goStore(2)
			testutil.Parked(t, w2, "a store while the window is opening")
			passed.goOn()
			testutil.Proceeds(t, w1, "W1")
			testutil.Proceeds(t, inWindow.reached, "the window")
			testutil.Parked(t, w2, "a store at the instant")
			want = mustReadPhys(t, m, r.base, len(want)) // loads pass
			if want[at] != 1 {
				t.Errorf("at the instant there is a %d, want W1's 1", want[at])
			}
			inWindow.goOn()
			testutil.Proceeds(t, snapshot, "the snapshot")
			testutil.Proceeds(t, w2, "W2")
			mustShow(t, s, r.base, want, "the snapshot")
			if v, err := m.Load8(r.base + at); v != 2 || err != nil {
				t.Errorf("the guest has %d, %v, want W2's 2", v, err)
			}
		})
		if !ok {
			return
		}
	}
}

// mustShut waits until the door refuses stores.
func mustShut(t *testing.T, m *Memory) {
	t.Helper()
	for end := time.Now().Add(time.Minute); m.door.passes(); time.Sleep(100 * time.Microsecond) {
		if time.Now().After(end) {
			t.Fatal("the door stays open")
		}
	}
}

// R15, interleaving 7: a page that was found unarmed, and is armed before a store may
// go ahead, is asked about again.
//
//	store                       snapshot
//	not writable: asks; not armed
//	                            arms; the page is not writable to begin with
//	populates; writable
//	stores: no fault
func TestR15WindowOpensWhileAStoreAsks(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	first := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand}) // nothing is writable now
	mustDo(t, slotStore(r, page, []byte{1}))                             // and this page not armed
	want2 := bytes.Clone(want)
	want2[page] = 1
	var second *Snapshot
	readyHook = func() {
		readyHook = nil
		second = mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	}
	defer func() { readyHook = nil }()
	mustDo(t, m.Store8(r.base+page, 2))
	if second == nil {
		t.Fatal("the store did not ask")
	}
	mustShow(t, first, r.base, want, "the first")
	mustShow(t, second, r.base, want2, "the second")
}

// R15, interleaving 7: a window waits for who is about to make pages writable for Go
// code, having found them unarmed.
//
//	store                       snapshot
//	populates ...
//	                            takes away what is writable, arms
//	... writable
//	stores: no fault
func TestR15WindowWaitsForWhoPopulates(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	mustDo(t, slotStore(r, 3*page, []byte{1})) // never touched by Go code
	want[3*page] = 1
	populates := haltAt(t, "madvise: populate")
	store := testutil.Go(func() {
		if err := m.Store8(r.base+3*page, 2); err != nil {
			t.Error(err)
		}
	})
	testutil.Proceeds(t, populates.reached, "a store to a page that Go code has not touched")
	var s *Snapshot
	snapshot := testutil.Go(func() {
		var err error
		if s, err = m.Snapshot(context.Background(), SnapshotOptions{Sweep: SweepOnDemand}); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		populates.goOn()
		<-store
		<-snapshot
		if s != nil {
			mustDo(t, s.Close())
		}
	})
	testutil.Parked(t, snapshot, "a window beside who populates")
	populates.goOn()
	testutil.Proceeds(t, store, "the store")
	testutil.Proceeds(t, snapshot, "the snapshot")
	b := make([]byte, 1)
	if _, err := s.ReadAt(b, r.base+3*page); err != nil || b[0] != 1 && b[0] != 2 {
		t.Fatalf("the snapshot has %d, %v", b[0], err)
	}
	want[3*page] = b[0] // it may be on either side
	mustDo(t, m.Store8(r.base+3*page, 3))
	mustShow(t, s, r.base, want, "the snapshot")
}

// R15: stores of system calls are answered again as soon as everything is armed. They
// come after the instant, before the snapshot is anybody's: it has to be among those that
// get a copy by then.
func TestR15StoreWhileTheWindowIsOpen(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, want := patterned(t, 8)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand, AtInstant: func() error {
		return slotStore(r, page, []byte{1})
	}})
	mustShow(t, s, r.base, want, "the snapshot")
	mustSweep(t, s)
	mustShow(t, s, r.base, want, "the snapshot, swept")
}
