//go:build linux && (amd64 || arm64)

package uffd

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// Both encodings of "nothing done", and answers that no kernel should give: none
// of them is progress.
func TestTrap01NothingDoneInEitherEncoding(t *testing.T) {
	asked := 4 * page
	for _, tc := range []struct {
		answer int64
		want   uint64
	}{
		{0, 0},                               // before Linux 6.15
		{-int64(unix.EAGAIN), 0},             // since
		{-int64(unix.EEXIST), 0},             // both
		{-int64(page), 0},                    // an errno it is, whatever it looks like
		{int64(page), page},                  // a part
		{int64(asked), asked},                // all
		{int64(asked + page), 0},             // more than was asked for
		{int64(page) - 1, 0},                 // no whole page
		{math.MinInt64, 0},                   // as small as can be
		{math.MaxInt64 - int64(page) + 1, 0}, // as large as can be
	} {
		if got := progress(tc.answer, asked); got != tc.want {
			t.Errorf("answer %d to %#x bytes: %#x done, want %#x", tc.answer, asked, got, tc.want)
		}
	}
}

// The kernel of this machine, with an event unread: nothing is done, and it
// says EAGAIN; so does every call that installs.
func TestTrap01EAGAINWhileARemoveIsUnread(t *testing.T) {
	m := anonymous(t, 8, Missing|WP, FeatureEventRemove|FeatureFaultWP)
	if _, err := m.Copy(m.at(0), pages(4, 1), 0); err != nil {
		t.Fatal(err)
	}
	removed := m.startRemove(0, 2)
	testutil.Parked(t, removed, "madvise, whose event nobody has read")

	src := pages(2, 2)
	done, err := m.Copy(m.at(4), src, 0)
	wantErr(t, "copy", done, 0, err, unix.EAGAIN)
	done, err = m.Zero(m.at(4), 2*page, 0)
	wantErr(t, "zero", done, 0, err, unix.EAGAIN)
	done, err = m.Zero(m.at(4), 2*page, Armed)
	wantErr(t, "armed zero", done, 0, err, unix.EAGAIN)
	wantErr(t, "write-protect", 0, 0, m.WriteProtect(m.at(0), page, Armed), unix.EAGAIN)
	n, err := m.Fill(m.at(4), src, page, 0)
	wantErr(t, "fill", n.Done(), 0, err, unix.EAGAIN)

	e := m.event()
	if e.Kind != EventRemove || e.Start != m.at(0) || e.End != m.at(2) {
		t.Errorf("got %v, want remove [%v, %v)", &e, m.at(0), m.at(2))
	}
	if err := testutil.Proceeds(t, removed, "madvise"); err != nil {
		t.Error(err)
	}
	// The thread has gone on: now it goes.
	done, err = m.Copy(m.at(4), src, 0)
	wantErr(t, "copy afterwards", done, 2*page, err, nil)
	if got := m.load(5); got != 2 {
		t.Errorf("page 5 holds %d, want 2", got)
	}
}

// startRemove gives pages back in a goroutine that the event holds up, and returns
// when that is there to be read.
func (m *memory) startRemove(i, n uint64) <-chan error {
	m.t.Helper()
	done := make(chan error, 1)
	go func() {
		_, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.at(i)), uintptr(n*page), unix.MADV_DONTNEED)
		if errno != 0 {
			done <- errno
			return
		}
		done <- nil
	}()
	untilReadable(m.t, m.FD)
	return done
}

func TestCopy(t *testing.T) {
	for name, make := range map[string]func() *memory{
		"anonymous": func() *memory { return anonymous(t, 32, Missing, 0) },
		"shared":    func() *memory { return shared(t, 32, Missing, FeatureMissingShmem) },
	} {
		t.Run(name, func(t *testing.T) {
			m := make()
			src := pages(16, 0)
			for i := range src {
				src[i] = byte(i/int(page)) + 1
			}
			done, err := m.Copy(m.at(8), src, 0)
			wantErr(t, "copy of 16 pages", done, 16*page, err, nil)
			got := pages(16, 0)
			if err := testutil.Load(uint64(m.at(8)), got); err != nil || !bytes.Equal(got, src) {
				t.Errorf("the copy differs from its source, or %v", err)
			}
			done, err = m.Copy(m.at(9), src[:2*page], 0)
			wantErr(t, "copy onto a page that is there", done, 0, err, unix.EEXIST)
			done, err = m.Copy(m.at(6), src[:4*page], 0)
			wantErr(t, "copy into one", done, 2*page, err, unix.EEXIST)
			done, err = m.CopyFrom(m.at(30), m.at(8), 2*page, DontWake)
			wantErr(t, "copy from an address", done, 2*page, err, nil)
			if a, b := m.load(30), m.load(31); a != 1 || b != 2 {
				t.Errorf("copied %d and %d, want 1 and 2", a, b)
			}
		})
	}
}

// The reasons for which a copy can fail, each by name.
func TestCopyErrors(t *testing.T) {
	m := anonymous(t, 8, Missing, 0)
	src := pages(2, 1)
	for _, tc := range []struct {
		name string
		dst  addr.HVA
		src  []byte
		fl   Flags
		want error
	}{
		{"no bytes", m.at(0), nil, 0, ErrInvalid},
		{"unaligned address", m.at(0) + 1, src, 0, ErrInvalid},
		{"part of a page", m.at(0), src[:page+1], 0, ErrInvalid},
		{"past the end of all addresses", addr.HVA(-page), src, 0, ErrInvalid},
		{"a flag of another call", m.at(0), src, AllowHoles, ErrInvalid},
		{"armed without WP", m.at(0), src, Armed, unix.EINVAL},
		{"not registered", addr.HVA(testutil.MapAnonymous(t, 2*page)), src, 0, unix.ENOENT},
		{"not mapped", addr.HVA(page), src, 0, unix.ENOENT},
		{"not of user space", addr.HVA(1 << 63), src, 0, unix.EINVAL},
	} {
		done, err := m.Copy(tc.dst, tc.src, tc.fl)
		wantErr(t, tc.name, done, 0, err, tc.want)
		if tc.want == ErrInvalid && !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v is no EINVAL", tc.name, err)
		}
	}
	done, err := m.CopyFrom(m.at(0), 0, page, 0)
	wantErr(t, "source that is not mapped", done, 0, err, unix.EFAULT)
	done, err = m.CopyFrom(m.at(0), addr.HVA(-page+8), page, 0)
	wantErr(t, "source past the end of all addresses", done, 0, err, ErrInvalid)
}

// A source that ends before it should, as a file that somebody has cut: EFAULT
// after what there was, and no signal.
func TestCopyFromTruncatedFile(t *testing.T) {
	m := anonymous(t, 4, Missing, 0)
	fd := testutil.NewMemfd(t, 4*page)
	src := addr.HVA(testutil.MapShared(t, fd, 4*page))
	if err := unix.Ftruncate(fd, int64(2*page)); err != nil {
		t.Fatal(err)
	}
	done, err := m.CopyFrom(m.at(0), src, 4*page, 0)
	wantErr(t, "copy", done, 2*page, err, unix.EFAULT)
}

// A file system without room: what fits is done, and ENOMEM.
func TestCopyIntoAFullFileSystem(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", 2*page)); err != nil {
		t.Skipf("mounting a tmpfs of two pages: %v; run it as root", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	file, err := os.Create(filepath.Join(dir, "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(int64(4 * page)); err != nil {
		t.Fatal(err)
	}
	base := hva(testutil.MapShared(t, int(file.Fd()), 4*page))
	f := opened(t, FeatureMissingShmem)
	if _, err := f.Register(base, 4*page, Missing); err != nil {
		t.Fatal(err)
	}
	done, err := f.Copy(base, pages(4, 1), 0)
	wantErr(t, "copy of four pages", done, 2*page, err, unix.ENOMEM)
}

func TestZero(t *testing.T) {
	m := anonymous(t, 8, Missing|WP, FeatureFaultWP)
	done, err := m.Zero(m.at(0), 4*page, 0)
	wantErr(t, "zero", done, 4*page, err, nil)
	if got := m.load(3); got != 0 {
		t.Errorf("page 3 holds %d", got)
	}
	done, err = m.Zero(m.at(3), 2*page, 0)
	wantErr(t, "zero of what is there", done, 0, err, unix.EEXIST)
	for name, r := range map[string][2]uint64{
		"nothing": {uint64(m.at(0)), 0}, "unaligned": {uint64(m.at(0)) + 8, page}, "overflow": {-page, 2 * page},
	} {
		for _, fl := range []Flags{0, Armed} {
			done, err := m.Zero(addr.HVA(r[0]), r[1], fl)
			wantErr(t, name, done, 0, err, ErrInvalid)
		}
	}
	done, err = m.Zero(m.at(4), page, AllowHoles)
	wantErr(t, "a flag of another call", done, 0, err, ErrInvalid)
}

// A zero page that is armed afterwards lets a write through in between; one that
// is armed from the start tells of the first write there ever is.
func TestTrap04ArmedZeroFromItsFirstInstant(t *testing.T) {
	m := anonymous(t, 1024, Missing|WP, FeatureFaultWP)
	done, err := m.Zero(m.at(0), m.n*page, Armed)
	wantErr(t, "armed zero of 4 MiB", done, m.n*page, err, nil)
	if p, err := OpenPagemap(0); err == nil {
		defer p.Close()
		for i, shared := range scanned(t, p, m.base, m.n, Selection{All: PageZero}) {
			if shared {
				t.Fatalf("page %d is the kernel's page of zeroes: it was armed afterwards", i)
			}
		}
	}
	for _, i := range []uint64{0, 511, 512, 1023} {
		wrote := testutil.Go(func() { m.store(i, 7) })
		e := m.event()
		if e.Kind != EventFault || e.Flags&FaultWP == 0 || e.Page(page) != m.at(i) {
			t.Errorf("first write to page %d: got %v, want a write-protect fault", i, &e)
		}
		testutil.Parked(t, wrote, "a write to an armed page")
		if err := m.WriteProtect(m.at(i), page, 0); err != nil {
			t.Error(err)
		}
		testutil.Proceeds(t, wrote, "the write")
		if got := m.load(i); got != 7 {
			t.Errorf("page %d holds %d, want 7", i, got)
		}
	}
	done, err = m.Zero(m.at(0), page, Armed)
	wantErr(t, "again", done, 0, err, unix.EEXIST)
}

// Writers that wait for the page when it comes: none gets by.
func TestTrap04WhoWaitsForAnArmedZeroIsTrapped(t *testing.T) {
	const n = 64
	m := anonymous(t, n, Missing|WP, FeatureFaultWP)
	w := m.waiter()
	var writers [n]<-chan struct{}
	for i := range writers {
		writers[i] = testutil.Go(func() { m.store(uint64(i), 1) })
	}
	count := func(what string, want FaultFlags) {
		t.Helper()
		for left := n; left > 0; {
			var events [readBatch]Event
			k, err := w.Wait(events[:], 2*time.Minute)
			if err != nil || k == 0 {
				t.Fatalf("%s: %d of %d are not told of, %v", what, left, n, err)
			}
			for _, e := range events[:k] {
				if e.Flags&FaultWP != want {
					t.Errorf("%s: got %v", what, &e)
				}
			}
			left -= k
		}
	}
	count("writers of missing pages", 0)
	if _, err := m.Zero(m.base, n*page, Armed); err != nil {
		t.Fatal(err)
	}
	count("writers of armed pages", FaultWP)
	for i := range uint64(n) {
		if got := m.load(i); got != 0 {
			t.Errorf("page %d was written to, and nobody was told", i)
		}
	}
	if err := m.WriteProtect(m.base, n*page, 0); err != nil {
		t.Fatal(err)
	}
	for _, done := range writers {
		testutil.Proceeds(t, done, "a writer")
	}
}

// Arming that is asked for where it cannot be had is an error, not an unarmed
// page; and arming does not reach what is not there, unless the kernel was told
// to.
func TestTrap05ArmingNeedsItsRegistration(t *testing.T) {
	m := anonymous(t, 4, Missing, FeatureFaultWP)
	done, err := m.Copy(m.at(0), pages(1, 1), Armed)
	wantErr(t, "armed copy without WP", done, 0, err, unix.EINVAL)
	wantErr(t, "write-protect without WP", 0, 0, m.WriteProtect(m.at(0), page, Armed), unix.ENOENT)
}

func TestTrap05ArmingSkipsAbsentPages(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features Features
		reported bool
	}{
		{"without wp-unpopulated", FeatureFaultWP, false},
		{"with wp-unpopulated", FeatureFaultWP | FeatureWPUnpopulated, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := anonymous(t, 1, WP, tc.features)
			if err := m.WriteProtect(m.at(0), page, Armed); err != nil {
				t.Fatal(err)
			}
			wrote := testutil.Go(func() { m.store(0, 1) })
			if !tc.reported {
				testutil.Proceeds(t, wrote, "a write that nobody is told of")
				var e [1]Event
				if n, err := m.Read(e[:]); n != 0 || err != nil {
					t.Errorf("%d events, %v", n, err)
				}
				return
			}
			if e := m.event(); e.Flags&FaultWP == 0 {
				t.Errorf("got %v, want a write-protect fault", &e)
			}
			testutil.Parked(t, wrote, "a write to an armed page")
			if err := m.WriteProtect(m.at(0), page, 0); err != nil {
				t.Error(err)
			}
			testutil.Proceeds(t, wrote, "the write")
		})
	}
}

// Pages that are there in the middle of a range: they keep what they hold, the
// rest is filled, and both are counted.
func TestTrap07FillGoesOnAfterWhatExists(t *testing.T) {
	features := FeatureMissingShmem | FeatureMinorShmem
	for name, tc := range map[string]struct {
		make func() *memory
		fill func(m *memory, i, n uint64) (Filled, error)
		want byte
	}{
		"copy": {
			func() *memory { return anonymous(t, 16, Missing, 0) },
			func(m *memory, i, n uint64) (Filled, error) { return m.Fill(m.at(i), pages(n, 9), page, 0) }, 9,
		},
		"zero": {
			func() *memory { return anonymous(t, 16, Missing, 0) },
			func(m *memory, i, n uint64) (Filled, error) { return m.FillZero(m.at(i), n*page, page, 0) }, 0,
		},
		"continue": {
			func() *memory {
				m := shared(t, 16, Minor, features)
				if _, err := unix.Pwrite(m.fd, pages(16, 3), 0); err != nil {
					t.Fatal(err)
				}
				return m
			},
			func(m *memory, i, n uint64) (Filled, error) { return m.FillContinue(m.at(i), n*page, page, 0) }, 3,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := tc.make()
			kept := []uint64{0, 3, 4, 9, 15} // the first, a pair, one, the last
			for _, i := range kept {
				var err error
				if name == "continue" {
					_, err = m.Continue(m.at(i), page, 0)
				} else {
					_, err = m.Copy(m.at(i), pages(1, 5), 0)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			n, err := tc.fill(m, 0, 16)
			if want := (Filled{11 * page, 5 * page}); err != nil || n != want {
				t.Errorf("filled %+v, %v; want %+v", n, err, want)
			}
			for i := range m.n {
				want := tc.want
				if name != "continue" && bytes.IndexByte([]byte{0, 3, 4, 9, 15}, byte(i)) >= 0 {
					want = 5
				}
				if got := m.load(i); got != want {
					t.Errorf("page %d holds %d, want %d", i, got, want)
				}
			}
			n, err = tc.fill(m, 0, 16)
			if want := (Filled{0, 16 * page}); err != nil || n != want {
				t.Errorf("once more: filled %+v, %v; want %+v", n, err, want)
			}
		})
	}
	m := anonymous(t, 4, Missing, 0)
	for _, bad := range []uint64{0, 3, page / 2, page + 1, 4 * page << 1} {
		n, err := m.Fill(m.at(0), pages(4, 1), bad, 0)
		wantErr(t, "page size", n.Done(), 0, err, ErrInvalid)
	}
}

// One who lost the race against another install may sleep on a page that is
// there: Fill wakes it.
func TestFillWakesWhoWaitsForAPageThatIsThere(t *testing.T) {
	m := anonymous(t, 2, Missing, 0)
	read := testutil.Go(func() {
		if got := m.load(0); got != 1 {
			t.Errorf("read %d, want 1", got)
		}
	})
	m.event()
	if _, err := m.Copy(m.at(0), pages(1, 1), DontWake); err != nil {
		t.Fatal(err)
	}
	testutil.Parked(t, read, "a reader that nobody has woken")
	if n, err := m.Fill(m.at(0), pages(2, 2), page, DontWake); err != nil || n != (Filled{page, page}) {
		t.Fatal(n, err)
	}
	testutil.Parked(t, read, "a reader that nobody has woken")
	if n, err := m.Fill(m.at(0), pages(2, 2), page, 0); err != nil || n != (Filled{0, 2 * page}) {
		t.Fatal(n, err)
	}
	testutil.Proceeds(t, read, "the reader")
}

func TestContinue(t *testing.T) {
	m := shared(t, 8, Minor|WP, FeatureMinorShmem|FeatureFaultWP|FeatureWPHugetlbShmem)
	if _, err := unix.Pwrite(m.fd, pages(4, 6), 0); err != nil {
		t.Fatal(err)
	}
	read := testutil.Go(func() {
		if got := m.load(1); got != 6 {
			t.Errorf("read %d, want 6", got)
		}
	})
	if e := m.event(); e.Flags&FaultMinor == 0 || e.Page(page) != m.at(1) {
		t.Errorf("got %v, want a minor fault on page 1", &e)
	}
	done, err := m.Continue(m.at(0), 3*page, 0)
	wantErr(t, "continue", done, 3*page, err, nil)
	testutil.Proceeds(t, read, "the reader")
	done, err = m.Continue(m.at(2), 2*page, 0)
	wantErr(t, "continue of what is mapped", done, 0, err, unix.EEXIST)
	done, err = m.Continue(m.at(3), 3*page, 0)
	wantErr(t, "continue into what is not in the page cache", done, page, err, unix.EFAULT)
	done, err = m.Continue(m.at(3), page, AllowHoles)
	wantErr(t, "a flag of another call", done, 0, err, ErrInvalid)

	// Armed from its first instant on.
	if _, err := unix.Pwrite(m.fd, pages(1, 6), int64(5*page)); err != nil {
		t.Fatal(err)
	}
	done, err = m.Continue(m.at(5), page, Armed)
	wantErr(t, "armed continue", done, page, err, nil)
	wrote := testutil.Go(func() { m.store(5, 1) })
	if e := m.event(); e.Flags&FaultWP == 0 {
		t.Errorf("got %v, want a write-protect fault", &e)
	}
	if err := m.WriteProtect(m.at(5), page, 0); err != nil {
		t.Error(err)
	}
	testutil.Proceeds(t, wrote, "the write")
}

func TestMove(t *testing.T) {
	m := anonymous(t, 8, Missing, FeatureMove)
	src := addr.HVA(testutil.MapAnonymous(t, 4*page))
	if err := testutil.Store(uint64(src), pages(2, 8)); err != nil {
		t.Fatal(err)
	}
	done, err := m.Move(m.at(0), src, 3*page, 0)
	wantErr(t, "move into a hole", done, 2*page, err, unix.ENOENT)
	if got := m.load(1); got != 8 {
		t.Errorf("page 1 holds %d, want 8", got)
	}
	var b [1]byte
	if err := testutil.Load(uint64(src), b[:]); err != nil || b[0] != 0 {
		t.Errorf("the source holds %d, %v: it was not moved but copied", b[0], err)
	}
	if err := testutil.Store(uint64(src)+3*page, pages(1, 4)); err != nil {
		t.Fatal(err)
	}
	done, err = m.Move(m.at(4), src+addr.HVA(page), 3*page, AllowHoles)
	wantErr(t, "move with holes", done, 3*page, err, nil)
	if got := m.load(6); got != 4 {
		t.Errorf("page 6 holds %d, want 4", got)
	}
	if err := testutil.Store(uint64(src), pages(1, 8)); err != nil {
		t.Fatal(err)
	}
	done, err = m.Move(m.at(0), src, page, 0)
	wantErr(t, "move onto a page that is there", done, 0, err, unix.EEXIST)
	done, err = m.Move(m.at(0), src+1, page, 0)
	wantErr(t, "unaligned source", done, 0, err, ErrInvalid)
	done, err = m.Move(m.at(7), src, page, Armed)
	wantErr(t, "a flag of another call", done, 0, err, ErrInvalid)
}

// A system call that meets a poisoned page fails; nothing is killed.
func TestPoison(t *testing.T) {
	m := anonymous(t, 4, Missing, FeaturePoison)
	done, err := m.Poison(m.at(1), 2*page, 0)
	wantErr(t, "poison", done, 2*page, err, nil)
	if err := testutil.Load(uint64(m.at(1)), make([]byte, 1)); err == nil {
		t.Error("a poisoned page was read")
	}
	done, err = m.Poison(m.at(0), 2*page, 0)
	wantErr(t, "poison onto poison", done, page, err, unix.EEXIST)
	done, err = m.Poison(m.at(3), page, Armed)
	wantErr(t, "a flag of another call", done, 0, err, ErrInvalid)
}
