package snapfile

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/inject"
	"github.com/guestmm/guestmm/internal/invariants"
	"syscall"
)

// wide writes 2 MiB with a codec and an increment to it.
func wide(t testing.TB) (*File, *fakeImage) {
	t.Helper()
	dir := t.TempDir()
	region := Region{Name: "ram", Base: 0, Size: 2 << 20, PageSize: addr.PageSize}
	img, change := newFakeImage(region), newFakeImage(region)
	for page := range uint64(512) {
		if page%7 != 0 {
			img.put(addr.GPA(page*addr.PageSize), page+1)
		}
		if page%11 == 0 {
			change.put(addr.GPA(page*addr.PageSize), page%3)
		}
	}
	mustWrite(t, filepath.Join(dir, "full"), img, Options{Codec: testCodec, Sync: SyncNone})
	mustWrite(t, filepath.Join(dir, "child"), change, Options{Parent: mustOpen(t, filepath.Join(dir, "full")), Sync: SyncNone})
	return mustOpen(t, filepath.Join(dir, "child")), change.over(img)
}

// TestConcurrentReaders has goroutines read random runs, with a cache for three
// chunks, so that they wait for each other's reads and lose buffers to each other.
func TestConcurrentReaders(t *testing.T) {
	f, want := wide(t)
	f.cache.most = 3 * DefaultChunk
	reads := 150
	if invariants.Enabled {
		reads = 25
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			p := make([]byte, 32*addr.PageSize)
			for range reads {
				first, n := rng.Uint64N(512), 1+rng.Uint64N(32)
				n = min(n, 512-first)
				q := p[:n*addr.PageSize]
				if err := f.ReadPages(context.Background(), q, addr.GPA(first*addr.PageSize)); err != nil {
					t.Error(err)
					return
				}
				for i := range n {
					if !bytes.Equal(q[i*addr.PageSize:][:addr.PageSize], pageOf(want, addr.GPA((first+i)*addr.PageSize))) {
						t.Errorf("page %d is wrong", first+i)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	f.cache.mu.Lock()
	defer f.cache.mu.Unlock()
	if f.cache.kept > f.cache.most || len(f.cache.byKey) != f.cache.order.Len() {
		t.Errorf("the cache keeps %d bytes of %d, %d keys for %d chunks", f.cache.kept, f.cache.most, len(f.cache.byKey), f.cache.order.Len())
	}
	for _, e := range f.cache.byKey {
		if e.users != 0 {
			t.Errorf("chunk %d has %d users", e.key.chunk, e.users)
		}
	}
}

// TestFailedReadsAreTriedAgain: an error is no answer for the next reader.
func TestFailedReadsAreTriedAgain(t *testing.T) {
	f, want := wide(t)
	p := make([]byte, addr.PageSize)
	run := inject.Start(inject.Plan{Match: inject.Only("snapfile: read"), OneIn: 2, Seed: 5, Errno: syscall.EIO})
	failed := 0
	err := run.During(func() error {
		for page := range uint64(512) {
			switch err := f.ReadPages(t.Context(), p, addr.GPA(page*addr.PageSize)); {
			case errors.Is(err, syscall.EIO):
				failed++
				if !isZero(p) {
					t.Errorf("page %d has something after an error", page)
				}
			case err != nil:
				return err
			case !bytes.Equal(p, pageOf(want, addr.GPA(page*addr.PageSize))):
				t.Errorf("page %d is wrong", page)
			}
		}
		return nil
	})
	if err != nil || failed == 0 {
		t.Fatalf("%d reads failed, %v", failed, err)
	}
	checkSame(t, f, want)
}

// TestCloseWhileReading: readers get what they asked for, or ErrClosed.
func TestCloseWhileReading(t *testing.T) {
	f, want := wide(t)
	var wg sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		wg.Go(func() {
			p := make([]byte, addr.PageSize)
			for i := uint64(0); ; i++ {
				gpa := addr.GPA(i * 37 % 512 * addr.PageSize)
				err := f.ReadPages(context.Background(), p, gpa)
				if errors.Is(err, ErrClosed) {
					return
				}
				if err != nil || !bytes.Equal(p, pageOf(want, gpa)) {
					t.Errorf("page %v: %v", gpa, err)
					return
				}
				if i == 3 {
					started <- struct{}{}
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

// TestWritersBesideEachOther: two that write to one path leave one whole file, and
// none loses its temporary to the other's cleaning.
func TestWritersBesideEachOther(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	images := []*fakeImage{newFakeImage(testRegions...), newFakeImage(testRegions...)}
	images[0].put(0, 1)
	images[1].put(0, 3)
	var wg sync.WaitGroup
	for _, img := range images {
		for range 2 {
			wg.Go(func() {
				for range 25 {
					if _, err := Write(context.Background(), path, img, Options{Sync: SyncNone}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	f := mustOpen(t, path)
	if err := f.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if left := filesIn(t, dir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}
