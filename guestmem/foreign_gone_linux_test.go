package guestmem

import (
	"context"
	"errors"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// The embedder unmaps part of what he has given: accesses there are errors, by
// name, also of pages that were in use; the rest goes on, and the region can be
// removed.
func TestForeignMappingThatGoes(t *testing.T) {
	m := newPhys(t)
	b, err := unix.Mmap(-1, 0, 16*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	mustDo(t, err)
	hva := hvaOf(b)
	r := mustAdd(t, m, RegionOptions{Size: 16 * page, Backing: BackingForeign, Mapping: hva})
	mustWritePhys(t, m, 0, make([]byte, 12*page)) // the last four were never used
	for _, hole := range []uint64{8, 14} {
		_, _, errno := unix.Syscall(unix.SYS_MUNMAP, uintptr(hva)+uintptr(hole)*page, page, 0)
		if errno != 0 {
			t.Fatal(errno)
		}
	}
	defer func() {
		for first, n := range map[uintptr]uintptr{0: 8, 9: 5, 15: 1} {
			unix.Syscall(unix.SYS_MUNMAP, uintptr(hva)+first*page, n*page, 0)
		}
	}()
	for _, hole := range []addr.GPA{8 * page, 14 * page} {
		p := make([]byte, 3*page)
		if n, err := m.ReadAt(p, hole-page); n != page || !errors.Is(err, ErrBus) {
			t.Errorf("ReadAt = %d, %v", n, err)
		}
		if n, err := m.WriteAt(p, hole-page); n != page || !errors.Is(err, ErrBus) {
			t.Errorf("WriteAt = %d, %v", n, err)
		}
		for what, err := range map[string]error{
			"Load64":  func() error { _, err := m.Load64(hole); return err }(),
			"Store8":  m.Store8(hole+5, 1),
			"Slice":   func() error { _, err := m.Slice(hole, 1, Write); return err }(),
			"Discard": m.Discard(hole-page, 3*page),
		} {
			if !errors.Is(err, ErrBus) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	mustDo(t, m.Store64(9*page, 3))
	mustDo(t, m.Discard(9*page, page))
	if v, err := m.Load64(9 * page); v != 0 || err != nil {
		t.Errorf("the rest: %d, %v", v, err)
	}
	mustWritePhys(t, m, page, []byte("here"))
	if _, err := m.Seal(); !errors.Is(err, ErrBus) {
		t.Errorf("Seal = %v", err)
	}
	if got := mustReadPhys(t, m, page, 4); string(got) != "here" {
		t.Errorf("after the seal failed: %q", got)
	}
	mustDo(t, m.CollectDirty(r, func(addr.GPA, uint64) {}))
	mustDo(t, m.RemoveRegion(r))
}

// A size that no host has is refused before anything that grows with it is made.
func TestHugeRegionsAreRefusedCheaply(t *testing.T) {
	m := newPhys(t)
	for _, backing := range []Backing{BackingMemfd, BackingAnonymous, BackingHugetlb} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := m.AddRegion(RegionOptions{Size: 1 << 51, Backing: backing})
		runtime.ReadMemStats(&after)
		if !errors.Is(err, ErrNoMemory) {
			t.Errorf("%v: %v", backing, err)
		}
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("%v: %d bytes of heap for a region that cannot be", backing, n)
		}
	}
}

// A copy goes as far as there are pages, also where none of them was in use before,
// and the error is of the address that failed.
func TestCopiesGoAsFarAsThereArePages(t *testing.T) {
	for _, backing := range []Backing{BackingFile, BackingFilePrivate} {
		t.Run(backing.String(), func(t *testing.T) {
			m := newPhys(t)
			file := testFile(t, 8*page)
			mustAdd(t, m, RegionOptions{Size: 8 * page, Backing: backing, File: file})
			mustDo(t, file.Truncate(3*page))
			p := make([]byte, 7*page)
			var at *RegionError
			if n, err := m.ReadAt(p, page); n != 2*page || !errors.Is(err, ErrBus) || !errors.As(err, &at) || at.GPA != 3*page {
				t.Errorf("ReadAt = %d, %v", n, err)
			}
			if n, err := m.WriteAt(p, page); n != 2*page || !errors.Is(err, ErrBus) || !errors.As(err, &at) || at.GPA != 3*page {
				t.Errorf("WriteAt = %d, %v", n, err)
			}
		})
	}
	t.Run("lazy", func(t *testing.T) {
		m := newPhys(t)
		r := mustAdd(t, m, RegionOptions{Size: 8 * page})
		s := &upTo{last: 3}
		mustDo(t, r.SetFaultServer(s, PageAbsent))
		if n, err := m.ReadAt(make([]byte, 7*page), page); n != 2*page || !errors.Is(err, errRefused) {
			t.Errorf("ReadAt = %d, %v", n, err)
		}
	})
}

// upTo can bring the pages before last.
type upTo struct {
	fakeServer
	last uint64
}

func (s *upTo) Fetch(ctx context.Context, r *Region, first, n uint64) error {
	for page := first; page < first+n; page++ {
		if page >= s.last {
			return errRefused
		}
		if err := s.fakeServer.Fetch(ctx, r, page, 1); err != nil {
			return err
		}
	}
	return nil
}
