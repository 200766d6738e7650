package guestmem

import (
	"bytes"
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// backingCase is one way to make a region of four pages (or one huge one).
type backingCase struct {
	name string
	size uint64
	o    func(tb testing.TB) RegionOptions
	// first is what its pages hold at first.
	first func(n int) []byte
}

func zeroPages(n int) []byte { return make([]byte, n) }

func backings(tb testing.TB) []backingCase {
	const size = 16 * page
	foreignFD := func(tb testing.TB) *os.File {
		fd, err := unix.MemfdCreate("guestmm-test-foreign", unix.MFD_CLOEXEC)
		mustDo(tb, err)
		f := os.NewFile(uintptr(fd), "foreign")
		tb.Cleanup(func() { f.Close() })
		mustDo(tb, f.Truncate(size))
		return f
	}
	cases := []backingCase{
		{"memfd", size, func(testing.TB) RegionOptions { return RegionOptions{} }, zeroPages},
		{"anonymous", size, func(testing.TB) RegionOptions { return RegionOptions{Backing: BackingAnonymous} }, zeroPages},
		{"file", size, func(tb testing.TB) RegionOptions {
			return RegionOptions{Backing: BackingFile, File: testFile(tb, size)}
		}, filePattern},
		{"private file", size, func(tb testing.TB) RegionOptions {
			return RegionOptions{Backing: BackingFilePrivate, File: testFile(tb, size)}
		}, filePattern},
		{"foreign private", size, func(tb testing.TB) RegionOptions {
			hva, _ := foreignMapping(tb, size, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
			return RegionOptions{Backing: BackingForeign, Mapping: hva}
		}, zeroPages},
		{"foreign shared", size, func(tb testing.TB) RegionOptions {
			hva, _ := foreignMapping(tb, size, unix.MAP_SHARED|unix.MAP_ANONYMOUS, -1)
			return RegionOptions{Backing: BackingForeign, Mapping: hva}
		}, zeroPages},
		{"foreign private file", size, func(tb testing.TB) RegionOptions {
			hva, _ := foreignMapping(tb, size, unix.MAP_PRIVATE, int(testFile(tb, size).Fd()))
			return RegionOptions{Backing: BackingForeign, Mapping: hva}
		}, filePattern},
		{"foreign with descriptor", size, func(tb testing.TB) RegionOptions {
			f := foreignFD(tb)
			hva, _ := foreignMapping(tb, size, unix.MAP_SHARED, int(f.Fd()))
			return RegionOptions{Backing: BackingForeign, Mapping: hva, File: f}
		}, zeroPages},
		{"hugetlb", 2 * hugePageSize, func(tb testing.TB) RegionOptions {
			testutil.HugePages(tb, 8)
			return RegionOptions{Backing: BackingHugetlb}
		}, zeroPages},
	}
	return cases
}

// forEachBacking runs fn on a region of each kind, alone in its memory at GPA 1
// GiB, and once more on a clone of a template of it.
func forEachBacking(t *testing.T, fn func(t *testing.T, m *Memory, r *Region, first []byte)) {
	for _, c := range backings(t) {
		for _, cloned := range []bool{false, true} {
			name := c.name
			if cloned {
				name += ", cloned"
			}
			t.Run(name, func(t *testing.T) {
				unchangedHost(t)
				o := c.o(t)
				o.Base, o.Size = 1<<30, c.size
				m := newPhys(t)
				r := mustAdd(t, m, o)
				if cloned {
					tmpl, err := m.Seal()
					mustDo(t, err)
					m, err = tmpl.Clone(CloneOptions{})
					mustDo(t, err)
					mustDo(t, tmpl.Close())
					t.Cleanup(func() { mustDo(t, m.Close()) })
					r = m.Regions()[0]
				}
				fn(t, m, r, c.first(int(c.size)))
			})
		}
	}
}

// Every backing behaves as memory: what it held at first, stores, words,
// partial progress at its ends, a discard, and nothing left of it at the end.
func TestBackings(t *testing.T) {
	forEachBacking(t, func(t *testing.T, m *Memory, r *Region, want []byte) {
		base := r.Base()
		check := func(what string) {
			t.Helper()
			if got := mustReadPhys(t, m, base, len(want)); !bytes.Equal(got, want) {
				for i := range got {
					if got[i] != want[i] {
						t.Fatalf("%s: byte %#x is %#x, want %#x", what, i, got[i], want[i])
					}
				}
			}
		}
		check("at first")
		store := func(off int, p string) {
			mustWritePhys(t, m, base+addr.GPA(off), []byte(p))
			copy(want[off:], p)
		}
		store(3*page-3, "over a page's end")
		store(0, "first")
		store(len(want)-4, "last")
		check("after stores")

		mustDo(t, m.Store64(base+8, 0x1122334455667788))
		mustDo(t, m.Store16(base+10, 0xabcd))
		mustDo(t, m.Store8(base+15, 0xef))
		copy(want[8:], []byte{0x88, 0x77, 0xcd, 0xab, 0x44, 0x33, 0x22, 0xef})
		check("after words")
		if v, err := m.Load32(base + 12); err != nil || v != 0xef223344 {
			t.Errorf("Load32 = %#x, %v", v, err)
		}
		if ok, err := m.CompareAndSwap64(base+8, 1, 2); ok || err != nil {
			t.Errorf("CompareAndSwap64 of another value = %v, %v", ok, err)
		}
		if ok, err := m.CompareAndSwap32(base+12, 0xef223344, 7); !ok || err != nil {
			t.Errorf("CompareAndSwap32 = %v, %v", ok, err)
		}
		copy(want[12:], []byte{7, 0, 0, 0})
		check("after compare and swap")

		// Past the end: the head is done.
		p := bytes.Repeat([]byte{9}, 16)
		n, err := m.WriteAt(p, r.End()-5)
		var e *RegionError
		if n != 5 || !errors.Is(err, ErrNoRegion) || !errors.Is(err, unix.EFAULT) || !errors.As(err, &e) || e.GPA != r.End() {
			t.Errorf("WriteAt over the end = %d, %v; want 5 and a hole at %v", n, err, r.End())
		}
		copy(want[len(want)-5:], p)
		if n, err := m.ReadAt(p, base-6); n != 0 || !errors.Is(err, ErrNoRegion) {
			t.Errorf("ReadAt from before the region = %d, %v", n, err)
		}
		check("after partial stores")

		size := r.PageSize()
		mustDo(t, m.Discard(base+addr.GPA(size), size))
		clear(want[size : 2*size])
		check("after a discard")
		store(int(size)+100, "again")
		check("after a store to what was discarded")
		mustDo(t, m.Discard(base, r.Size()))
		clear(want)
		check("after a discard of all")
		store(5, "once more")
		check("after one store more")

		mustDo(t, m.RemoveRegion(r))
		if _, err := m.ReadAt(p, base); !errors.Is(err, ErrNoRegion) {
			t.Errorf("ReadAt of a region that is gone: %v", err)
		}
		if _, ok := m.RegionAt(base); ok || len(m.Regions()) != 0 {
			t.Error("a region that is gone is found")
		}
		if err := m.RemoveRegion(r); !errors.Is(err, ErrInvalid) {
			t.Errorf("removed twice: %v", err)
		}
	})
}
