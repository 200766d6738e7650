package pager

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/cow/snapfile"
	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

// A savedImage is guest memory to be written to a snapshot file: every page says
// where it is, and every fifth is zero.
type savedImage struct{ regions []snapfile.Region }

func isZeroPage(gpa addr.GPA) bool { return uint64(gpa)/smallPage%5 == 3 }

// savedPage is what the page at gpa holds.
func savedPage(gpa addr.GPA) []byte {
	if isZeroPage(gpa) {
		return zeroPage
	}
	return imagePage(uint64(gpa))
}

func (s savedImage) Regions() []snapfile.Region { return s.regions }

func (s savedImage) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	for _, r := range s.regions {
		if r.Base != base {
			continue
		}
		for at := r.Base; at < r.Base+addr.GPA(r.Size); at += smallPage {
			if !isZeroPage(at) && !yield(at, 1) {
				return nil
			}
		}
	}
	return nil
}

func (s savedImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	for i := 0; i < len(p); i += smallPage {
		copy(p[i:], savedPage(gpa+addr.GPA(i)))
	}
	return len(p), nil
}

// twoRegions is memory of n pages, and a ROM.
func twoRegions(n uint64) savedImage {
	return savedImage{[]snapfile.Region{
		{Name: "ram", Base: 1 << 20, Size: n * smallPage, PageSize: smallPage},
		{Name: "rom", Base: 1 << 32, Size: 64 * smallPage, PageSize: smallPage, ReadOnly: true},
	}}
}

// save writes an image and returns the path of its file.
func save(t testing.TB, img snapfile.Image, o snapfile.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.snap")
	o.Sync = snapfile.SyncNone
	if _, err := snapfile.Write(context.Background(), path, img, o); err != nil {
		t.Fatal(err)
	}
	return path
}

func openSaved(t testing.TB, path string) *snapfile.File {
	t.Helper()
	f, err := snapfile.Open(path, snapfile.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func newMemory(t testing.TB) *guestmem.Memory {
	t.Helper()
	m, err := guestmem.NewMemory(guestmem.MemoryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// startRestore restores a file lazily until the test ends.
func startRestore(t testing.TB, m *guestmem.Memory, f *snapfile.File, o RestoreOptions) *Restore {
	t.Helper()
	testutil.RequireUFFD(t, testutil.UFFDMissingShmem)
	if o.Fail == nil && o.OnFailure == FailGuest {
		o.Fail = func(error) {}
	}
	r, err := StartRestore(context.Background(), m, f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// slotAt is where vCPUs have a guest-physical address.
func slotAt(m *guestmem.Memory, gpa addr.GPA) addr.HVA {
	r, _ := m.RegionAt(gpa)
	return r.Slot() + addr.HVA(gpa-r.Base())
}

// wantAll reads every page of the image in both ways: as a vCPU does, and by Go code.
func wantAll(t testing.TB, m *guestmem.Memory, img savedImage) {
	t.Helper()
	var wg sync.WaitGroup
	for way := range 2 {
		wg.Go(func() {
			p := make([]byte, smallPage)
			for _, r := range img.regions {
				for at := r.Base; at < r.Base+addr.GPA(r.Size); at += smallPage {
					var err error
					if way == 0 {
						err = load(slotAt(m, at), p)
					} else {
						_, err = m.ReadAt(p, at)
					}
					if err != nil || !bytes.Equal(p, savedPage(at)) {
						t.Errorf("way %d: page at %v: %v, %x..., want %x...", way, at, err, head(p), head(savedPage(at)))
						return
					}
				}
			}
		})
	}
	testutil.Proceeds(t, testutil.Go(wg.Wait), "readers")
}

func waitRestored(t testing.TB, r *Restore) {
	t.Helper()
	testutil.Proceeds(t, r.Done(), "end of the restore")
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
}

// TestRestore: a guest finds in its memory what the file holds while it comes,
// and when all of it has come its regions are as any others.
func TestRestore(t *testing.T) {
	for _, layout := range []snapfile.Layout{snapfile.LayoutRaw, snapfile.LayoutPacked} {
		t.Run(layout.String(), func(t *testing.T) {
			img := twoRegions(2000)
			f := openSaved(t, save(t, img, snapfile.Options{Layout: layout}))
			m := newMemory(t)
			r := startRestore(t, m, f, RestoreOptions{RecordFor: -1})
			wantAll(t, m, img)
			// Stores and slices work meanwhile, or after.
			at := img.regions[0].Base + 7*smallPage + 100
			if _, err := m.WriteAt([]byte("mine"), at); err != nil {
				t.Fatal(err)
			}
			if _, err := m.WriteAt([]byte("mine"), img.regions[1].Base); !errors.Is(err, guestmem.ErrReadOnly) {
				t.Errorf("a store to the ROM: %v", err)
			}
			s, err := m.Slice(img.regions[0].Base+9*smallPage, 3*smallPage, guestmem.Write)
			if err != nil {
				t.Fatal(err)
			}
			if got := s.Bytes()[:smallPage]; !bytes.Equal(got, savedPage(s.GPA())) {
				t.Errorf("the slice shows %x...", head(got))
			}
			s.Release()
			waitRestored(t, r)
			f.Close() // nobody needs it
			p := make([]byte, smallPage)
			if _, err := m.ReadAt(p, at&^(smallPage-1)); err != nil || string(p[100:104]) != "mine" {
				t.Errorf("what was stored reads %q, %v", p[100:104], err)
			}
			copy(p[100:104], savedPage(at &^ (smallPage - 1))[100:104])
			if _, err := m.WriteAt(p, at&^(smallPage-1)); err != nil {
				t.Fatal(err)
			}
			wantAll(t, m, img)
			if _, err := m.Seal(); err != nil { // which takes no region that is served
				t.Error(err)
			}
		})
	}
}

// TestRestoreWaitsForSlices: memory that somebody holds is given back when it is
// let go of, and works all the while.
func TestRestoreWaitsForSlices(t *testing.T) {
	img := twoRegions(64)
	m := newMemory(t)
	// The rest comes only when the slice is held.
	gate := make(chan struct{})
	r := startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{RecordFor: -1, wrap: func(s Source) Source {
		return &slowSource{s, 16, gate}
	}})
	s, err := m.Slice(img.regions[0].Base, smallPage, guestmem.Read)
	close(gate)
	if err != nil {
		t.Fatal(err)
	}
	wantAll(t, m, img)
	testutil.Parked(t, r.Done(), "end of the restore of memory that is held")
	if _, err := r.Guest().Detach(); !errors.Is(err, ErrNotSupported) {
		t.Errorf("Detach of a restore's guest: %v, want ErrNotSupported", err)
	}
	s.Release()
	waitRestored(t, r)
	wantAll(t, m, img)
}

// TestRestoreOfDiscardedPages: what the guest gives back is zero from then on,
// and no hindrance for the restore to end.
func TestRestoreOfDiscardedPages(t *testing.T) {
	img := twoRegions(512)
	m := newMemory(t)
	base := img.regions[0].Base
	r := startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{Rest: LeaveRest})
	loadPage(t, slotAt(m, base+8*smallPage), savedPage(base+8*smallPage))
	if err := m.Discard(base+8*smallPage, 8*smallPage); err != nil {
		t.Fatal(err)
	}
	for i := range addr.GPA(8) {
		loadPage(t, slotAt(m, base+(8+i)*smallPage), zeroPage)
	}
	loadPage(t, slotAt(m, base+16*smallPage), savedPage(base+16*smallPage))
	r.Close()

	m = newMemory(t)
	r = startRestore(t, m, openSaved(t, save(t, img, snapfile.Options{})), RestoreOptions{RecordFor: -1})
	if err := m.Discard(base+8*smallPage, 8*smallPage); err != nil {
		t.Fatal(err)
	}
	waitRestored(t, r)
	for i := range addr.GPA(8) {
		loadPage(t, slotAt(m, base+(8+i)*smallPage), zeroPage)
	}
	loadPage(t, slotAt(m, base+16*smallPage), savedPage(base+16*smallPage))
}

// TestRestoreRecordsAndReplays: what the first guest touched is there for the next
// one before it asks.
func TestRestoreRecordsAndReplays(t *testing.T) {
	img := twoRegions(4096)
	path := save(t, img, snapfile.Options{})
	base := img.regions[0].Base
	touch := func(m *guestmem.Memory) {
		for i := range addr.GPA(30) {
			at := base + (i*97+5)*smallPage
			if i%3 > 0 {
				loadPage(t, slotAt(m, at), savedPage(at))
				continue
			}
			p := make([]byte, smallPage) // Go code needs its pages, too
			if _, err := m.ReadAt(p, at); err != nil || !bytes.Equal(p, savedPage(at)) {
				t.Fatalf("page at %v: %v, %x...", at, err, head(p))
			}
		}
	}
	run := func(t *testing.T, replayed uint64, use func(*guestmem.Memory, *Restore)) *Restore {
		m := newMemory(t)
		r := startRestore(t, m, openSaved(t, path), RestoreOptions{Rest: LeaveRest})
		if n := r.Replayed(); n != replayed {
			t.Errorf("%d pages are replayed, want %d", n, replayed)
		}
		eventually(t, "the replay to end", func() bool { return !r.guest.fill.wanted() && r.guest.fill.active.Load() == 0 })
		use(m, r)
		r.Close()
		return r
	}
	r := run(t, 0, func(m *guestmem.Memory, _ *Restore) { touch(m) })
	if err := r.WorkingSetErr(); err != nil {
		t.Fatal(err)
	}
	touched := uint64(30)
	run(t, touched, func(m *guestmem.Memory, r *Restore) {
		touch(m)
		// Zeroes are known, and not worth a replay: they may fault.
		if n, zeroes := r.guest.Stats().Missing.Load(), uint64(6); n > zeroes {
			t.Errorf("%d faults on pages that were replayed", n)
		}
		loadPage(t, slotAt(m, base+4000*smallPage), savedPage(base+4000*smallPage))
	})
	run(t, touched+1, func(*guestmem.Memory, *Restore) {}) // both runs' pages
	t.Run("damaged", func(t *testing.T) {
		set, err := os.ReadFile(path + WorkingSetSuffix)
		if err != nil {
			t.Fatal(err)
		}
		set[len(set)/2] ^= 1
		if err := os.WriteFile(path+WorkingSetSuffix, set, 0o600); err != nil {
			t.Fatal(err)
		}
		r := run(t, 0, func(m *guestmem.Memory, _ *Restore) { touch(m) })
		if err := r.WorkingSetErr(); !errors.Is(err, ErrWorkingSet) {
			t.Errorf("a damaged set: %v", err)
		}
		run(t, touched, func(*guestmem.Memory, *Restore) {})
	})
	t.Run("of another file", func(t *testing.T) {
		other := save(t, img, snapfile.Options{})
		m := newMemory(t)
		r := startRestore(t, m, openSaved(t, other), RestoreOptions{WorkingSet: path + WorkingSetSuffix, WorkingSets: ReplayOnly, RecordFor: -1})
		if err := r.WorkingSetErr(); !errors.Is(err, ErrWrongImage) || r.Replayed() != 0 {
			t.Errorf("%v, %d pages replayed", err, r.Replayed())
		}
		waitRestored(t, r)
	})
}

// TestRestoreCancelled: a restore that is given up in the middle leaves nothing
// behind, and what is missing is an error and never zeroes.
func TestRestoreCancelled(t *testing.T) {
	img := twoRegions(2048)
	path := save(t, img, snapfile.Options{})
	asked, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m := newMemory(t)
	r := startRestore(t, m, openSaved(t, path), RestoreOptions{Rest: LeaveRest, wrap: func(s Source) Source {
		return &testSource{size: s.Size(), read: func(ctx context.Context, off uint64, _ int) error {
			once.Do(func() { close(asked) })
			select {
			case <-gate:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}}
	}})
	at := img.regions[0].Base + 5*smallPage
	read := make(chan error, 1)
	go func() {
		_, err := m.ReadAt(make([]byte, smallPage), at)
		read <- err
	}()
	testutil.Proceeds(t, asked, "read of the file")
	testutil.Parked(t, read, "read of a page that does not come")
	r.Close()
	if err := testutil.Proceeds(t, read, "read after Close"); !errors.Is(err, ErrClosed) {
		t.Errorf("read of what was given up: %v, want ErrClosed", err)
	}
	if _, err := m.ReadAt(make([]byte, 8), at+smallPage); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v, want ErrClosed", err)
	}
	if err := r.Wait(context.Background()); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
	r.Close()
}

// TestRestoreRefused: what cannot be restored leaves no region behind.
func TestRestoreRefused(t *testing.T) {
	img := twoRegions(64)
	f := openSaved(t, save(t, img, snapfile.Options{}))
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	ok := RestoreOptions{Fail: func(error) {}}
	for name, c := range map[string]struct {
		ctx  context.Context
		o    RestoreOptions
		want error
	}{
		"cancelled":  {cancelled, ok, context.Canceled},
		"no Fail":    {context.Background(), RestoreOptions{}, ErrInvalid},
		"standby":    {context.Background(), RestoreOptions{OnFailure: Standby}, ErrInvalid},
		"a bad rest": {context.Background(), RestoreOptions{OnFailure: Park, Rest: 7}, ErrInvalid},
		"private": {context.Background(), RestoreOptions{OnFailure: Park, Backing: func(r snapfile.Region) guestmem.Backing {
			if r.ReadOnly {
				return guestmem.BackingAnonymous
			}
			return guestmem.BackingMemfd
		}}, ErrInvalid},
	} {
		m := newMemory(t)
		if _, err := StartRestore(c.ctx, m, f, c.o); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if n := len(m.Regions()); n != 0 {
			t.Errorf("%s: %d regions are left", name, n)
		}
	}
	m := newMemory(t)
	if _, err := m.AddRegion(guestmem.RegionOptions{Base: img.regions[1].Base, Size: smallPage}); err != nil {
		t.Fatal(err)
	}
	if _, err := StartRestore(context.Background(), m, f, ok); !errors.Is(err, guestmem.ErrExists) {
		t.Errorf("where a region is: %v", err)
	}
	if err := RestoreNow(context.Background(), m, f, EagerOptions{}); !errors.Is(err, guestmem.ErrExists) {
		t.Errorf("where a region is, at once: %v", err)
	}
	if n := len(m.Regions()); n != 1 {
		t.Errorf("%d regions, want 1", n)
	}
}

// TestRestoreOfAnIncrement: pages come from the file or from its parent.
func TestRestoreOfAnIncrement(t *testing.T) {
	img := twoRegions(256)
	dir := t.TempDir()
	write := func(name string, img snapfile.Image, o snapfile.Options) {
		o.Sync = snapfile.SyncNone
		if _, err := snapfile.Write(context.Background(), filepath.Join(dir, name), img, o); err != nil {
			t.Fatal(err)
		}
	}
	write("full", img, snapfile.Options{})
	change := changedImage{img, img.regions[0].Base + 50*smallPage}
	write("child", change, snapfile.Options{Parent: openSaved(t, filepath.Join(dir, "full"))})
	m := newMemory(t)
	r := startRestore(t, m, openSaved(t, filepath.Join(dir, "child")), RestoreOptions{RecordFor: -1})
	loadPage(t, slotAt(m, change.at), imagePage(12345*smallPage))
	loadPage(t, slotAt(m, change.at+smallPage), savedPage(change.at+smallPage))
	waitRestored(t, r)
	loadPage(t, slotAt(m, change.at+3*smallPage), savedPage(change.at+3*smallPage))
	loadPage(t, slotAt(m, change.at), imagePage(12345*smallPage))
}

// changedImage is one of which one page is another.
type changedImage struct {
	savedImage
	at addr.GPA
}

func (c changedImage) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	if base == c.regions[0].Base {
		yield(c.at, 1)
	}
	return nil
}

func (c changedImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	if gpa != c.at || len(p) != smallPage {
		return 0, io.ErrUnexpectedEOF
	}
	return copy(p, imagePage(12345*smallPage)), nil
}
