package guestmem

import (
	"context"
	"errors"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// fakeServer brings pages of a region with one byte each, and is told of stores.
type fakeServer struct {
	r       *Region
	fetched atomic.Int64
	stores  atomic.Int64
	fail    error
}

func (s *fakeServer) Fetch(_ context.Context, r *Region, first, n uint64) error {
	if s.fail != nil {
		return s.fail
	}
	for page := first; page < first+n; page++ {
		if r.States().BeginFill(page) {
			// As a handler does, by a system call; here through a mapping that
			// is not registered.
			for i := range hostPages(r.host.slot, page, 1) {
				hostPages(r.host.slot, page, 1)[i] = byte(page) + 1
			}
			if !r.States().EndFill(page, 0) {
				return errRefused
			}
			s.fetched.Add(1)
			continue
		}
		for st, _ := r.States().State(page); st == PageFilling; st, _ = r.States().State(page) {
			runtime.Gosched()
		}
	}
	return nil
}

func (s *fakeServer) BeforeStore(_ context.Context, r *Region, first, n uint64) error {
	for page := first; page < first+n; page++ {
		if r.States().Claim(page) {
			s.stores.Add(1)
			r.States().Disarm(page)
		}
	}
	return nil
}

// R15: during a lazy restore whoever reads fetches first; a page is fetched once
// however many ask, and what cannot be fetched is an error and not zeroes.
func TestR15LazyRegionFetches(t *testing.T) {
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		t.Run(backing.String(), func(t *testing.T) {
			m := newPhys(t)
			const size = 64 * page
			r := mustAdd(t, m, RegionOptions{Size: size, Backing: backing})
			s := &fakeServer{r: r}
			mustDo(t, r.SetFaultServer(s, PageAbsent))
			if _, err := m.Seal(); !errors.Is(err, ErrBusy) {
				t.Errorf("Seal of a lazy region: %v", err)
			}
			var wg sync.WaitGroup
			for k := range 4 {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(uint64(k), 1))
					for range 200 {
						at := rng.Uint64N(size - 16)
						p := make([]byte, 1+rng.IntN(16))
						if _, err := m.ReadAt(p, addr.GPA(at)); err != nil {
							t.Error(err)
							return
						}
						for i, b := range p {
							if b != byte((at+uint64(i))/page)+1 {
								t.Errorf("byte %#x is %d", at+uint64(i), b)
								return
							}
						}
					}
				})
			}
			wg.Wait()
			if n := s.fetched.Load(); n == 0 || n > 64 {
				t.Errorf("%d pages were fetched", n)
			}
			// Discarded pages are not fetched again.
			mustReadPhys(t, m, 0, size)
			mustDo(t, m.Discard(3*page, page))
			if v, err := m.Load8(3 * page); v != 0 || err != nil {
				t.Errorf("a discarded page reads %d, %v", v, err)
			}
			if st, _ := r.States().State(3); st != PageRemoved {
				t.Errorf("it is %v", st)
			}
			if n := s.fetched.Load(); n != 64 {
				t.Errorf("%d pages were fetched, of 64", n)
			}
			mustDo(t, r.SetFaultServer(s, PageAbsent)) // another epoch
			s.fail = errRefused
			p := make([]byte, 8)
			for what, err := range map[string]error{
				"ReadAt":  func() error { _, err := m.ReadAt(p, 0); return err }(),
				"Store8":  m.Store8(page, 1),
				"WriteAt": func() error { _, err := m.WriteAt(p, 2*page); return err }(),
				"Slice":   func() error { _, err := m.Slice(0, 1, Read); return err }(),
			} {
				if !errors.Is(err, errRefused) {
					t.Errorf("%s of what cannot be fetched: %v", what, err)
				}
			}
			// R12: what is missing is not given up for zeroes.
			if err := r.SetFaultServer(nil, PagePresent); !errors.Is(err, ErrBusy) {
				t.Errorf("the end of a restore with absent pages: %v", err)
			}
			s.fail = nil
			mustReadPhys(t, m, 0, size)
			mustDo(t, r.SetFaultServer(nil, PagePresent))
			mustReadPhys(t, m, 0, 8)
		})
	}
}

// R15: a store to an armed page asks first, each time it is armed; loads do not.
func TestR15StoreToArmedPage(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 4 * page})
	s := &fakeServer{r: r}
	mustWritePhys(t, m, 0, make([]byte, 4*page))
	mustDo(t, r.SetFaultServer(s, PagePresent))
	for round := range int64(3) {
		mustWritePhys(t, m, 0, make([]byte, 4*page)) // all usable
		for page := range uint64(4) {
			if !r.States().Arm(page) {
				t.Fatalf("page %d cannot be armed", page)
			}
		}
		leave := inSection(t, m)
		withheld := testutil.Go(func() { r.WithholdWrites(0, 4) })
		testutil.Parked(t, withheld, "arming beside a section")
		leave()
		testutil.Proceeds(t, withheld, "arming")
		mustReadPhys(t, m, 0, 4*page)
		if got := s.stores.Load(); got != 4*round {
			t.Errorf("a load asked: %d", got)
		}
		mustDo(t, m.Store8(0, 1))
		mustDo(t, m.Store8(1, 1))
		mustWritePhys(t, m, page, make([]byte, page+1))
		if got := s.stores.Load(); got != 4*round+3 {
			t.Errorf("%d stores asked, want %d", got, 4*round+3)
		}
		mustDo(t, m.Store64(3*page, 1))
	}
}

// R15: a page that is armed after a store has asked, and before it may go ahead,
// is asked about again.
//
//	store                            arming
//	asks: not armed
//	                                 Arm, WithholdWrites
//	populates; page writable again?
//	stores untrapped
func TestR15ArmedWhileAStoreAsks(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: page})
	s := &fakeServer{r: r}
	mustDo(t, r.SetFaultServer(s, PagePresent))
	readyHook = func() {
		readyHook = nil
		if !r.States().Arm(0) {
			t.Error("the page cannot be armed")
		}
		r.WithholdWrites(0, 1)
	}
	defer func() { readyHook = nil }()
	mustDo(t, m.Store8(0, 1))
	if got := s.stores.Load(); got != 1 {
		t.Errorf("%d stores asked, want 1", got)
	}
}

// idleServer brings nothing, and says that it has.
type idleServer struct{}

func (idleServer) Fetch(context.Context, *Region, uint64, uint64) error       { return nil }
func (idleServer) BeforeStore(context.Context, *Region, uint64, uint64) error { return nil }

// R12: a fault server that brings nothing is an error to whoever reads, in the
// end, and neither zeroes nor a wait without end.
func TestR12IdleFaultServer(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: page})
	mustDo(t, r.SetFaultServer(idleServer{}, PageAbsent))
	if _, err := m.Load8(0); !errors.Is(err, ErrBus) {
		t.Errorf("Load8: %v", err)
	}
}
