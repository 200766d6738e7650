package pager

import (
	"bytes"
	"compress/flate"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/snaptest"
	"github.com/guestmm/guestmm/internal/testutil"
)

// fileChanges are what somebody may do to a file while a guest is restored from it.
var fileChanges = map[string]struct {
	change func(path, other string) error
	isSame bool // for who has it open
}{
	"truncated to nothing":  {func(path, _ string) error { return os.Truncate(path, 0) }, false},
	"truncated in the data": {func(path, _ string) error { return os.Truncate(path, 40*smallPage+100) }, false},
	"truncated and grown": {func(path, _ string) error {
		info, err := os.Stat(path)
		return errors.Join(err, os.Truncate(path, smallPage), os.Truncate(path, info.Size()))
	}, false},
	"overwritten by another": {func(path, other string) error {
		b, err := os.ReadFile(other)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteAt(b, 0)
		return errors.Join(err, f.Close())
	}, false},
	"replaced": {func(path, other string) error { return os.Rename(other, path) }, true},
	"removed":  {func(path, _ string) error { return os.Remove(path) }, true},
}

// otherImage is one with other bytes.
type otherImage struct{ savedImage }

func (o otherImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	n, err := o.savedImage.ReadAt(p, gpa)
	for i := range p {
		p[i] ^= 0x55
	}
	return n, err
}

// TestR12FileChangesUnderARestore: a file that is cut, written over or replaced while its
// guest runs gives the guest what it held, or an error with a name, and nothing else.
func TestR12FileChangesUnderARestore(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	img := twoRegions(128)
	for name, c := range fileChanges {
		for _, layout := range []snapfile.Layout{snapfile.LayoutRaw, snapfile.LayoutPacked} {
			t.Run(name+", "+layout.String(), func(t *testing.T) {
				path, other := save(t, img, snapfile.Options{Layout: layout}), save(t, otherImage{img}, snapfile.Options{Layout: layout})
				f := openSaved(t, path)
				m := newMemory(t)
				failed := make(chan error, 1)
				r := startRestore(t, m, f, RestoreOptions{Rest: LeaveRest, WorkingSets: NoWorkingSet, Retry: Retry{Attempts: 1}, Fail: func(err error) { failed <- err }})
				ram := img.regions[0].Base
				loadPage(t, slotAt(m, ram), savedPage(ram))
				s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{Sweep: guestmem.SweepOnDemand})
				must(t, err)
				must(t, c.change(path, other))
				bad := 0
				p := make([]byte, smallPage)
				for _, region := range img.regions {
					for at := region.Base; at < region.Base+addr.GPA(region.Size); at += smallPage {
						for what, read := range map[string]func() error{
							"a vCPU":   func() error { return testutil.Proceeds(t, goLoad(slotAt(m, at), p), "load") },
							"Go code":  func() error { _, err := m.ReadAt(p, at); return err },
							"snapshot": func() error { _, err := s.ReadAt(p, at); return err },
						} {
							err := read()
							switch {
							case err == nil && !bytes.Equal(p, savedPage(at)):
								t.Fatalf("%s: page at %v holds %x..., want %x...", what, at, head(p), head(savedPage(at)))
							case err != nil && !errors.Is(err, snapfile.ErrTruncated) && !errors.Is(err, snapfile.ErrDamaged) && !(what == "a vCPU" && errors.Is(err, unix.EFAULT)):
								t.Fatalf("%s: page at %v: %v", what, at, err)
							case err != nil:
								bad++
							}
						}
					}
				}
				if c.isSame != (bad == 0) {
					t.Errorf("%d pages could not be read", bad)
				}
				if !c.isSame {
					testutil.Proceeds(t, failed, "Fail")
					if err := f.Verify(context.Background(), nil); err == nil {
						t.Error("Verify has nothing against it")
					}
				}
				must(t, s.Close())
				must(t, r.Close())
			})
		}
	}
}

// TestR12MappedFileIsCut: a file that is mapped and then cut is an error to Go code and to
// system calls, and the end of no process.
func TestR12MappedFileIsCut(t *testing.T) {
	img := twoRegions(128)
	ram := img.regions[0].Base
	for _, length := range []int64{0, 40*smallPage + 100} {
		path := save(t, img, snapfile.Options{})
		m := newMemory(t)
		must(t, RestoreNow(context.Background(), m, openSaved(t, path), EagerOptions{Placement: MapFile}))
		held, err := m.Slice(ram+50*smallPage, smallPage, guestmem.Write)
		must(t, err)
		if held.Bytes() != nil {
			t.Error("Go code may touch a mapping that can be cut")
		}
		if _, err := m.WriteAt([]byte("mine"), ram+60*smallPage); err != nil { // a page of its own
			t.Fatal(err)
		}
		must(t, os.Truncate(path, length))
		at := ram + 100*smallPage
		reg, _ := m.RegionAt(ram)
		for what, err := range map[string]error{
			"ReadAt":      func() error { _, err := m.ReadAt(make([]byte, 3*smallPage), at); return err }(),
			"WriteAt":     func() error { _, err := m.WriteAt(make([]byte, 3*smallPage), at); return err }(),
			"own page":    func() error { _, err := m.ReadAt(make([]byte, 8), ram+60*smallPage); return err }(),
			"Load64":      func() error { _, err := m.Load64(at); return err }(),
			"Store8":      m.Store8(at, 1),
			"compare":     func() error { _, err := m.CompareAndSwap64(at, 0, 1); return err }(),
			"Slice":       func() error { _, err := m.Slice(at, smallPage, guestmem.Write); return err }(),
			"own, Load64": func() error { _, err := m.Load64(ram + 60*smallPage); return err }(),
		} {
			if !errors.Is(err, guestmem.ErrBus) {
				t.Errorf("cut to %d, %s: %v, want ErrBus", length, what, err)
			}
		}
		if err := load(slotAt(m, at), make([]byte, 8)); !errors.Is(err, unix.EFAULT) {
			t.Errorf("a system call: %v, want EFAULT", err)
		}
		if err := m.CollectDirty(reg, func(addr.GPA, uint64) {}); err != nil {
			t.Errorf("CollectDirty: %v", err)
		}
		if s, err := m.Snapshot(context.Background(), guestmem.SnapshotOptions{}); err == nil {
			t.Error("a snapshot of what is gone", s.Close()) // not supported; ErrBus for a file of a tmpfs
		}
		held.Release()
		if _, err := m.Seal(); err == nil {
			t.Error("what is gone was sealed")
		} else if !errors.Is(err, guestmem.ErrBus) && !errors.Is(err, unix.EFAULT) {
			t.Errorf("Seal: %v", err)
		}
	}
}

// TestNonsenseReachesNoGuest: files that say nonsense under checksums that are right are
// refused by name before a guest sees anything of them, or when it asks for what is wrong.
func TestNonsenseReachesNoGuest(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "packed"), snaptest.Good("packed").Bytes(), 0o600))
	path := filepath.Join(dir, "hostile")
	for _, kind := range snaptest.Kinds {
		for _, wrong := range append(snaptest.Nonsense, snaptest.Wrong{Name: "", Spoil: func(*snaptest.File) bool { return true }}) {
			file := snaptest.Good(kind)
			if !wrong.Spoil(file) {
				continue
			}
			must(t, os.WriteFile(path, file.Bytes(), 0o600))
			f, err := snapfile.Open(path, snapfile.OpenOptions{Codecs: []snapfile.Codec{flateCodec{}}})
			if err != nil {
				if wrong.Name == "" {
					t.Errorf("%s: %v", kind, err)
				}
				continue
			}
			what := kind + ": " + wrong.Name
			for _, o := range []EagerOptions{{}, {Placement: MapFile}} {
				m := newMemory(t)
				err := RestoreNow(context.Background(), m, f, o)
				if isRight := wrong.Name == "" && (o.Placement == CopyIn || kind == "raw"); isRight != (err == nil) || err != nil && len(m.Regions()) > 0 {
					t.Errorf("%s: restored at once: %v, %d regions", what, err, len(m.Regions()))
				}
			}
			m := newMemory(t)
			r := startRestore(t, m, f, RestoreOptions{WorkingSets: NoWorkingSet, RecordFor: -1, Retry: Retry{Attempts: 1},
				Backing: func(snapfile.Region) guestmem.Backing { return guestmem.BackingMemfd }})
			p := make([]byte, smallPage)
			wrongs := 0
			for n := range addr.GPA(16) {
				_, err := m.ReadAt(p, 1<<20+n*smallPage)
				want := zeroPage
				if n >= 2 && n < 5 || n == 9 || n == 10 {
					want = snaptest.Content(0, uint64(n))
				}
				switch {
				case err == nil && !bytes.Equal(p, want):
					t.Errorf("%s: page %d holds %x..., want %x...", what, n, head(p), head(want))
				case err != nil && !errors.Is(err, snapfile.ErrDamaged) && !errors.Is(err, snapfile.ErrCodec):
					t.Errorf("%s: page %d: %v", what, n, err)
				case err != nil:
					wrongs++
				}
			}
			if (wrong.Name == "") != (wrongs == 0) {
				t.Errorf("%s: %d pages could not be read", what, wrongs)
			}
			must(t, r.Close())
			must(t, f.Close())
		}
	}
}

// flateCodec is the codec of package snaptest.
type flateCodec struct{}

func (flateCodec) ID() uint32   { return snaptest.FlateCodec }
func (flateCodec) Name() string { return "flate" }

func (flateCodec) Encode(dst, src []byte) ([]byte, error) {
	return append(dst, snaptest.Flate(src).Stored...), nil
}

func (flateCodec) Decode(dst, src []byte) ([]byte, error) {
	n, err := io.ReadFull(flate.NewReader(bytes.NewReader(src)), dst[len(dst):cap(dst)])
	return dst[:len(dst)+n], err
}
