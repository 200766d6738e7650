//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/internal/testutil"
)

// huge returns n registered pages of 2 MiB.
func huge(t *testing.T, n uint64, m Mode, features Features) *memory {
	t.Helper()
	testutil.HugePages(t, int(n)+2) // and two for the probes
	fd, err := unix.MemfdCreate("guestmm-test", unix.MFD_CLOEXEC|unix.MFD_HUGETLB|unix.MFD_HUGE_2MB)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Ftruncate(fd, int64(n*hugePage)); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(fd, 0, 0, int64(n*hugePage)); err != nil {
		t.Fatalf("%d pages of 2 MiB: %v", n, err)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, int64(n*hugePage)); err != nil {
		t.Fatal(err)
	}
	base := testutil.MapShared(t, fd, n*hugePage)
	mem := &memory{opened(t, features), t, hva(base), n, fd}
	if _, err := mem.Register(mem.base, n*hugePage, m); err != nil {
		t.Fatal(err)
	}
	return mem
}

func TestHugetlb(t *testing.T) {
	m := huge(t, 2, Missing|WP, FeatureMissingHugetlb|FeatureFaultWP|FeatureWPHugetlbShmem)
	for _, p := range []*probe{probeHugetlb, probeHugetlbMinor, probeHugetlbWP} {
		if err := p.try(); err != nil && !errors.Is(err, ErrNotSupported) {
			t.Errorf("%s: %v", p.name, err)
		}
	}
	src := make([]byte, hugePage)
	src[0] = 5
	done, err := m.Copy(m.base, src[:page], 0)
	wantErr(t, "a small page", done, 0, err, unix.EINVAL)
	read := testutil.Go(func() {
		var b [1]byte
		if err := testutil.Load(uint64(m.base)+3*page, b[:]); err != nil {
			t.Error(err)
		}
	})
	if e := m.event(); e.Kind != EventFault || e.Page(hugePage) != m.base {
		t.Errorf("got %v, want a fault in the first page", &e)
	}
	done, err = m.Copy(m.base, src, Armed)
	wantErr(t, "armed copy", done, hugePage, err, nil)
	testutil.Proceeds(t, read, "the reader")
	n, err := m.FillZero(m.base, 2*hugePage, hugePage, Armed)
	if err != nil || n != (Filled{hugePage, hugePage}) {
		t.Errorf("filled %+v, %v", n, err)
	}
	wrote := testutil.Go(func() {
		if err := testutil.Store(uint64(m.base)+hugePage+5*page, []byte{1}); err != nil {
			t.Error(err)
		}
	})
	if e := m.event(); e.Flags&FaultWP == 0 || e.Page(hugePage) != m.base+hugePage {
		t.Errorf("got %v, want a write-protect fault in the second page", &e)
	}
	if err := m.WriteProtect(m.base, 2*hugePage, 0); err != nil {
		t.Fatal(err)
	}
	testutil.Proceeds(t, wrote, "the writer")
}

// A hole that is armed and then filled by a plain copy is armed no more: the copy
// has to ask for it again.
func TestTrap05PlainCopyDropsTheMark(t *testing.T) {
	m := huge(t, 1, Missing|WP, FeatureMissingHugetlb|FeatureFaultWP|FeatureWPHugetlbShmem|FeatureWPUnpopulated)
	if err := m.WriteProtect(m.base, hugePage, Armed); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Copy(m.base, make([]byte, hugePage), Armed); err != nil {
		t.Fatal(err)
	}
	wrote := testutil.Go(func() {
		if err := testutil.Store(uint64(m.base), []byte{1}); err != nil {
			t.Error(err)
		}
	})
	if e := m.event(); e.Flags&FaultWP == 0 {
		t.Errorf("got %v, want a write-protect fault", &e)
	}
	if err := m.WriteProtect(m.base, hugePage, 0); err != nil {
		t.Fatal(err)
	}
	testutil.Proceeds(t, wrote, "the writer")
}

// No huge page is left. The kernel says EEXIST of a page that is not there, once
// its page table has room for one: whoever goes by that serves the same fault for
// ever, which the doc of Copy says and uffd/pager guards against.
func TestTrap15HugetlbPoolUsedUpLooksLikeEEXIST(t *testing.T) {
	f := opened(t, FeatureMissingHugetlb)
	testutil.NoHugePages(t)
	at, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, hugePage, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_NORESERVE, ^uintptr(0), 0)
	if errno != 0 {
		t.Skipf("mmap: %v; use a kernel with CONFIG_HUGETLBFS", errno)
	}
	defer unix.Syscall(unix.SYS_MUNMAP, at, hugePage, 0)
	if _, err := f.Register(hva(uint64(at)), hugePage, Missing); err != nil {
		t.Fatal(err)
	}
	done, err := f.Copy(hva(uint64(at)), zeroBytes[:], 0)
	if done != 0 || !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EEXIST) {
		t.Errorf("%#x bytes done, %v; want none, and ENOMEM or EEXIST", done, err)
	}
}
