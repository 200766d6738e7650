package sys

import (
	"bytes"
	"errors"
	"math"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { testutil.Main(m) }

const page = 4096

func newMemfd(t *testing.T, size uint64) *Memfd {
	t.Helper()
	m, err := NewMemfd("guestmm-test", size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func mapped(t *testing.T, m *Memfd) []byte {
	t.Helper()
	b, err := m.Map()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Unmap(b); err != nil {
			t.Error(err)
		}
	})
	return b
}

// A mapping never faults for being past the end: nobody can shrink the memfd,
// not even through another descriptor.
func TestR10MemfdCannotShrink(t *testing.T) {
	m := newMemfd(t, 8*page)
	fd := int(m.file.Fd())
	for _, size := range []int64{0, page, 8*page - 1} {
		if err := unix.Ftruncate(fd, size); !errors.Is(err, unix.EPERM) {
			t.Errorf("ftruncate to %d: %v, want EPERM", size, err)
		}
	}
	again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Truncate(page); !errors.Is(err, unix.EPERM) {
		t.Errorf("truncate through another descriptor: %v, want EPERM", err)
	}
	if seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0); err != nil || seals&unix.F_SEAL_SHRINK == 0 {
		t.Errorf("seals %#x, %v", seals, err)
	}
}

// Both mappings show one memory, and children of the host process get neither.
func TestMappingsShareMemory(t *testing.T) {
	m := newMemfd(t, 4*page)
	a, b := mapped(t, m), mapped(t, m)
	if len(a) != 4*page || len(b) != 4*page || &a[0] == &b[0] {
		t.Fatalf("mappings of %d and %d bytes", len(a), len(b))
	}
	if err := Populate(a); err != nil {
		t.Fatal(err)
	}
	a[2*page+5] = 42
	if b[2*page+5] != 42 {
		t.Error("a store through one mapping is not seen through the other")
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, area := range strings.Split(string(maps), "VmFlags:")[1:] {
		flags, _, _ := strings.Cut(area, "\n")
		if strings.Contains(flags, " dc ") && strings.Contains(flags, " dd ") {
			n++
		}
	}
	if n < 2 {
		t.Errorf("%d mappings are left out of forks and core dumps, want 2", n)
	}
	if flags, err := unix.FcntlInt(m.file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %#x, %v: programs that the host executes get it", flags, err)
	}
}

func TestPunchHoleReadsZero(t *testing.T) {
	m := newMemfd(t, 16*page)
	b := mapped(t, m)
	if err := Populate(b); err != nil {
		t.Fatal(err)
	}
	for i := range b {
		b[i] = 1
	}
	before := allocated(t, m)
	if err := m.PunchHole(4*page, 8*page); err != nil {
		t.Fatal(err)
	}
	if after := allocated(t, m); after != before-8*page {
		t.Errorf("%d bytes are allocated after giving 8 pages back, %d before", after, before)
	}
	if err := m.Allocate(4*page, 8*page); err != nil {
		t.Fatal(err)
	}
	if after := allocated(t, m); after != before {
		t.Errorf("%d bytes are allocated, want %d", after, before)
	}
	if !bytes.Equal(b[4*page:12*page], make([]byte, 8*page)) {
		t.Error("a hole does not read as zero")
	}
	if b[4*page-1] != 1 || b[12*page] != 1 {
		t.Error("more than the hole was given back")
	}
	if size := sizeOf(t, m); size != 16*page {
		t.Errorf("the memfd has %d bytes, want %d", size, 16*page)
	}
}

func allocated(t *testing.T, m *Memfd) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(m.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func sizeOf(t *testing.T, m *Memfd) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(m.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Size
}

// Populating says what a plain touch would die of.
func TestR10PopulateFailsWhereATouchWouldKill(t *testing.T) {
	m := newMemfd(t, 4*page)
	b, err := m.Map()
	if err != nil {
		t.Fatal(err)
	}
	if err := Populate(b); err != nil {
		t.Fatal(err)
	}
	// A range that is no longer mapped.
	if err := Unmap(b); err != nil {
		t.Fatal(err)
	}
	if err := Populate(b); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("populating what is not mapped: %v, want ENOMEM", err)
	}
	// Pages past the end of what is behind the mapping: a SIGBUS to touch.
	fd, err := unix.MemfdCreate("guestmm-test-short", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Ftruncate(fd, page); err != nil {
		t.Fatal(err)
	}
	short, err := unix.Mmap(fd, 0, 2*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(short)
	if err := Populate(short[:page]); err != nil {
		t.Errorf("populating what is there: %v", err)
	}
	if err := Populate(short); !errors.Is(err, unix.EFAULT) {
		t.Errorf("populating past the end: %v, want EFAULT", err)
	}
	// Read-only mappings cannot be populated for writing.
	ro, err := unix.Mmap(fd, 0, page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(ro)
	if err := Populate(ro); err == nil {
		t.Error("populating a read-only mapping for writing: no error")
	}
}

func TestAllocateBeyondTheEndIsRefused(t *testing.T) {
	m := newMemfd(t, 4*page)
	for _, r := range [][2]uint64{{0, 0}, {math.MaxInt64 - page + 1, 2 * page}} {
		if err := m.Allocate(r[0], r[1]); err == nil {
			t.Errorf("Allocate(%#x, %#x): no error", r[0], r[1])
		}
	}
}

// What fails on the way leaves no descriptor: TestMain looks for one too.
func TestNoDescriptorIsLeftOnFailure(t *testing.T) {
	before := openFDs(t)
	if m, err := NewMemfd("guestmm-test", math.MaxUint64); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a memfd of 2^64-1 bytes: %v, %v; want EINVAL", m, err)
	}
	if m, err := NewMemfd(strings.Repeat("n", 300), page); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a name that is too long: %v, %v; want EINVAL", m, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	few := unix.Rlimit{Cur: 0, Max: limit.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &few); err != nil {
		t.Fatal(err)
	}
	m, err := NewMemfd("guestmm-test", page)
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("with no descriptor left: %v, %v; want EMFILE", m, err)
	}
	m = newMemfd(t, 1<<62) // more than there are addresses
	if _, err := m.Map(); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("mapping 2^62 bytes: %v, want ENOMEM", err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if after := openFDs(t); after != before {
		t.Errorf("%d descriptors are open, %d before", after, before)
	}
	if _, err := m.Map(); err == nil {
		t.Error("a closed memfd was mapped")
	}
}

func openFDs(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
