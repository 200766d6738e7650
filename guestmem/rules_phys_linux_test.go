package guestmem

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// inSection parks a worker in a section that has passed the door and found the
// regions, and returns how to let it go.
func inSection(t *testing.T, m *Memory) (leave func()) {
	entered, release := make(chan struct{}), make(chan struct{})
	done := inBackground(func() {
		h := m.domain.NewHandle()
		defer h.Close()
		h.Enter(noSpace)
		close(entered)
		<-release
		h.Exit()
	})
	<-entered
	leave = sync.OnceFunc(func() { close(release); <-done })
	t.Cleanup(leave) // also where the test fails, so that it can end
	return leave
}

// R1: a region is unmapped only after the sections have ended that may have
// found it; those that begin meanwhile do not find it, and do not wait.
//
//	reader                          RemoveRegion
//	Enter, finds r
//	                                publishes the regions without r
//	                                grace period ...
//	loads from r's mapping
//	Exit
//	                                ... ends; listeners; munmap
func TestR1RemovalWaitsForSections(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: page})
	mustAdd(t, m, RegionOptions{Base: 1 << 20, Size: page})
	mustWritePhys(t, m, 0, []byte("still here"))
	leave := inSection(t, m)
	removed := testutil.Go(func() { mustDo(t, m.RemoveRegion(r)) })
	testutil.Parked(t, removed, "RemoveRegion beside a section")
	if string(r.look[:10]) != "still here" {
		t.Error("what the section has found is gone")
	}
	if _, err := m.ReadAt(make([]byte, 1), 0); !errors.Is(err, ErrNoRegion) {
		t.Errorf("a section that begins after: %v", err)
	}
	mustReadPhys(t, m, 1<<20, 8) // does not wait
	leave()
	testutil.Proceeds(t, removed, "RemoveRegion")
}

// R1: the same of a discard, which takes the content away.
func TestR1DiscardWaitsForSections(t *testing.T) {
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous} {
		t.Run(backing.String(), func(t *testing.T) {
			m := newPhys(t)
			r := mustAdd(t, m, RegionOptions{Size: 2 * page, Backing: backing})
			mustWritePhys(t, m, 0, []byte("still here"))
			mustWritePhys(t, m, page, []byte("stays"))
			leave := inSection(t, m)
			discarded := testutil.Go(func() { mustDo(t, m.Discard(0, page)) })
			testutil.Parked(t, discarded, "Discard beside a section")
			if string(r.look[:10]) != "still here" {
				t.Error("what the section has found is gone")
			}
			mustReadPhys(t, m, page, 8) // another page: does not wait
			reader := testutil.Go(func() {
				if got := mustReadPhys(t, m, 0, 10); !bytes.Equal(got, make([]byte, 10)) {
					t.Errorf("after the discard: %q", got)
				}
			})
			testutil.Parked(t, reader, "a reader of what is being discarded")
			leave()
			testutil.Proceeds(t, discarded, "Discard")
			testutil.Proceeds(t, reader, "the reader")
		})
	}
}

// R15: nobody gets at guest memory by guest-physical address while the door is shut.
func TestR15DoorRefusesPhysicalAccess(t *testing.T) {
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Size: page})
	mustWritePhys(t, m, 0, make([]byte, 8))
	ops := map[string]func(){
		"ReadAt 8":         func() { mustReadPhys(t, m, 0, 8) },
		"ReadAt":           func() { mustReadPhys(t, m, 0, 9) },
		"WriteAt":          func() { mustWritePhys(t, m, 0, []byte{1}) },
		"Load8":            func() { m.Load8(0) },
		"Store64":          func() { m.Store64(0, 1) },
		"CompareAndSwap32": func() { m.CompareAndSwap32(0, 0, 1) },
	}
	done := make(map[string]<-chan struct{})
	mustDo(t, m.window(func() error {
		for what, op := range ops {
			done[what] = testutil.Go(op)
		}
		for what, ch := range done {
			testutil.Parked(t, ch, what)
		}
		return nil
	}))
	for what, ch := range done {
		testutil.Proceeds(t, ch, what)
	}
}

// A store whose mark is taken by a harvest has ended when the harvest returns,
// so that its bytes are in what the harvester then copies.
//
//	store                           harvest
//	finds the mark set (or sets it)
//	                                takes the mark
//	stores
//	Exit
//	                                grace period ends: reads the page
func TestR15HarvestWaitsForStores(t *testing.T) {
	for what, store := range map[string]func(*Memory) error{
		"WriteAt": func(m *Memory) error { _, err := m.WriteAt([]byte{1}, 5); return err },
		"Store8":  func(m *Memory) error { return m.Store8(5, 1) },
	} {
		t.Run(what, func(t *testing.T) {
			m := newPhys(t)
			r := mustAdd(t, m, RegionOptions{Size: page})
			mustWritePhys(t, m, 0, []byte{0}) // marked, and usable
			marked, held := make(chan struct{}), make(chan struct{})
			release := sync.OnceFunc(func() { close(held) })
			t.Cleanup(release)
			storeHookGPA = func() { close(marked); <-held }
			stored := testutil.Go(func() { mustDo(t, store(m)) })
			<-marked
			storeHookGPA = nil
			harvested := testutil.Go(func() {
				if got := harvestOf(t, m, r); len(got) != 1 {
					t.Errorf("harvested %v", got)
				}
				if r.look[5] != 1 {
					t.Error("the harvest has the mark of a store that has not stored yet")
				}
			})
			testutil.Parked(t, harvested, "a harvest beside a store")
			release()
			testutil.Proceeds(t, stored, "the store")
			testutil.Proceeds(t, harvested, "the harvest")
			if got := harvestOf(t, m, r); len(got) != 0 {
				t.Errorf("harvested again: %v", got)
			}
		})
	}
}

// harvestOf returns the pages that a harvest of r yields.
func harvestOf(tb testing.TB, m *Memory, r *Region) map[uint64]bool {
	tb.Helper()
	pages := make(map[uint64]bool)
	var last addr.GPA
	mustDo(tb, m.CollectDirty(r, func(start addr.GPA, n uint64) {
		if n == 0 || start < last || !r.Contains(start) || uint64(start-r.Base())+n*page > r.Size() {
			tb.Errorf("a run of %d pages at %v after %v", n, start, last)
		}
		for i := range n {
			pages[uint64(start-r.Base())/page+i] = true
		}
		last = start + addr.GPA(n*page) + 1 // runs that touch are one
	}))
	return pages
}

// R7: a slice holds its region, its pages, and its place among the dirty ones.
func TestR7SliceHolds(t *testing.T) {
	forEachBacking(t, func(t *testing.T, m *Memory, r *Region, want []byte) {
		n := r.PageSize() / page // 4 KiB pages to a page of the region
		harvestOf(t, m, r)
		s, err := m.Slice(r.Base()+addr.GPA(r.PageSize())-4, 8, Write)
		mustDo(t, err)
		if got := harvestOf(t, m, r); len(got) != 2 || !got[n-1] || !got[n] {
			t.Errorf("dirty with a slice held for writing: %v", got)
		}
		if got := harvestOf(t, m, r); len(got) != 2 {
			t.Errorf("and again: %v", got)
		}
		if err := m.RemoveRegion(r); !errors.Is(err, ErrBusy) || !errors.Is(err, unix.EBUSY) {
			t.Errorf("removal with a slice held: %v", err)
		}
		if err := m.Discard(r.Base(), r.PageSize()); !errors.Is(err, ErrBusy) {
			t.Errorf("discard of a page with a slice: %v", err)
		}
		if _, err := m.Seal(); !errors.Is(err, ErrBusy) {
			t.Errorf("Seal with a slice held: %v", err)
		}
		if err := m.Close(); !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), "slice") {
			t.Errorf("Close with a slice held: %v", err)
		}
		if s.HVA() != r.Slot()+addr.HVA(r.PageSize())-4 || s.Size() != 8 || s.GPA() != r.Base()+addr.GPA(r.PageSize())-4 || s.Region() != r {
			t.Errorf("slice at %v, %v", s.GPA(), s.HVA())
		}
		if b := s.Bytes(); b != nil {
			copy(b, "by slice")
			if got := mustReadPhys(t, m, s.GPA(), 8); string(got) != "by slice" {
				t.Errorf("a store through the slice reads %q", got)
			}
		} else if !r.guarded {
			t.Error("no bytes")
		}
		read, err := m.Slice(r.Base(), 1, Read)
		mustDo(t, err)
		s.Release()
		s.Release()
		if got := harvestOf(t, m, r); len(got) != 2 {
			t.Errorf("dirty after the release: %v", got)
		}
		if got := harvestOf(t, m, r); len(got) != 0 {
			t.Errorf("dirty once more: %v", got)
		}
		mustDo(t, m.Discard(r.Base()+addr.GPA(r.PageSize()), r.PageSize()))
		if err := m.Discard(r.Base(), r.PageSize()); !errors.Is(err, ErrBusy) {
			t.Errorf("discard of a page with a slice held for reading: %v", err)
		}
		read.Release()
		mustDo(t, m.RemoveRegion(r))
		if _, err := m.Slice(r.Base(), 1, Read); !errors.Is(err, ErrNoRegion) {
			t.Errorf("a slice of what is gone: %v", err)
		}
	})
}

// R10: a file that becomes shorter than its region is an error to whoever goes
// there, and no signal.
func TestR10FileShrinks(t *testing.T) {
	for _, backing := range []Backing{BackingFile, BackingFilePrivate, BackingForeign} {
		t.Run(backing.String(), func(t *testing.T) {
			m := newPhys(t)
			file := testFile(t, 4*page)
			o := RegionOptions{Size: 4 * page, Backing: backing, File: file}
			if backing == BackingForeign {
				o.Mapping, _ = foreignMapping(t, 4*page, unix.MAP_SHARED, int(file.Fd()))
			}
			r := mustAdd(t, m, o)
			mustReadPhys(t, m, 0, 4*page) // all usable
			if backing != BackingFilePrivate {
				mustDo(t, m.Store64(3*page, 1)) // for writing too
			}
			mustDo(t, os.Truncate(file.Name(), 2*page-100))
			p := make([]byte, 4*page)
			n, err := m.ReadAt(p, 0)
			if n != 2*page || !errors.Is(err, ErrBus) {
				t.Errorf("ReadAt = %d, %v; want %d and ErrBus", n, err, 2*page)
			}
			if !strings.Contains(err.Error(), "0x1f9c bytes now, the region needs 0x4000") {
				t.Errorf("%v does not have both sizes", err)
			}
			for what, err := range map[string]error{
				"Store64": m.Store64(3*page, 1),
				"Load8":   func() error { _, err := m.Load8(3 * page); return err }(),
				"ReadAt8": func() error { _, err := m.ReadAt(p[:8], 2*page); return err }(),
				"WriteAt": func() error { _, err := m.WriteAt(p[:9], 2*page); return err }(),
				"Slice":   func() error { _, err := m.Slice(2*page, 1, Read); return err }(),
			} {
				if !errors.Is(err, ErrBus) {
					t.Errorf("%s: %v", what, err)
				}
			}
			mustDo(t, m.Store8(page, 7)) // what is there still works
			mustDo(t, os.Truncate(file.Name(), 4*page))
			if got := mustReadPhys(t, m, 2*page, 8); !bytes.Equal(got, make([]byte, 8)) {
				t.Errorf("after the file has grown again: %v", got)
			}
			_ = r
		})
	}
}

// R10: where somebody else watches the only mapping, Go goes by system calls.
func TestR10InterceptedRegion(t *testing.T) {
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Size: 32 * page, Backing: BackingAnonymous})
	mustWritePhys(t, m, 0, []byte("before"))
	s, err := m.Slice(0, 1, Read)
	mustDo(t, err)
	if err := r.Intercept(); !errors.Is(err, ErrBusy) {
		t.Errorf("Intercept with a slice held: %v", err)
	}
	s.Release()
	mustDo(t, r.Intercept())
	harvestOf(t, m, r)
	want := bytes.Repeat([]byte("pattern"), 32*page/7)
	mustWritePhys(t, m, 3, want)
	if got := mustReadPhys(t, m, 3, len(want)); !bytes.Equal(got, want) {
		t.Error("other bytes came back")
	}
	if got := harvestOf(t, m, r); len(got) != 32 {
		t.Errorf("dirty: %v", got)
	}
	for page := range r.nPages() {
		if r.readable.has(page) || r.writable.has(page) {
			t.Fatalf("Go code may touch page %d", page)
		}
	}
	if err := m.Store64(8, 1); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Store64: %v", err)
	}
	s, err = m.Slice(0, 1, Write)
	mustDo(t, err)
	if s.Bytes() != nil || s.HVA() != r.Slot() {
		t.Error("Go code may touch the slice")
	}
	s.Release()
	if _, err := m.Seal(); !errors.Is(err, ErrBusy) {
		t.Errorf("Seal: %v", err)
	}
	mustDo(t, m.Discard(0, page))
	if got := mustReadPhys(t, m, 0, 8); !bytes.Equal(got, make([]byte, 8)) {
		t.Errorf("after a discard: %q", got)
	}
	r.EndIntercept()
	mustDo(t, m.Store64(8, 1))
}
