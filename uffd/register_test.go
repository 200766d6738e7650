//go:build linux && (amd64 || arm64)

package uffd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestRegister(t *testing.T) {
	f := opened(t, FeatureFaultWP|FeatureMinorShmem|FeatureWPHugetlbShmem)
	at := addr.HVA(testutil.MapAnonymous(t, 4*page))
	for _, tc := range []struct {
		name       string
		start      addr.HVA
		length     uint64
		mode       Mode
		want       error
		ops, notOp Ioctls
	}{
		{"missing", at, 4 * page, Missing, nil, IoctlWake | IoctlCopy | IoctlZero, IoctlWriteProtect | IoctlContinue},
		{"both", at, 4 * page, Missing | WP, nil, IoctlWake | IoctlCopy | IoctlZero | IoctlWriteProtect, IoctlContinue},
		{"minor on private memory", at, page, Minor, unix.EINVAL, 0, 0},
		{"no mode", at, page, 0, ErrInvalid, 0, 0},
		{"a mode that is none", at, page, 1 << 7, ErrInvalid, 0, 0},
		{"nothing", at, 0, Missing, ErrInvalid, 0, 0},
		{"unaligned", at + 1, page, Missing, ErrInvalid, 0, 0},
		{"overflow", addr.HVA(-page), 2 * page, Missing, ErrInvalid, 0, 0},
		{"not mapped", addr.HVA(page), page, Missing, unix.EINVAL, 0, 0},
	} {
		ops, err := f.Register(tc.start, tc.length, tc.mode)
		wantErr(t, tc.name, 0, 0, err, tc.want)
		if !ops.Has(tc.ops) || ops&tc.notOp != 0 {
			t.Errorf("%s: operations %v, want %v and not %v", tc.name, ops, tc.ops, tc.notOp)
		}
	}
	other := opened(t, 0)
	_, err := other.Register(at, page, Missing)
	wantErr(t, "of another userfaultfd", 0, 0, err, unix.EBUSY)
	if err := f.Unregister(at, 4*page); err != nil {
		t.Error(err)
	}
	if _, err = other.Register(at, page, Missing); err != nil {
		t.Error(err)
	}
	if err := f.Unregister(addr.HVA(page), page); err == nil {
		t.Error("what is not mapped was unregistered")
	}
	wantErr(t, "unaligned", 0, 0, f.Unregister(at+1, page), ErrInvalid)
	wantErr(t, "unaligned", 0, 0, f.Wake(at+1, page), ErrInvalid)
	wantErr(t, "nothing", 0, 0, f.Wake(at, 0), ErrInvalid)
}

// Who waits when the range is unregistered goes on, into zeroes.
func TestUnregisterWakes(t *testing.T) {
	m := anonymous(t, 1, Missing, 0)
	read := testutil.Go(func() {
		if got := m.load(0); got != 0 {
			t.Errorf("read %d", got)
		}
	})
	m.event()
	if err := m.Unregister(m.base, page); err != nil {
		t.Fatal(err)
	}
	testutil.Proceeds(t, read, "the reader")
}

func TestWriteProtect(t *testing.T) {
	for name, make := range map[string]func() *memory{
		"anonymous": func() *memory { return anonymous(t, 4, WP, FeatureFaultWP) },
		"shared":    func() *memory { return shared(t, 4, WP, FeatureFaultWP|FeatureWPHugetlbShmem) },
	} {
		t.Run(name, func(t *testing.T) {
			m := make()
			for i := range m.n {
				m.store(i, 1)
			}
			if err := m.WriteProtect(m.base, 4*page, Armed); err != nil {
				t.Fatal(err)
			}
			if got := m.load(2); got != 1 {
				t.Errorf("an armed page reads %d", got)
			}
			wrote := testutil.Go(func() { m.store(2, 2) })
			if e := m.event(); e.Flags&(FaultWP|FaultWrite) != FaultWP|FaultWrite || e.Page(page) != m.at(2) {
				t.Errorf("got %v, want a write-protect fault on page 2", &e)
			}
			if err := m.WriteProtect(m.at(2), page, DontWake); err != nil {
				t.Fatal(err)
			}
			testutil.Parked(t, wrote, "a writer that nobody has woken")
			if err := m.Wake(m.at(2), page); err != nil {
				t.Fatal(err)
			}
			testutil.Proceeds(t, wrote, "the writer")
			m.store(2, 3) // disarmed: nobody is told
			for _, bad := range []Flags{Armed | DontWake, AllowHoles} {
				wantErr(t, bad.String(), 0, 0, m.WriteProtect(m.base, page, bad), ErrInvalid)
			}
			wantErr(t, "unaligned", 0, 0, m.WriteProtect(m.base+1, page, Armed), ErrInvalid)
		})
	}
}

// Ranges are armed up to the one that cannot be, which the error names.
func TestArmEach(t *testing.T) {
	const long = 64 // pages, more than a short range
	m := shared(t, 8+long, WP, FeatureFaultWP|FeatureWPHugetlbShmem)
	for i := range m.n {
		m.store(i, 1)
	}
	arm := func(ranges ...[2]uint64) error {
		return m.ArmEach(func(yield func(addr.HVA, uint64) bool) {
			for _, r := range ranges {
				if !yield(m.at(r[0]), r[1]*page) {
					return
				}
			}
		})
	}
	if err := arm(); err != nil {
		t.Errorf("nothing: %v", err)
	}
	if err := arm([2]uint64{1, 1}, [2]uint64{8, long}, [2]uint64{4, 2}); err != nil {
		t.Fatal(err)
	}
	for _, i := range []uint64{0, 2, 3, 6, 7} {
		m.store(i, 2)
	}
	for _, i := range []uint64{1, 4, 5, 8, 8 + long - 1} {
		wrote := testutil.Go(func() { m.store(i, 2) })
		if e := m.event(); e.Flags&FaultWP == 0 || e.Page(page) != m.at(i) {
			t.Errorf("got %v, want a write-protect fault on page %d", &e, i)
		}
		if err := m.WriteProtect(m.at(i), page, 0); err != nil {
			t.Fatal(err)
		}
		testutil.Proceeds(t, wrote, "the writer")
	}
	wantErr(t, "no pages", 0, 0, arm([2]uint64{2, 0}, [2]uint64{3, 1}), ErrInvalid)
	wantErr(t, "not registered", 0, 0, arm([2]uint64{2, 1}, [2]uint64{m.n + 64, 1}, [2]uint64{3, 1}), unix.ENOENT)
	m.store(3, 3) // comes after the one that failed
	wrote := testutil.Go(func() { m.store(2, 3) })
	if e := m.event(); e.Page(page) != m.at(2) {
		t.Errorf("got %v, want page 2, which comes before", &e)
	}
	if err := m.WriteProtect(m.at(2), page, 0); err != nil {
		t.Fatal(err)
	}
	testutil.Proceeds(t, wrote, "the writer")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "closed", 0, 0, arm(), ErrClosed)
}

// Memory of a file on a disk cannot be armed, and that is said at registration,
// not found out by a write that is lost. (On a tmpfs, which is shared memory, it
// can.)
func TestTrap10FilesOnDiskCannotBeArmed(t *testing.T) {
	f := opened(t, FeatureFaultWP|FeatureWPHugetlbShmem)
	file, err := os.Create(filepath.Join(t.TempDir(), "image"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(int64(4 * page)); err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(file.Name(), &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("temporary files are in memory; set TMPDIR to a directory on a disk")
	}
	at := addr.HVA(testutil.MapShared(t, int(file.Fd()), 4*page))
	_, err = f.Register(at, 4*page, WP)
	wantErr(t, "arming a file", 0, 0, err, unix.EINVAL)
	_, err = f.Register(at, 4*page, Missing)
	wantErr(t, "serving a file", 0, 0, err, unix.EINVAL)
}

// Arming one mapping of shared memory does not trap a write through another, a
// mapping or a system call on the file: the writer's mapping is what must be
// registered.
func TestTrap10OtherMappingsAreNotTrapped(t *testing.T) {
	m := shared(t, 2, WP, FeatureFaultWP|FeatureWPHugetlbShmem)
	m.store(0, 1)
	m.store(1, 1)
	if err := m.WriteProtect(m.base, 2*page, Armed); err != nil {
		t.Fatal(err)
	}
	alias := testutil.MapShared(t, m.fd, 2*page)
	if err := testutil.Store(alias, []byte{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Pwrite(m.fd, []byte{3}, int64(page)); err != nil {
		t.Fatal(err)
	}
	var e [1]Event
	if n, err := m.Read(e[:]); n != 0 || err != nil {
		t.Errorf("%d events, %v", n, err)
	}
	if a, b := m.load(0), m.load(1); a != 2 || b != 3 {
		t.Errorf("pages hold %d and %d, want 2 and 3", a, b)
	}
	// The same page through the armed mapping is trapped.
	wrote := testutil.Go(func() { m.store(0, 4) })
	if e := m.event(); e.Flags&FaultWP == 0 {
		t.Errorf("got %v", &e)
	}
	if err := m.WriteProtect(m.base, 2*page, 0); err != nil {
		t.Fatal(err)
	}
	testutil.Proceeds(t, wrote, "the writer")
}

// Which system calls see a userfaultfd: those that populate and those that copy
// between processes wait for the page; /proc/self/mem is not relied upon.
func TestTrap11SystemCallsThatFault(t *testing.T) {
	const populateRead, populateWrite = unix.MADV_POPULATE_READ, unix.MADV_POPULATE_WRITE
	m := anonymous(t, 4, Missing, 0)
	advise := func(i uint64, advice uintptr) error {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, uintptr(m.at(i)), uintptr(page), advice); errno != 0 {
			return errno
		}
		return nil
	}
	for i, touch := range []func(i uint64) error{
		func(i uint64) error { return testutil.Load(uint64(m.at(i)), make([]byte, 1)) },
		func(i uint64) error { return testutil.Store(uint64(m.at(i)), []byte{1}) },
		func(i uint64) error { return advise(i, populateRead) },
		func(i uint64) error { return advise(i, populateWrite) },
	} {
		i := uint64(i)
		done := testutil.Go(func() {
			if err := touch(i); err != nil {
				t.Errorf("call %d: %v", i, err)
			}
		})
		if e := m.event(); e.Page(page) != m.at(i) || (e.Flags&FaultWrite != 0) != (i%2 == 1) {
			t.Errorf("call %d: got %v", i, &e)
		}
		testutil.Parked(t, done, "a system call that waits for its page")
		if _, err := m.Copy(m.at(i), pages(1, 9), 0); err != nil {
			t.Error(err)
		}
		testutil.Proceeds(t, done, "the call")
	}
}

// Whoever was held up by a range goes on when it is unregistered, also where only writes
// were told, of which the kernel itself wakes nobody.
func TestUnregisterWakesWhoIsHeldUp(t *testing.T) {
	for _, c := range []struct {
		name string
		mode Mode
		f    Features
	}{
		{"missing", Missing, 0},
		{"armed", WP, FeatureFaultWP | FeatureWPUnpopulated},
		{"both", Missing | WP, FeatureFaultWP},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := anonymous(t, 2, 0, c.f)
			if c.mode&WP != 0 {
				m.store(0, 1)
				m.store(1, 1)
			}
			m.register(c.mode)
			if c.mode&WP != 0 {
				if err := m.WriteProtect(m.base, 2*page, Armed); err != nil {
					t.Fatal(err)
				}
			}
			stored := testutil.Go(func() { m.store(1, 7) })
			m.untilUnread(1)
			if err := m.Unregister(m.base, 2*page); err != nil {
				t.Fatal(err)
			}
			testutil.Proceeds(t, stored, "a store that was held up")
			if got := m.load(1); got != 7 {
				t.Errorf("the page holds %d", got)
			}
		})
	}
}
