package guestmem

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/inject"
)

// removingServer is a fakeServer that is told of discards.
type removingServer struct {
	fakeServer
	remove func(first, n uint64) error
}

func (s *removingServer) Remove(_ *Region, first, n uint64) error { return s.remove(first, n) }

// R9: the server of a region hears of a discard before the pages go, and before
// the region calls them removed.
//
//	discard                         vCPU                     fault server
//	drops the page
//	                                faults
//	                                                         installs the image
//	Remove: too late
func TestR9DiscardTellsTheFaultServerFirst(t *testing.T) {
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		t.Run(backing.String(), func(t *testing.T) {
			m := newPhys(t)
			r := mustAdd(t, m, RegionOptions{Size: 8 * page, Backing: backing})
			calls := 0
			s := &removingServer{}
			s.remove = func(first, n uint64) error {
				calls++
				if first != 2 || n != 3 {
					t.Errorf("Remove(%d, %d)", first, n)
				}
				for p := first; p < first+n; p++ {
					if got := hostPages(r.host.slot, p, 1)[0]; got != byte(p)+1 {
						t.Errorf("page %d has gone already: %d", p, got)
					}
					if st, _ := r.States().State(p); st != PagePresent {
						t.Errorf("page %d is %v already", p, st)
					}
				}
				return nil
			}
			mustDo(t, r.SetFaultServer(s, PageAbsent))
			mustReadPhys(t, m, 0, 8*page)
			mustDo(t, m.Discard(2*page, 3*page))
			if calls != 1 {
				t.Errorf("Remove was called %d times", calls)
			}
			for p := range uint64(8) {
				want := byte(p) + 1
				if p >= 2 && p < 5 {
					want = 0
				}
				if got := mustReadPhys(t, m, r.gpaOf(p), 1)[0]; got != want {
					t.Errorf("page %d reads %d, want %d", p, got, want)
				}
			}
			// One that cannot: nothing is given back.
			harvestOf(t, m, r)
			s.remove = func(uint64, uint64) error { return errRefused }
			if err := m.Discard(5*page, page); !errors.Is(err, errRefused) {
				t.Errorf("Discard = %v", err)
			}
			if got := mustReadPhys(t, m, 5*page, 1)[0]; got != 6 {
				t.Errorf("after a discard that was refused: %d", got)
			}
			if got := harvestOf(t, m, r); len(got) != 0 {
				t.Errorf("dirty after it: %v", got)
			}
			mustDo(t, r.SetFaultServer(nil, PagePresent))
		})
	}
}

// A discard that fails midway has zeroed what it has: those pages are dirty, since
// their content is another one than whoever harvested last has seen.
func TestDiscardThatFailsMidwayCountsDirty(t *testing.T) {
	const n = 48 // three pieces of the zeroes that are stored
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Size: n * page})
	want := make([]byte, n*page)
	for i := range want {
		want[i] = 7
	}
	mustWritePhys(t, m, 0, want)
	tmpl, err := m.Seal()
	mustDo(t, err)
	clone, err := tmpl.Clone(CloneOptions{})
	mustDo(t, err)
	defer func() { mustDo(t, clone.Close()); mustDo(t, tmpl.Close()) }()
	r := clone.Regions()[0]
	run := inject.Start(inject.Plan{
		Match: inject.Only("region: mmap over", "region: process_vm"),
		From:  0, Until: 1, Errno: unix.ENOMEM, // no mapping is left
	})
	mustDo(t, run.During(func() error { return clone.Discard(0, 16*page) }))
	harvestOf(t, clone, r)
	mustDo(t, r.SetFaultServer(idleServer{}, PagePresent)) // zeroes are stored from the beginning
	run = inject.Start(inject.Plan{Match: inject.Only("region: process_vm"), From: 1, Until: 2, Errno: unix.ENOMEM})
	if err := run.During(func() error { return clone.Discard(16*page, 32*page) }); !errors.Is(err, ErrNoMemory) {
		t.Fatalf("Discard = %v", err)
	}
	dirty := harvestOf(t, clone, r)
	changed := 0
	for p := range uint64(n) {
		if mustReadPhys(t, clone, r.gpaOf(p), 1)[0] == 0 && p >= 16 {
			changed++
			if !dirty[p] {
				t.Errorf("page %d was zeroed, and is not dirty", p)
			}
		}
	}
	if changed != 16 {
		t.Errorf("%d pages were zeroed", changed)
	}
}
