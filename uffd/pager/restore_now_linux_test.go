package pager

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// TestRestoreNow: all of it is there before anybody runs, written or mapped.
func TestRestoreNow(t *testing.T) {
	img := twoRegions(700)
	for _, c := range []struct {
		layout snapfile.Layout
		o      EagerOptions
		want   error
	}{
		{snapfile.LayoutRaw, EagerOptions{}, nil},
		{snapfile.LayoutPacked, EagerOptions{}, nil},
		{snapfile.LayoutRaw, EagerOptions{Placement: MapFile}, nil},
		{snapfile.LayoutPacked, EagerOptions{Placement: MapFile}, ErrInvalid},
		{snapfile.LayoutRaw, EagerOptions{Placement: 9}, ErrInvalid},
	} {
		t.Run(fmt.Sprintf("%v/%d", c.layout, c.o.Placement), func(t *testing.T) {
			f := openSaved(t, save(t, img, snapfile.Options{Layout: c.layout}))
			m := newMemory(t)
			if err := RestoreNow(context.Background(), m, f, c.o); !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want != nil {
				if n := len(m.Regions()); n != 0 {
					t.Errorf("%d regions are left", n)
				}
				return
			}
			f.Close()
			wantAll(t, m, img)
			rom, _ := m.RegionAt(img.regions[1].Base)
			if !rom.ReadOnly() {
				t.Error("the ROM can be written")
			}
			if _, err := m.WriteAt([]byte{1}, img.regions[0].Base); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestR12FlippedBits: whatever bit of the file is wrong, no guest sees a wrong byte,
// nor zeroes: it gets what the file held, or nothing, and its owner an error with
// a name. Eager restores refuse the file.
func TestR12FlippedBits(t *testing.T) {
	img := twoRegions(128)
	for _, layout := range []snapfile.Layout{snapfile.LayoutRaw, snapfile.LayoutPacked} {
		good, err := os.ReadFile(save(t, img, snapfile.Options{Layout: layout}))
		if err != nil {
			t.Fatal(err)
		}
		rnd := rand.New(rand.NewPCG(3, uint64(layout)))
		refused, damaged := 0, 0
		for range 60 {
			bad := bytes.Clone(good)
			at := rnd.IntN(len(bad))
			bad[at] ^= 1 << rnd.IntN(8)
			path := filepath.Join(t.TempDir(), "bad.snap")
			if err := os.WriteFile(path, bad, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := snapfile.Open(path, snapfile.OpenOptions{})
			if err != nil {
				refused++
				continue
			}
			for _, o := range []EagerOptions{{}, {Placement: MapFile}} {
				m := newMemory(t)
				err := RestoreNow(context.Background(), m, f, o)
				if err == nil || len(m.Regions()) != 0 {
					t.Errorf("%v, byte %#x: an eager restore says %v, and leaves %d regions", layout, at, err, len(m.Regions()))
				}
			}
			damaged += restoreBad(t, img, f, fmt.Sprintf("%v, byte %#x", layout, at))
			f.Close()
		}
		if refused+damaged == 0 || damaged == 0 {
			t.Errorf("%v: %d files were refused, %d had damaged pages: nothing was tried", layout, refused, damaged)
		}
	}
}

// restoreBad restores a file of which a chunk may be damaged, wants nothing wrong
// to be seen, and returns how many pages could not be had.
func restoreBad(t *testing.T, img savedImage, f *snapfile.File, what string) (unreadable int) {
	m := newMemory(t)
	failed := make(chan error, 1)
	r := startRestore(t, m, f, RestoreOptions{Fail: func(err error) { failed <- err }, WorkingSets: NoWorkingSet, Retry: Retry{Attempts: 1}})
	p := make([]byte, smallPage)
	for _, region := range img.regions {
		for at := region.Base; at < region.Base+addr.GPA(region.Size); at += smallPage {
			_, err := m.ReadAt(p, at)
			switch {
			case err == nil && !bytes.Equal(p, savedPage(at)):
				t.Errorf("%s: the guest reads %x... at %v, want %x...", what, head(p), at, head(savedPage(at)))
			case err != nil && !errors.Is(err, snapfile.ErrDamaged):
				t.Errorf("%s: %v, want ErrDamaged", what, err)
			case err != nil:
				unreadable++
			}
		}
	}
	if unreadable > 0 {
		if err := testutil.Proceeds(t, failed, "Fail"); !errors.Is(err, ErrSource) || !errors.Is(err, snapfile.ErrDamaged) {
			t.Errorf("%s: the owner is told %v", what, err)
		}
	}
	r.Close()
	// After the end what is missing is no zero either.
	for at := img.regions[0].Base; at < img.regions[0].Base+addr.GPA(img.regions[0].Size); at += smallPage {
		if _, err := m.ReadAt(p, at); err == nil && !bytes.Equal(p, savedPage(at)) {
			t.Errorf("%s: after Close: %x... at %v", what, head(p), at)
		}
	}
	return unreadable
}
