package guestmem

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/uffd"
)

// takePlace maps memory of somebody else's where a region was.
func takePlace(t *testing.T, at, size uintptr, with byte) {
	t.Helper()
	got, _, errno := unix.Syscall6(unix.SYS_MMAP, at, size, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_FIXED_NOREPLACE, ^uintptr(0), 0)
	if errno != 0 || got != at {
		t.Skipf("nothing else could be mapped where the region was: %v", errno)
	}
	t.Cleanup(func() { unix.Syscall(unix.SYS_MUNMAP, at, size, 0) })
	mustDo(t, testutil.Store(uint64(at), bytes.Repeat([]byte{with}, int(size))))
}

// R12, R14: of a snapshot that has failed nothing is read where the parent's regions
// were: they may have gone, and what is there be another guest's.
func TestR12FailedSnapshotReadsNothingThatHasGone(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	const n = 16
	for _, access := range []RegionAccess{RegionReadWrite, RegionReadOnly} {
		m := newPhys(t)
		want := bytes.Repeat([]byte{7}, n*page)
		r := mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: n * page, Backing: BackingAnonymous, HugePages: HugeNever, Access: access,
			Fill: func(w io.WriterAt) error { _, err := w.WriteAt(want, 0); return err }})
		s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
		clone := mustCloneOf(t, s, CloneOptions{})
		mustEqualPages(t, mustReadPhys(t, clone, r.base, page), want[:page], "what the clone has asked for")
		s.failIf(errRefused)
		at, size := uintptr(r.Slot()), uintptr(r.size)
		mustDo(t, m.RemoveRegion(r))
		takePlace(t, at, size, 0x5e)
		check := func(what string, read func([]byte, addr.GPA) (int, error)) {
			t.Helper()
			got := make([]byte, page)
			for i := range addr.GPA(n) {
				if _, err := read(got, r.base+i*page); err == nil && !bytes.Equal(got, want[:page]) {
					t.Fatalf("access %d, %s: page %d holds %#x", access, what, i, got[:8])
				} else if err != nil && !errors.Is(err, errRefused) {
					t.Errorf("access %d, %s: page %d: %v", access, what, i, err)
				}
			}
		}
		check("a clone", clone.ReadAt)
		check("the snapshot", s.ReadAt)
		if err := s.Data(r.base, func(addr.GPA, uint64) bool { return true }); !errors.Is(err, errRefused) {
			t.Errorf("Data: %v", err)
		}
		if err := s.Sweep(context.Background()); !errors.Is(err, errRefused) {
			t.Errorf("Sweep: %v", err)
		}
		check("the snapshot, after a sweep", s.ReadAt)
	}
}

// R12: who is reading a page of the parent, where nobody claims pages, when the snapshot
// fails and the region goes, does not believe what has been read:
//
//	ReadAt, a clone, or Sweep      meanwhile
//	reads; the page is awaited
//	                               the snapshot fails, the region is removed
//	                               and the page comes, with another's bytes
//	delivers nothing
func TestR12ReadThatOutlivesItsRegion(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	for name, read := range map[string]func(s *Snapshot, clone *Memory, p []byte) error{
		"ReadAt": func(s *Snapshot, _ *Memory, p []byte) error { _, err := s.ReadAt(p, 1<<30); return err },
		"clone":  func(_ *Snapshot, c *Memory, p []byte) error { _, err := c.ReadAt(p, 1<<30); return err },
		"Sweep":  func(s *Snapshot, _ *Memory, _ []byte) error { return s.Sweep(context.Background()) },
	} {
		t.Run(name, func(t *testing.T) {
			hva, _ := foreignMapping(t, page, unix.MAP_SHARED|unix.MAP_ANONYMOUS, -1) // which nobody can ask for holes
			fd, err := uffd.Open(uffd.Options{Required: uffd.FeatureMissingShmem})
			mustDo(t, err)
			defer fd.Close()
			_, err = fd.Register(hva, page, uffd.Missing)
			mustDo(t, err)
			m := newPhys(t)
			mustAdd(t, m, RegionOptions{Size: page}) // so that the snapshot has one that is armed
			r := mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: page, Backing: BackingForeign, Mapping: hva, Access: RegionReadOnly})
			s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
			clone := mustCloneOf(t, s, CloneOptions{})
			p := make([]byte, 8)
			done := make(chan error, 1)
			go func() { done <- read(s, clone, p) }()
			wt, err := fd.NewWaiter()
			mustDo(t, err)
			defer wt.Close()
			events := make([]uffd.Event, 4)
			if _, err := wt.Wait(events, -1); err != nil {
				t.Fatal(err)
			}
			s.failIf(errRefused)
			mustDo(t, m.RemoveRegion(r))
			_, err = fd.Copy(hva, bytes.Repeat([]byte{0x5e}, page), 0)
			mustDo(t, err)
			if err := testutil.Proceeds(t, done, name); !errors.Is(err, errRefused) || p[0] == 0x5e {
				t.Errorf("%v, and %#x was delivered", err, p)
			}
			if l := s.at(1 << 30); l.data.get(0) {
				t.Error("what has come too late is in the layer")
			}
		})
	}
}

// What a snapshot lacks and nobody has armed, which only a broken rule leads to, is its
// end by name, and nobody waits for it: whoever reads it, clones of it among them.
func TestR11LostPageEndsTheSnapshot(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	for name, read := range map[string]func(s *Snapshot, clone *Memory, at addr.GPA) error{
		"ReadAt": func(s *Snapshot, _ *Memory, at addr.GPA) error {
			_, err := s.ReadAt(make([]byte, 3*page), at-page)
			return err
		},
		"Sweep": func(s *Snapshot, _ *Memory, _ addr.GPA) error { return s.Sweep(context.Background()) },
		"clone": func(_ *Snapshot, c *Memory, at addr.GPA) error { _, err := c.ReadAt(make([]byte, 8), at); return err },
	} {
		t.Run(name, func(t *testing.T) {
			m, r, want := patterned(t, 64)
			s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
			clone := mustCloneOf(t, s, CloneOptions{})
			word, bit := s.layers[0].arms.place(41)
			s.layers[0].arms.words[word].And(^uint64(bit))
			try := func() error { return read(s, clone, r.base+41*page) }
			if invariants.Enabled {
				testutil.Panics(t, name, func() { _ = try() })
				s.failIf(errRefused) // or the clone's end would meet it again
				return
			}
			done := make(chan error, 1)
			go func() { done <- try() }()
			if err := testutil.Proceeds(t, done, name); !errors.Is(err, ErrBus) {
				t.Errorf("%v, want ErrBus", err)
			}
			if err := s.Err(); !errors.Is(err, ErrBus) {
				t.Errorf("the snapshot: %v, want ErrBus", err)
			}
			mustEqualPages(t, mustReadPhys(t, m, r.base, len(want)), want, "the guest")
			mustDo(t, slotStore(r, 41*page, []byte{1}))
			next := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
			want[41*page] = 1
			mustShow(t, next, r.base, want, "the next snapshot")
		})
	}
}

// Who waits for somebody's claim, when the snapshot is closed, is told so.
func TestSnapshotClosedWhileItIsRead(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	m, r, _ := patterned(t, 8)
	s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
	word, bit := s.layers[0].arms.place(2)
	if s.layers[0].arms.claim(word, bit) == 0 {
		t.Fatal("the page is not armed")
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.ReadAt(make([]byte, page), r.base+2*page)
		read <- err
	}()
	testutil.Parked(t, read, "a read of a page that somebody copies")
	mustDo(t, s.Close())
	if err := testutil.Proceeds(t, read, "a read of a snapshot that is closed"); !errors.Is(err, ErrClosed) {
		t.Errorf("%v, want ErrClosed", err)
	}
	s.layers[0].arms.unclaim(word, bit)
}

// R12: a read-only region of a file that somebody else cuts is no zeroes to a snapshot,
// nor to its clones, nor to a template.
func TestR12FileOfASnapshotIsCut(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPUnpopulated)
	unchangedHost(t)
	want := filePattern(16 * page)
	for name, length := range map[string]int64{"all": 0, "in a page": 12*page + 100} {
		for what, use := range map[string]func(t *testing.T, m *Memory, s *Snapshot, clone *Memory) error{
			"ReadAt": func(t *testing.T, _ *Memory, s *Snapshot, _ *Memory) error { return readCut(t, s.ReadAt, want) },
			"clone":  func(t *testing.T, _ *Memory, _ *Snapshot, c *Memory) error { return readCut(t, c.ReadAt, want) },
			"Sweep":  func(_ *testing.T, _ *Memory, s *Snapshot, _ *Memory) error { return s.Sweep(context.Background()) },
			"Data": func(_ *testing.T, _ *Memory, s *Snapshot, _ *Memory) error {
				return s.Data(1<<30, func(addr.GPA, uint64) bool { return true })
			},
			"Seal": func(_ *testing.T, m *Memory, s *Snapshot, c *Memory) error {
				mustDo(t, errors.Join(c.Close(), s.Close()))
				_, err := m.Seal()
				return err
			},
		} {
			t.Run(name+", "+what, func(t *testing.T) {
				m := newPhys(t)
				file := testFile(t, 16*page)
				mustAdd(t, m, RegionOptions{Size: page})
				r := mustAdd(t, m, RegionOptions{Base: 1 << 30, Size: 16 * page, Backing: BackingFile, File: file, Access: RegionReadOnly})
				s := mustSnapshotOf(t, m, SnapshotOptions{Sweep: SweepOnDemand})
				clone := mustCloneOf(t, s, CloneOptions{})
				mustEqualPages(t, mustReadPhys(t, clone, r.base, page), want[:page], "what came before")
				mustDo(t, file.Truncate(length))
				if err := use(t, m, s, clone); !errors.Is(err, ErrBus) {
					t.Errorf("%v, want ErrBus", err)
				}
			})
		}
	}
}

// readCut reads the pages of a file that was cut, which may be right or ErrBus, and returns
// the last error.
func readCut(t *testing.T, read func([]byte, addr.GPA) (int, error), want []byte) (last error) {
	p := make([]byte, page)
	for i := range addr.GPA(16) {
		_, err := read(p, 1<<30+i*page)
		if err == nil && !bytes.Equal(p, want[i*page:(i+1)*page]) {
			t.Errorf("page %d holds %#x", i, p[:8])
		} else if err != nil && !errors.Is(err, ErrBus) {
			t.Errorf("page %d: %v", i, err)
		} else if err != nil {
			last = err
		}
	}
	return last
}
