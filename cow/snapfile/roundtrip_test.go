package snapfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
	"pgregory.net/rapid"
)

// TestRoundTrip writes random images, full and then in increments, by every
// layout and with and without a codec, and reads them in every way.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		var parent *File
		var files []*File
		defer func() {
			for _, f := range files {
				f.Close()
			}
		}()
		var now *fakeImage
		for depth := range rapid.IntRange(1, 4).Draw(rt, "files") {
			img := drawImage(rt)
			o := Options{
				Parent:    parent,
				State:     rapid.SliceOfN(rapid.Byte(), 0, 100).Draw(rt, "state"),
				ChunkSize: uint64(addr.PageSize) << rapid.IntRange(0, 5).Draw(rt, "chunk"),
				Workers:   rapid.IntRange(0, 4).Draw(rt, "workers"),
				Sync:      SyncNone,
			}
			if rapid.Bool().Draw(rt, "codec") {
				o.Codec = testCodec
			}
			if rapid.Bool().Draw(rt, "packed") {
				o.Layout = LayoutPacked
			}
			path := filepath.Join(dir, fmt.Sprintf("%d-%d.snap", n, depth))
			info := mustWrite(rt, path, img, o)
			f, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}, CacheBytes: 1 << 16})
			if err != nil {
				rt.Fatal(err)
			}
			files = append(files, f)
			if now == nil {
				now = img
			} else {
				now = img.over(now)
			}
			if diff := cmp.Diff(info, f.Info()); diff != "" {
				rt.Fatalf("what Write and Open say differs: %s", diff)
			}
			if !bytes.Equal(f.State(), o.State) || !slices.Equal(f.Regions(), testRegions) {
				rt.Fatal("state or regions differ")
			}
			checkSame(rt, f, now)
			parent = f
		}
	})
}

// drawImage draws pages: dense, scattered, zero ones among them.
func drawImage(t *rapid.T) *fakeImage {
	img := newFakeImage(testRegions...)
	for _, r := range testRegions {
		for range rapid.IntRange(0, 4).Draw(t, "runs") {
			first := rapid.Uint64Range(0, r.nPages()-1).Draw(t, "first")
			n := min(rapid.Uint64Range(1, 40).Draw(t, "n"), r.nPages()-first)
			seed := rapid.Uint64Range(0, 3).Draw(t, "seed")
			every := rapid.Uint64Range(1, 3).Draw(t, "every")
			for i := uint64(0); i < n; i += every {
				img.put(r.gpaOf(first+i), seed)
			}
		}
	}
	return img
}

// TestBatchesAreInOrder writes more than a few batches, of dense and of scattered
// pages, through more workers than there are processors.
func TestBatchesAreInOrder(t *testing.T) {
	for _, o := range []Options{{}, {Layout: LayoutPacked}, {Codec: testCodec}} {
		t.Run(fmt.Sprintf("%v/codec=%v", o.Layout, o.Codec != nil), func(t *testing.T) {
			img := newFakeImage(Region{Name: "ram", Base: 0x5000, Size: 24 << 20, PageSize: addr.PageSize})
			dense := uint64(6 << 20 / addr.PageSize)
			if invariants.Enabled {
				dense /= 4
			}
			for page := range dense {
				if page%5 != 0 {
					img.put(img.regions[0].gpaOf(page), page)
				}
				if page < dense-36 {
					img.put(img.regions[0].gpaOf(page+2048), 2*page+2)
				}
			}
			o.Sync, o.Workers = SyncNone, 7
			last := uint64(0)
			o.Progress = func(done, total uint64) {
				if done < last || done > total || total != 24<<20 {
					t.Errorf("progress %d of %d after %d", done, total, last)
				}
				last = done
			}
			path := filepath.Join(t.TempDir(), "x")
			mustWrite(t, path, img, o)
			if last != 24<<20 {
				t.Errorf("progress ended at %d", last)
			}
			checkSame(t, mustOpen(t, path), img)
		})
	}
}

// TestZeroPagesCostNothing: neither data nor index grows with what is zero, told or
// not, and a region of a tebibyte takes a moment.
func TestZeroPagesCostNothing(t *testing.T) {
	dir := t.TempDir()
	huge := []Region{{Name: "huge", Base: 1 << 32, Size: 1 << 40, PageSize: addr.PageSize}}
	some := []addr.GPA{1 << 32, 1<<32 + 1<<39, 1<<32 + 1<<40 - addr.PageSize}
	full := newFakeImage(huge...)
	for i, gpa := range some {
		full.put(gpa, uint64(i)+1)
	}
	for i := range uint64(1000) {
		full.put(1<<33+addr.GPA(i*addr.PageSize), 0) // told, and zero
	}
	for _, layout := range []Layout{LayoutRaw, LayoutPacked} {
		info := mustWrite(t, filepath.Join(dir, layout.String()), full, Options{Layout: layout})
		if info.DataPages != 3 || info.Extents != 3 || info.Chunks > 3 || info.IndexBytes > regionSize+6*16 {
			t.Errorf("%v: %+v", layout, info)
		}
		if used := diskUsage(t, info.Path); used > 128<<10 {
			t.Errorf("%v takes %d bytes of the disk", layout, used)
		}
		f := mustOpen(t, info.Path)
		if err := f.Verify(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, addr.PageSize)
		for _, gpa := range append(some, 1<<33, 1<<35) {
			if err := f.ReadPages(t.Context(), p, gpa); err != nil || !bytes.Equal(p, pageOf(full, gpa)) {
				t.Errorf("%v: page %v: %v", layout, gpa, err)
			}
		}
		pages, ranges := uint64(0), 0
		if err := f.ZeroRanges(1<<32, func(_ addr.GPA, n uint64) bool { pages += n; ranges++; return true }); err != nil {
			t.Fatal(err)
		}
		if pages != 1<<28-3 || ranges != 2 {
			t.Errorf("%v: %d pages in %d ranges are zero", layout, pages, ranges)
		}
	}
	// Zeroes over what the parent has cost an extent for each run.
	parent := mustOpen(t, filepath.Join(dir, "raw"))
	change := newFakeImage(huge...)
	for i := range uint64(5000) {
		change.put(1<<32+addr.GPA(i*addr.PageSize), 0)
	}
	info := mustWrite(t, filepath.Join(dir, "increment"), change, Options{Parent: parent})
	if info.Extents != 1 || info.ZeroPages != 5000 || info.Chunks != 0 {
		t.Errorf("increment of zeroes: %+v", info)
	}
}

func pageOf(m *fakeImage, gpa addr.GPA) []byte {
	if p := m.pages[gpa]; p != nil {
		return p
	}
	return zeroPage[:]
}

// TestRawLiesAsInMemory reads a raw file by its offsets alone.
func TestRawLiesAsInMemory(t *testing.T) {
	img := newFakeImage(testRegions...)
	for i := range uint64(20) {
		img.put(addr.GPA(i*2*addr.PageSize), i+1)
		img.put(0x40000000+addr.GPA(i*addr.PageSize), i+1)
	}
	path := filepath.Join(t.TempDir(), "x")
	mustWrite(t, path, img, Options{})
	f := mustOpen(t, path)
	for _, r := range testRegions {
		file, off, ok := f.Raw(r.Base)
		if !ok || off%addr.PageSize != 0 {
			t.Fatalf("%v: offset %#x, %v", r, off, ok)
		}
		got := make([]byte, r.Size)
		if _, err := io.ReadFull(io.NewSectionReader(file, off, int64(r.Size)), got); err != nil {
			t.Fatal(err)
		}
		for page := range r.nPages() {
			if !bytes.Equal(got[page*addr.PageSize:][:addr.PageSize], pageOf(img, r.gpaOf(page))) {
				t.Fatalf("page %d of %v", page, r)
			}
		}
	}
	mustWrite(t, path, img, Options{Layout: LayoutPacked})
	if _, _, ok := mustOpen(t, path).Raw(0); ok {
		t.Error("a packed file is raw")
	}
	if _, _, ok := f.Raw(addr.PageSize); ok {
		t.Error("the middle of a region is raw")
	}
}

func TestInfoIsJSON(t *testing.T) {
	dir := t.TempDir()
	img := newFakeImage(testRegions...)
	img.put(0, 4)
	mustWrite(t, filepath.Join(dir, "full"), img, Options{Codec: testCodec})
	mustWrite(t, filepath.Join(dir, "child"), img, Options{Parent: mustOpen(t, filepath.Join(dir, "full"))})
	info := mustOpen(t, filepath.Join(dir, "child")).Info()
	b, err := json.Marshal(info)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		ID, Layout string
		Regions    []struct{ Name string }
		Parent     struct{ ID, Codec string }
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.ID != info.ID.String() || got.Layout != "packed" || got.Parent.ID != info.Parent.ID.String() || got.Parent.Codec != "flate" || len(got.Regions) != 3 || info.Chain() != 2 {
		t.Errorf("%s", b)
	}
}

// TestChunksAreAlignedPieces: of dense memory each aligned piece is one chunk, so
// that a page-wise reader of such pieces reads each once.
func TestChunksAreAlignedPieces(t *testing.T) {
	img := newFakeImage(Region{Name: "ram", Base: 0, Size: 8 << 20, PageSize: addr.PageSize})
	for page := uint64(3); page < 2048; page++ { // begins within a piece
		if page != 700 { // a hole moves nothing
			img.put(addr.GPA(page*addr.PageSize), page)
		}
	}
	path := filepath.Join(t.TempDir(), "x")
	mustWrite(t, path, img, Options{Layout: LayoutPacked})
	f := mustOpen(t, path)
	for _, e := range f.regions[0].extents {
		if e.first/16 != (e.end()-1)/16 {
			t.Errorf("the chunk of pages [%d, %d) is of two pieces", e.first, e.end())
		}
	}
	if len(f.chunks) != 128 {
		t.Errorf("%d chunks", len(f.chunks))
	}
}

func removeAll(t testing.TB, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
	}
}
