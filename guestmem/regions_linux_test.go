package guestmem

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

var errRefused = errors.New("refused by the test")

// hostState is how many mappings and descriptors the process has.
type hostState struct{ fds, maps int }

func hostNow(tb testing.TB) hostState {
	tb.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		tb.Fatal(err)
	}
	s := hostState{fds: len(fds)}
	// The runtime's own mappings come and go; those of regions have a name, are
	// left out of core dumps, or are a test's file.
	for _, line := range strings.Split(string(b), "\n") {
		if strings.Contains(line, "memfd:") || strings.Contains(line, "guestmm-test-file") {
			s.maps++
		}
	}
	return s
}

// unchangedHost fails the test if it ends with other mappings or descriptors
// than now.
func unchangedHost(tb testing.TB) {
	tb.Helper()
	before := hostNow(tb)
	tb.Cleanup(func() {
		if after := hostNow(tb); after != before {
			tb.Errorf("the host has %+v, before %+v", after, before)
		}
	})
}

// newPhys returns a memory without a frame pool, closed when the test ends.
func newPhys(tb testing.TB) *Memory {
	tb.Helper()
	m, err := NewMemory(MemoryOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := m.Close(); err != nil {
			tb.Errorf("Close: %v", err)
		}
	})
	return m
}

func mustAdd(tb testing.TB, m *Memory, o RegionOptions) *Region {
	tb.Helper()
	r, err := m.AddRegion(o)
	if err != nil {
		tb.Fatal(err)
	}
	return r
}

// testFile returns a file of size bytes, each the low byte of its page's number
// plus one.
func testFile(tb testing.TB, size int) *os.File {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "guestmm-test-file"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	if _, err := f.Write(filePattern(size)); err != nil {
		tb.Fatal(err)
	}
	return f
}

func filePattern(size int) []byte {
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(i/page) + 1
	}
	return b
}

// foreignMapping is a mapping that is the test's own.
func foreignMapping(tb testing.TB, size int, flags int, fd int) (addr.HVA, []byte) {
	tb.Helper()
	b, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := unix.Munmap(b); err != nil {
			tb.Error(err)
		}
	})
	return hvaOf(b), b
}

func mustReadPhys(tb testing.TB, m *Memory, gpa addr.GPA, n int) []byte {
	tb.Helper()
	p := make([]byte, n)
	if got, err := m.ReadAt(p, gpa); err != nil || got != n {
		tb.Fatalf("ReadAt(%v, %d bytes) = %d, %v", gpa, n, got, err)
	}
	return p
}

func mustWritePhys(tb testing.TB, m *Memory, gpa addr.GPA, p []byte) {
	tb.Helper()
	if got, err := m.WriteAt(p, gpa); err != nil || got != len(p) {
		tb.Fatalf("WriteAt(%v, %d bytes) = %d, %v", gpa, len(p), got, err)
	}
}

// A copy goes from one region to its neighbour, and stops at a hole, to the byte.
func TestCopiesCrossRegions(t *testing.T) {
	m := newPhys(t)
	const size = 4 * page
	for i := range 3 {
		o := RegionOptions{Base: addr.GPA(i) * size, Size: size, Name: fmt.Sprint("r", i)}
		if i == 1 {
			o.Backing = BackingAnonymous
		}
		mustAdd(t, m, o)
	}
	mustAdd(t, m, RegionOptions{Base: 4 * size, Size: size}) // after a hole
	p := make([]byte, 3*size-200)
	for i := range p {
		p[i] = byte(i*7 + i>>8)
	}
	mustWritePhys(t, m, 100, p)
	if got := mustReadPhys(t, m, 100, len(p)); !bytes.Equal(got, p) {
		t.Error("other bytes came back")
	}
	big := make([]byte, 5*size)
	if n, err := m.ReadAt(big, 50); n != 3*size-50 || !errors.Is(err, ErrNoRegion) {
		t.Errorf("ReadAt up to a hole = %d, %v", n, err)
	}
	for i := range len(m.Regions()) {
		if r := m.Regions()[i]; r.Base() != []addr.GPA{0, size, 2 * size, 4 * size}[i] {
			t.Errorf("region %d is at %v", i, r.Base())
		}
	}
	if r, ok := m.RegionAt(size - 1); !ok || r.Name() != "r0" {
		t.Errorf("RegionAt the last byte of r0: %v, %v", r, ok)
	}
}

// R14: whatever a guest asks to be accessed is an error or its own memory.
func TestR14GuestPhysicalAddresses(t *testing.T) {
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Base: 1<<52 - page, Size: page})
	mustAdd(t, m, RegionOptions{Base: 0, Size: page})
	p := make([]byte, 2*page)
	for _, gpa := range []addr.GPA{page, 1 << 51, 1<<52 - 1, 1 << 52, 1 << 63, ^addr.GPA(0), ^addr.GPA(0) - page + 1} {
		n, err := m.ReadAt(p, gpa)
		if !errors.Is(err, ErrNoRegion) || n > 1 {
			t.Errorf("ReadAt(%v) = %d, %v", gpa, n, err)
		}
		if _, err := m.WriteAt(p, gpa); !errors.Is(err, ErrNoRegion) {
			t.Errorf("WriteAt(%v): %v", gpa, err)
		}
		if _, err := m.Load64(gpa &^ 7); gpa != 1<<52-1 && !errors.Is(err, ErrNoRegion) {
			t.Errorf("Load64(%v): %v", gpa, err)
		}
		if _, err := m.Slice(gpa, ^uint64(0), Read); !errors.Is(err, ErrNoRegion) {
			t.Errorf("Slice(%v, 2^64-1): %v", gpa, err)
		}
		if err := m.Discard(gpa&^(page-1), 1<<63); !errors.Is(err, ErrNoRegion) {
			t.Errorf("Discard(%v, 2^63): %v", gpa, err)
		}
	}
	for _, gpa := range []addr.GPA{1, 2, 4, 7} {
		if _, err := m.Load64(gpa); !errors.Is(err, ErrInvalid) {
			t.Errorf("Load64(%v): %v", gpa, err)
		}
		if err := m.Store64(gpa, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("Store64(%v): %v", gpa, err)
		}
	}
	if n, err := m.ReadAt(nil, 1<<60); n != 0 || err != nil {
		t.Errorf("ReadAt of nothing = %d, %v", n, err)
	}
}

// What cannot be a region is refused by name, with both sides of the mismatch,
// and leaves nothing behind.
func TestRegionsRefused(t *testing.T) {
	unchangedHost(t)
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Name: "there", Base: 1 << 20, Size: 1 << 20})
	file := testFile(t, 3*page)
	readOnly, err := os.Open(file.Name())
	mustDo(t, err)
	defer readOnly.Close()
	hva, _ := foreignMapping(t, 4*page, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	gap, b := foreignMapping(t, 4*page, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS, -1)
	mustDo(t, unix.Mprotect(b[2*page:3*page], unix.PROT_READ))
	closed, err := os.Open(file.Name())
	mustDo(t, err)
	closed.Close()
	for _, c := range []struct {
		what string
		o    RegionOptions
		want error
		says string
	}{
		{"no size", RegionOptions{}, ErrInvalid, "0x0"},
		{"odd size", RegionOptions{Size: page + 1}, ErrInvalid, "0x1001"},
		{"odd base", RegionOptions{Base: 7, Size: page}, ErrInvalid, "0x7"},
		{"size wraps", RegionOptions{Base: 1 << 20, Size: minusPage}, ErrInvalid, "2^52"},
		{"beyond 2^52", RegionOptions{Base: 1<<52 - page, Size: 2 * page}, ErrInvalid, "2^52"},
		{"overlaps the head", RegionOptions{Base: 1<<20 - page, Size: 2 * page}, ErrExists, "there [0x100000, 0x200000)"},
		{"overlaps the tail", RegionOptions{Base: 2<<20 - page, Size: page}, ErrExists, "there"},
		{"overlaps all", RegionOptions{Size: 1 << 30}, ErrExists, "there"},
		{"huge pages, odd size", RegionOptions{Size: page, Backing: BackingHugetlb}, ErrInvalid, "0x200000"},
		{"huge pages, odd base", RegionOptions{Base: page, Size: 2 << 20, Backing: BackingHugetlb}, ErrInvalid, "0x200000"},
		{"more huge pages than there are", RegionOptions{Base: 1 << 40, Size: 1 << 42, Backing: BackingHugetlb}, ErrNoMemory, ""},
		{"more than there are addresses", RegionOptions{Base: 1 << 50, Size: 1 << 50}, ErrNoMemory, ""},
		{"file too short", RegionOptions{Size: 4 * page, Backing: BackingFile, File: file}, ErrBus, "has 0x3000 bytes, the region needs 0x4000"},
		{"file too short from there", RegionOptions{Size: 3 * page, Backing: BackingFilePrivate, File: file, Offset: page}, ErrBus, "at offset 0x1000"},
		{"offset past the file", RegionOptions{Size: page, Backing: BackingFile, File: file, Offset: 1 << 40}, ErrBus, "0x3000"},
		{"offset overflows", RegionOptions{Size: page, Backing: BackingFile, File: file, Offset: minusPage}, ErrOverflow, ""},
		{"odd offset", RegionOptions{Size: page, Backing: BackingFile, File: file, Offset: 1}, ErrInvalid, ""},
		{"file not open for writing", RegionOptions{Size: page, Backing: BackingFile, File: readOnly}, ErrDenied, "not open for writing"},
		{"closed file", RegionOptions{Size: page, Backing: BackingFile, File: closed}, unix.EBADF, ""},
		{"file backing without file", RegionOptions{Size: page, Backing: BackingFile}, ErrInvalid, ""},
		{"memfd with a file", RegionOptions{Size: page, File: file}, ErrInvalid, ""},
		{"memfd with a mapping", RegionOptions{Size: page, Mapping: hva}, ErrInvalid, ""},
		{"foreign without mapping", RegionOptions{Size: page, Backing: BackingForeign}, ErrInvalid, ""},
		{"foreign, nothing mapped there", RegionOptions{Base: 1 << 40, Size: page, Backing: BackingForeign, Mapping: 4096}, ErrNotMapped, "nothing is mapped at 0x1000"},
		{"foreign, partly read-only", RegionOptions{Size: 4 * page, Backing: BackingForeign, Mapping: gap}, ErrDenied, "read-only"},
		{"foreign, wraps", RegionOptions{Base: 1 << 40, Size: 1 << 51, Backing: BackingForeign, Mapping: addr.HVA(minusPage)}, ErrInvalid, ""},
		{"foreign private with a descriptor", RegionOptions{Size: 4 * page, Backing: BackingForeign, Mapping: hva, File: file}, ErrInvalid, "private"},
		{"template by hand", RegionOptions{Size: page, Backing: BackingTemplate}, ErrInvalid, ""},
		{"unknown backing", RegionOptions{Size: page, Backing: 99}, ErrInvalid, ""},
		{"node that is not there", RegionOptions{Size: page, NUMA: NUMAPolicy{NUMABind, []int{1000}}}, unix.EINVAL, "1000"},
		{"unknown access", RegionOptions{Size: page, Access: 9}, ErrInvalid, ""},
		{"fill fails", RegionOptions{Size: page, Fill: func(io.WriterAt) error { return errRefused }}, errRefused, "fill"},
		{"fill past the end", RegionOptions{Size: page, Fill: func(w io.WriterAt) error {
			n, err := w.WriteAt(make([]byte, 10), page-4)
			if n != 4 {
				t.Errorf("a filler wrote %d bytes over the end, want 4", n)
			}
			return err
		}}, io.ErrShortWrite, "fill"},
	} {
		_, err := m.AddRegion(c.o)
		var e *RegionError
		if !errors.Is(err, c.want) || !errors.As(err, &e) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%s: %v, want %v that says %q", c.what, err, c.want, c.says)
		}
		if len(m.Regions()) != 1 {
			t.Fatalf("%s: there are %d regions", c.what, len(m.Regions()))
		}
	}
	if _, err := m.NewAddressSpace(SpaceOptions{}); !errors.Is(err, ErrNotSupported) {
		t.Errorf("an address space without a pool: %v", err)
	}
	if err := m.AttachView(nil); !errors.Is(err, ErrNotSupported) {
		t.Errorf("a view without a pool: %v", err)
	}
	if err := m.Check(); err != nil || m.Region() != nil {
		t.Errorf("Check %v, Region %v", err, m.Region())
	}
	if _, err := m.AllocSupervisor(1); !errors.Is(err, ErrNotSupported) {
		t.Errorf("supervisor frames without a pool: %v", err)
	}
	m.Stats()
}

// Read-only memory is filled before anybody sees it, and refuses stores.
func TestReadOnlyRegions(t *testing.T) {
	m := newPhys(t)
	file := testFile(t, 2*page)
	readOnly, err := os.Open(file.Name())
	mustDo(t, err)
	defer readOnly.Close()
	rom := mustAdd(t, m, RegionOptions{Base: 0, Size: page, Access: RegionReadOnly, Fill: func(w io.WriterAt) error {
		if len(m.Regions()) != 0 {
			t.Error("a region is seen before it was filled")
		}
		_, err := w.WriteAt([]byte("reset vector"), 0xff0)
		return err
	}})
	mustAdd(t, m, RegionOptions{Base: page, Size: 2 * page, Access: RegionReadOnly, Backing: BackingFile, File: readOnly, Populate: PopulateNow})
	mustAdd(t, m, RegionOptions{Base: 3 * page, Size: page})
	if got := mustReadPhys(t, m, 0xff0, 12); string(got) != "reset vector" {
		t.Errorf("the ROM reads %q", got)
	}
	if got := mustReadPhys(t, m, page, 2*page); !bytes.Equal(got, filePattern(2*page)) {
		t.Error("the file reads otherwise")
	}
	if !rom.ReadOnly() {
		t.Error("the ROM is not read-only")
	}
	for what, err := range map[string]error{
		"Store8":  m.Store8(1, 1),
		"Store64": m.Store64(page, 1),
		"Discard": m.Discard(0, page),
	} {
		if !errors.Is(err, ErrReadOnly) || !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := m.CompareAndSwap32(0, 0, 1); !errors.Is(err, ErrReadOnly) {
		t.Errorf("CompareAndSwap32: %v", err)
	}
	if _, err := m.Slice(0, 1, Write); !errors.Is(err, ErrReadOnly) {
		t.Errorf("Slice for writing: %v", err)
	}
	if n, err := m.WriteAt(make([]byte, 4*page), 2*page); n != 0 || !errors.Is(err, ErrReadOnly) {
		t.Errorf("WriteAt = %d, %v", n, err)
	}
	s, err := m.Slice(0xff0, 5, Read)
	mustDo(t, err)
	if string(s.Bytes()) != "reset" {
		t.Errorf("the slice has %q", s.Bytes())
	}
	s.Release()
}

// Accesses that hit allocate nothing, with a handle or without.
func TestPhysicalAccessDoesNotAllocate(t *testing.T) {
	if invariants.Enabled {
		t.Skip("checking allocates")
	}
	m := newPhys(t)
	mustAdd(t, m, RegionOptions{Size: 64 * page})
	mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: 64 * page, Backing: BackingAnonymous})
	h := m.NewHandle()
	defer h.Close()
	a, p, long := m.With(h), make([]byte, 8), make([]byte, 64*page)
	for _, base := range []addr.GPA{0, 1 << 30} {
		mustWritePhys(t, m, base, long)
		for what, op := range map[string]func() error{
			"ReadAt 8":         func() error { _, err := m.ReadAt(p, base+8); return err },
			"ReadAt 8, handle": func() error { _, err := a.ReadAt(p, base+8); return err },
			"ReadAt":           func() error { _, err := a.ReadAt(long, base); return err },
			"WriteAt":          func() error { _, err := a.WriteAt(long, base); return err },
			"Load16":           func() error { _, err := m.Load16(base); return err },
			"Store64":          func() error { return a.Store64(base, 1) },
			"CompareAndSwap64": func() error { _, err := a.CompareAndSwap64(base, 1, 2); return err },
		} {
			mustDo(t, op())
			if n := testing.AllocsPerRun(100, func() { op() }); n != 0 {
				t.Errorf("%s allocates %v times", what, n)
			}
		}
	}
}
