//go:build linux && amd64

package machine

import (
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/testutil"
	"github.com/guestmm/guestmm/kvm"
)

// content is memory at an instant, as a number for each page.
type content map[addr.GPA][]uint64

var hashSeed = maphash.MakeSeed()

// contentOf reads all regions.
func contentOf(t *testing.T, regions []snapfile.Region, read func(p []byte, gpa addr.GPA) error) content {
	t.Helper()
	out := make(content)
	buf := make([]byte, 256<<10)
	for _, r := range regions {
		for at := r.Base; at < r.Base+addr.GPA(r.Size); {
			p := buf[:min(uint64(len(buf)), r.Size-uint64(at-r.Base))]
			if err := read(p, at); err != nil {
				t.Fatalf("read %d bytes at %v: %v", len(p), at, err)
			}
			for i := 0; i < len(p); i += addr.PageSize {
				out[r.Base] = append(out[r.Base], maphash.Bytes(hashSeed, p[i:i+addr.PageSize]))
			}
			at += addr.GPA(len(p))
		}
	}
	return out
}

// differ returns how many pages are not the same.
func (c content) differ(o content) (n int) {
	for base, pages := range c {
		for i, h := range pages {
			if i >= len(o[base]) || o[base][i] != h {
				n++
			}
		}
	}
	return n
}

// wantFile checks all of a file, and that it holds what memory held.
func wantFile(t *testing.T, path string, want content) {
	t.Helper()
	f, err := snapfile.Open(path, snapfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	got := contentOf(t, f.Regions(), func(p []byte, gpa addr.GPA) error { return f.ReadPages(t.Context(), p, gpa) })
	if n := want.differ(got); n != 0 || len(got) != len(want) {
		t.Errorf("%s: %d pages are not what they were", filepath.Base(path), n)
	}
}

// TestChainsOfTen writes a full file of a guest that writes all the while, and ten
// increments, by each tracker: every one of the eleven holds what memory held at its
// instant, page by page. Now and then a file cannot be written, and the next goes on
// from the one before it.
func TestChainsOfTen(t *testing.T) {
	for _, by := range []kvm.Tracker{kvm.TrackByLog, kvm.TrackByRing, kvm.TrackByWriteProtection} {
		t.Run(by.String(), func(t *testing.T) {
			_, g := newGuest(t, by.Mode())
			if by == kvm.TrackByWriteProtection {
				testutil.RequireUFFD(t, testutil.UFFDWPAsync)
				w, err := g.Memory.TrackWrites()
				if err != nil {
					t.Fatal(err)
				}
				defer w.Close()
			}
			chainOfTen(t, g, func(path string, o snapfile.Options) (want content, err error) {
				g.VM.Pause()
				defer g.VM.Resume()
				g.reading.Lock()
				defer g.reading.Unlock()
				img := &still{m: g.Memory, isFull: o.Parent == nil}
				if err := img.harvest(); err != nil {
					return nil, err
				}
				_, err = snapfile.Write(t.Context(), path, img, o)
				return contentOf(t, img.Regions(), func(p []byte, gpa addr.GPA) error { _, err := img.ReadAt(p, gpa); return err }), err
			})
		})
	}
	t.Run("live snapshots", func(t *testing.T) {
		testutil.RequireUFFD(t, testutil.UFFDWPShmem)
		_, g := newGuest(t, kvm.DirtyNone)
		var last *Snapped // of the last file that was written
		defer func() {
			if last != nil {
				last.Close()
			}
		}()
		tries := 0
		chainOfTen(t, g, func(path string, o snapfile.Options) (content, error) {
			for {
				s, err := g.Snapshot(t.Context())
				if err != nil {
					return nil, err
				}
				want := contentOf(t, s.Image().Regions(), func(p []byte, gpa addr.GPA) error { _, err := s.ReadAt(p, gpa); return err })
				run := inject.Start(inject.Plan{Match: inject.Only("snapfile: write"), From: tries % 3, Until: tries%3 + 1, Errno: unix.EIO})
				write := func() error { _, err := s.Write(t.Context(), path, o, last); return err }
				if tries++; tries%2 == 0 {
					if err := run.During(write); !errors.Is(err, unix.EIO) {
						return nil, errors.Join(s.Close(), fmt.Errorf("a disk that fails: %w", err))
					}
					if err := errors.Join(s.Close(), g.Written(t.Context(), 10)); err != nil {
						return nil, err
					}
					continue // with another snapshot, of more changes
				}
				if err := write(); err != nil {
					return nil, errors.Join(err, s.Close())
				}
				if last != nil {
					err = last.Close()
				}
				last = s
				return want, err
			}
		})
	})
}

func chainOfTen(t *testing.T, g *Guest, write func(path string, o snapfile.Options) (content, error)) {
	t.Helper()
	dir := t.TempDir()
	stop := g.KeepRunning(t.Context())
	var all []content
	var parent *snapfile.File
	name := func(i int) string { return filepath.Join(dir, fmt.Sprint("file", i)) }
	for i := range 11 {
		if err := g.Written(t.Context(), 30); err != nil {
			t.Fatal(err)
		}
		want, err := write(name(i), snapfile.Options{Parent: parent, Sync: snapfile.SyncNone, State: []byte("none")})
		if parent != nil {
			err = errors.Join(err, parent.Close())
		}
		if err == nil {
			parent, err = snapfile.Open(name(i), snapfile.OpenOptions{})
		}
		if err != nil {
			t.Fatal(errors.Join(err, stop()))
		}
		if i > 0 && want.differ(all[i-1]) == 0 {
			t.Errorf("nothing was written before file %d", i)
		}
		all = append(all, want)
	}
	if err := errors.Join(parent.Close(), stop()); err != nil {
		t.Fatal(err)
	}
	for i, want := range all {
		wantFile(t, name(i), want)
	}
	if n, first := found(t, g); n != 0 {
		t.Errorf("the guest found %d pages wrong: %s", n, first)
	}
}

// TestFilesThatFail has each step of writing a file of a running guest fail in turn: the
// error has a name, nothing is left of the file, what stood in its place does, the
// snapshot can be written again, and the guest runs on and finds its memory as it should
// be.
func TestFilesThatFail(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	_, g := newGuest(t, kvm.DirtyNone)
	dir := t.TempDir()
	path := filepath.Join(dir, "guest.snap")
	stop := g.KeepRunning(t.Context())
	defer func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if n, first := found(t, g); n != 0 {
			t.Errorf("the guest found %d pages wrong: %s", n, first)
		}
	}()
	var standing content
	for n := 0; ; n++ {
		errno := []unix.Errno{unix.EIO, unix.ENOSPC, unix.EDQUOT}[n%3]
		s, err := g.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := contentOf(t, s.Image().Regions(), func(p []byte, gpa addr.GPA) error { _, err := s.ReadAt(p, gpa); return err })
		run := inject.Start(inject.Plan{Match: inject.Only("snapfile: "), From: n, Until: n + 1, Errno: errno})
		write := func() error { _, err := s.Write(t.Context(), path, snapfile.Options{}, nil); return err }
		err = run.During(write)
		if run.Failures() == 0 { // all steps are behind us
			if err == nil {
				wantFile(t, path, want)
			}
			if err := errors.Join(err, s.Close()); err != nil {
				t.Error(err)
			}
			return
		}
		if !errors.Is(err, errno) || errors.Is(err, snapfile.ErrNoSpace) != (errno != unix.EIO) {
			t.Fatalf("%v: %v", run, err)
		}
		if strings.Contains(run.String(), "directory") {
			standing = want // it is there, and may not outlive a loss of power
		}
		left, err := os.ReadDir(dir)
		if isThere := standing != nil; err != nil || len(left) > 1 || (len(left) == 1) != isThere {
			t.Fatalf("%v: left: %v, %v", run, left, err)
		}
		if standing != nil && n%4 == 3 {
			wantFile(t, path, standing)
		}
		if n%4 == 1 { // the same snapshot, once the disk works again
			if err := write(); err != nil {
				t.Fatal(err)
			}
			wantFile(t, path, want)
			standing = want
		}
		if err := errors.Join(s.Close(), g.Written(t.Context(), 5)); err != nil {
			t.Fatal(err)
		}
	}
}

// TestDiskThatIsFullForAWhile writes a running guest to a disk that is too small, and
// the same snapshot again when there is room.
func TestDiskThatIsFullForAWhile(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("no file system of 4 MiB: %v; run as root", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	_, g := newGuest(t, kvm.DirtyNone)
	stop := g.KeepRunning(t.Context())
	path := filepath.Join(dir, "guest.snap")
	for range 3 {
		s, err := g.Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := contentOf(t, s.Image().Regions(), func(p []byte, gpa addr.GPA) error { _, err := s.ReadAt(p, gpa); return err })
		if _, err := s.Write(t.Context(), path, snapfile.Options{}, nil); !errors.Is(err, snapfile.ErrNoSpace) || !errors.Is(err, unix.ENOSPC) {
			t.Errorf("a full disk: %v", err)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		size := func(is string) {
			if err := unix.Mount("small", dir, "tmpfs", unix.MS_REMOUNT, "size="+is); err != nil {
				t.Fatal(err)
			}
		}
		size("64m")
		if _, err := s.Write(t.Context(), path, snapfile.Options{}, nil); err != nil {
			t.Error(err)
		}
		wantFile(t, path, want)
		if err := errors.Join(os.Remove(path), s.Close(), g.Written(t.Context(), 20)); err != nil {
			t.Error(err)
		}
		size("4m")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if n, first := found(t, g); n != 0 {
		t.Errorf("the guest found %d pages wrong: %s", n, first)
	}
}
