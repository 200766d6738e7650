package guestmem

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// TestSnapshotsBecomeFiles writes a live snapshot to a file, and increments of what
// changed since, while Go code and a device go on storing. Each file restored is
// the memory as it was at its instant.
func TestSnapshotsBecomeFiles(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	const size = 2 << 20
	unchangedHost(t)
	m := newPhys(t)
	regions := []*Region{
		mustAdd(t, m, RegionOptions{Base: 0, Size: size, Name: "low"}),
		mustAdd(t, m, RegionOptions{Base: 1 << 32, Size: size, Name: "high"}),
	}
	rng := rand.New(rand.NewPCG(3, 4))
	store := func() {
		r := regions[rng.IntN(2)]
		at := r.gpaOf(rng.Uint64N(size / addr.PageSize))
		if _, err := m.WriteAt([]byte{byte(rng.Uint32()) | 1, 2, 3}, at+addr.GPA(rng.Uint64N(4000))); err != nil {
			t.Error(err)
		}
	}
	for range 300 {
		store()
	}
	dir := t.TempDir()
	var snapshots []*Snapshot
	var parent *snapfile.File
	defer func() {
		for _, s := range snapshots {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		}
	}()
	for n, name := range []string{"full", "second", "third"} {
		var want [2][]byte
		s, err := m.Snapshot(t.Context(), SnapshotOptions{Sweep: SweepOnDemand, AtInstant: func() error {
			for i, r := range regions {
				want[i] = make([]byte, size)
				if _, err := m.ReadAt(want[i], r.Base()); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		snapshots = append(snapshots, s)
		img := s.Image()
		if n > 0 {
			img = s.ImageSince(snapshots[n-1])
		}
		var storing sync.WaitGroup
		storing.Go(func() {
			for range 200 {
				store()
			}
		})
		path := filepath.Join(dir, name)
		info, err := snapfile.Write(t.Context(), path, img, snapfile.Options{Parent: parent, State: []byte(name)})
		storing.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 && (info.DataPages == 0 || info.DataPages > 250) {
			t.Errorf("the increment %s has %d pages", name, info.DataPages)
		}
		f, err := snapfile.Open(path, snapfile.OpenOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		parent = f
		restored := newPhys(t)
		for _, r := range f.Regions() {
			mustAdd(t, restored, RegionOptions{Name: r.Name, Base: r.Base, Size: r.Size})
		}
		if err := f.Restore(t.Context(), restored, snapfile.RestoreOptions{}); err != nil {
			t.Fatal(err)
		}
		for i, r := range regions {
			got := make([]byte, size)
			if _, err := restored.ReadAt(got, r.Base()); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want[i]) {
				t.Errorf("%s: the region %s is not what it was", name, r.Name())
			}
		}
	}
}

// TestRawFilesBackClones maps a raw file as the memory of two guests, which share
// what they do not store to.
func TestRawFilesBackClones(t *testing.T) {
	testutil.RequireUFFD(t, testutil.UFFDWPShmem)
	const size = 1 << 20
	unchangedHost(t)
	m := newPhys(t)
	r := mustAdd(t, m, RegionOptions{Base: 1 << 20, Size: size})
	for i := range uint64(100) {
		if _, err := m.WriteAt([]byte{byte(i) + 1}, r.gpaOf(2*i)); err != nil {
			t.Fatal(err)
		}
	}
	s, err := m.Snapshot(t.Context(), SnapshotOptions{})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guestmm-test-file")
	_, err = snapfile.Write(t.Context(), path, s.Image(), snapfile.Options{})
	if err := errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	f, err := snapfile.Open(path, snapfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	file, off, ok := f.Raw(r.Base())
	if !ok {
		t.Fatal("the file is not raw")
	}
	want := make([]byte, size)
	if _, err := m.ReadAt(want, r.Base()); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	for range 2 {
		clone := newPhys(t)
		c := mustAdd(t, clone, RegionOptions{Base: r.Base(), Size: size, Backing: BackingFilePrivate, File: file, Offset: uint64(off)})
		if _, err := clone.ReadAt(got, c.Base()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("the clone is not what was written")
		}
		if _, err := clone.WriteAt(bytes.Repeat([]byte{0xee}, size), c.Base()); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Errorf("a clone's stores reached the file: %v", err)
	}
}
