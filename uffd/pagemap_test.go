//go:build linux && (amd64 || arm64)

package uffd

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func openPagemap(t testing.TB) *Pagemap {
	t.Helper()
	p, err := OpenPagemap(0)
	if errors.Is(err, ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// scanned returns which of n pages from base on a scan finds.
func scanned(t testing.TB, p *Pagemap, base addr.HVA, n uint64, s Selection) []bool {
	t.Helper()
	found := make([]bool, n)
	last := base
	err := p.Scan(base, base+addr.HVA(n*page), s, func(r Run) {
		if r.Start < last || r.End <= r.Start {
			t.Errorf("run [%v, %v) after %v", r.Start, r.End, last)
		}
		last = r.End
		for at := r.Start; at < r.End; at += addr.HVA(page) {
			found[uint64(at-base)/page] = true
		}
	})
	if err != nil {
		t.Error(err)
	}
	return found
}

// Writes that nobody is asked about, found round by round: exactly those of the
// round. Scattered, so that one call's vector does not hold them.
func TestScanTracksWrites(t *testing.T) {
	for name, make := range map[string]func() *memory{
		"private": func() *memory {
			return anonymous(t, 4096, WP, FeatureFaultWP|FeatureWPUnpopulated|FeatureWPAsync)
		},
		"shared": func() *memory {
			return shared(t, 4096, WP, FeatureFaultWP|FeatureWPHugetlbShmem|FeatureWPUnpopulated|FeatureWPAsync)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := openPagemap(t)
			m := make()
			if err := m.WriteProtect(m.base, m.n*page, Armed); err != nil {
				t.Fatal(err)
			}
			rng := rand.New(rand.NewPCG(1, 2))
			for round := range 4 {
				var want [4096]bool
				for range 1500 { // most alone: more runs than a vector holds
					i := rng.Uint64N(m.n)
					want[i] = true
					m.store(i, byte(round)+1)
				}
				runs := 0
				for i := range want {
					if want[i] && (i == 0 || !want[i-1]) {
						runs++
					}
				}
				if runs <= vecLen {
					t.Fatalf("%d runs fit one vector of %d: the test shows nothing", runs, vecLen)
				}
				got := scanned(t, p, m.base, m.n, Written())
				for i := range want {
					if got[i] != want[i] {
						t.Fatalf("round %d, page %d: found written %v, want %v", round, i, got[i], want[i])
					}
				}
			}
			for i, found := range scanned(t, p, m.base, m.n, Written()) {
				if found {
					t.Fatalf("page %d is written still after it was armed again", i)
				}
			}
			var e [1]Event
			if n, err := m.Read(e[:]); n != 0 || err != nil {
				t.Errorf("%d events, %v: the kernel was to settle all of them", n, err)
			}
		})
	}
}

func TestScanSelects(t *testing.T) {
	p := openPagemap(t)
	m := anonymous(t, 8, Missing|WP, FeatureFaultWP)
	if _, err := m.Copy(m.at(1), pages(2, 1), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Copy(m.at(5), pages(1, 1), Armed); err != nil {
		t.Fatal(err)
	}
	if _, err := m.Zero(m.at(6), page, 0); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		s    Selection
		want [8]bool
	}{
		{"present", Selection{All: PagePresent}, [8]bool{1: true, 2: true, 5: true, 6: true}},
		{"populated", Populated(), [8]bool{1: true, 2: true, 5: true}},
		{"armed", Selection{All: PagePresent, Not: PageWritten}, [8]bool{5: true}},
		{"zero", Selection{Any: PageZero | PageSwapped}, [8]bool{6: true}},
		{"not present", Selection{Not: PagePresent}, [8]bool{0: true, 3: true, 4: true, 7: true}},
	} {
		if got := [8]bool(scanned(t, p, m.base, 8, tc.s)); got != tc.want {
			t.Errorf("%s: pages %v, want %v", tc.name, got, tc.want)
		}
	}
	var got []Run
	s := Selection{All: PagePresent, Report: PageWritten | PageZero}
	if err := p.Scan(m.base, m.at(8), s, func(r Run) { got = append(got, r) }); err != nil {
		t.Error(err)
	}
	want := []Run{{m.at(1), m.at(3), PageWritten}, {m.at(5), m.at(6), 0}, {m.at(6), m.at(7), PageWritten | PageZero}}
	if len(got) != len(want) || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Errorf("runs %+v, want %+v", got, want)
	}
}

func TestScanErrors(t *testing.T) {
	p := openPagemap(t)
	m := anonymous(t, 2, Missing|WP, FeatureFaultWP)
	none := func(r Run) { t.Errorf("run %+v", r) }
	for _, tc := range []struct {
		name       string
		start, end addr.HVA
		s          Selection
		want       error
	}{
		{"nothing", m.at(0), m.at(0), Populated(), nil},
		{"backwards", m.at(1), m.at(0), Populated(), ErrInvalid},
		{"unaligned", m.at(0) + 1, m.at(1), Populated(), ErrInvalid},
		{"a category that is none", m.at(0), m.at(1), Selection{All: 1 << 40}, ErrInvalid},
		{"wanted and not wanted", m.at(0), m.at(1), Selection{All: PagePresent, Not: PagePresent}, ErrInvalid},
		{"OnlyAsync alone", m.at(0), m.at(1), Selection{All: PageWritten, OnlyAsync: true}, ErrInvalid},
		{"memory that is not tracked", m.at(0), m.at(2), Written(), unix.EPERM},
	} {
		wantErr(t, tc.name, 0, 0, p.Scan(tc.start, tc.end, tc.s, none), tc.want)
	}
	closed, err := OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(closed.Close(), closed.Close()); err != nil {
		t.Error(err)
	}
	wantErr(t, "closed", 0, 0, closed.Scan(m.at(0), m.at(1), Populated(), none), ErrClosed)
	if _, err := OpenPagemap(1 << 29); !errors.Is(err, unix.ENOENT) {
		t.Errorf("of no process: %v, want ENOENT", err)
	}
	// What PAGEMAP_SCAN is not: a file that knows no such request.
	other := &Pagemap{handle{fd: testutil.NewMemfd(t, page)}}
	if _, err := other.call(&pmScanArg{}); !errors.Is(err, ErrNotSupported) || !errors.Is(err, unix.ENOTTY) {
		t.Errorf("of an old kernel: %v, want ErrNotSupported", err)
	}
}

// A page that is swapped out holds data: mincore calls it absent, and a save that
// went by that would lose it.
func TestTrap08SwappedPagesAreFound(t *testing.T) {
	needSwap(t)
	p := openPagemap(t)
	const n = 256
	base := testutil.MapAnonymous(t, n*page)
	if err := testutil.Store(base, pages(n, 7)); err != nil {
		t.Fatal(err)
	}
	swapped := 0
	for deadline := time.Now().Add(2 * time.Minute); swapped == 0 && time.Now().Before(deadline); {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(base), uintptr(n*page), unix.MADV_PAGEOUT); errno != 0 {
			t.Skipf("madvise(MADV_PAGEOUT): %v; use Linux 5.4 or later", errno)
		}
		for _, out := range scanned(t, p, hva(base), n, Selection{All: PageSwapped}) {
			if out {
				swapped++
			}
		}
	}
	if swapped == 0 {
		t.Skip("the kernel swaps nothing out; free some swap")
	}
	for i, found := range scanned(t, p, hva(base), n, Populated()) {
		if !found {
			t.Errorf("page %d of %d would not be saved (%d are swapped out)", i, n, swapped)
		}
	}
	resident := 0
	vec := make([]byte, n)
	if err := mincore(base, n*page, vec); err != nil {
		t.Fatal(err)
	}
	for _, v := range vec {
		resident += int(v & 1)
	}
	t.Logf("%d of %d pages are swapped out; mincore says that %d are there", swapped, n, resident)
}

// needSwap skips t unless there is swap: the host's, or, as root, a file for as
// long as the test takes.
func needSwap(t *testing.T) {
	t.Helper()
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		t.Fatal(err)
	}
	if info.Freeswap > 0 {
		return
	}
	path := filepath.Join(t.TempDir(), "swap")
	if err := makeSwapFile(path, 4<<20); err != nil {
		t.Fatal(err)
	}
	if err := swapOn(path); err != nil {
		t.Skipf("no swap here, and a file of the test's own cannot be used (%v); run it as root, with TMPDIR on a disk", err)
	}
	t.Cleanup(func() {
		if err := swapOff(path); err != nil {
			t.Error("swapoff:", err)
		}
	})
}

// makeSwapFile does what mkswap(8) does: version 1, the last page, the magic.
func makeSwapFile(path string, size int64) error {
	b := make([]byte, size)
	b[1024] = 1
	last := uint32(uint64(size)/page - 1)
	for i := range 4 {
		b[1028+i] = byte(last >> (8 * i))
	}
	copy(b[page-10:], "SWAPSPACE2")
	return errors.Join(os.WriteFile(path, b, 0o600), syncFile(path))
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
