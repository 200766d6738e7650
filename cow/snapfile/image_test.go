package snapfile

import (
	"bytes"
	"compress/flate"
	"context"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/testutil"
)

func TestMain(m *testing.M) { child(); testutil.Main(m) }

// fakeImage is guest memory for tests: pages that are not in it are zero.
type fakeImage struct {
	regions []Region
	pages   map[addr.GPA][]byte
	told    map[addr.GPA]bool // that Data yields; nil: those of pages
	readErr func(gpa addr.GPA) error
}

func newFakeImage(regions ...Region) *fakeImage {
	return &fakeImage{regions: regions, pages: map[addr.GPA][]byte{}}
}

func (m *fakeImage) Regions() []Region { return m.regions }

func (m *fakeImage) Data(base addr.GPA, yield func(start addr.GPA, nPages uint64) bool) error {
	i := slices.IndexFunc(m.regions, func(r Region) bool { return r.Base == base })
	if i < 0 {
		return fmt.Errorf("no region at %v", base)
	}
	r := m.regions[i]
	var list []addr.GPA
	if m.told != nil {
		list = slices.Collect(maps.Keys(m.told))
	} else {
		list = slices.Collect(maps.Keys(m.pages))
	}
	slices.Sort(list)
	var run span
	for _, gpa := range list {
		if gpa < r.Base || uint64(gpa-r.Base) >= r.Size {
			continue
		}
		page := uint64(gpa-r.Base) / addr.PageSize
		if run.n > 0 && run.end() == page {
			run.n++
			continue
		}
		if run.n > 0 && !yield(r.gpaOf(run.first), run.n) {
			return nil
		}
		run = span{page, 1}
	}
	if run.n > 0 {
		yield(r.gpaOf(run.first), run.n)
	}
	return nil
}

func (m *fakeImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	for off := 0; off < len(p); off += addr.PageSize {
		at := gpa + addr.GPA(off)
		if m.readErr != nil {
			if err := m.readErr(at); err != nil {
				return off, err
			}
		}
		if page := m.pages[at]; page != nil {
			copy(p[off:], page)
		} else {
			clear(p[off : off+addr.PageSize])
		}
	}
	return len(p), nil
}

// put stores a page of text or noise, or zeroes where the seed is 0.
func (m *fakeImage) put(gpa addr.GPA, seed uint64) {
	page := make([]byte, addr.PageSize)
	switch {
	case seed == 0:
	case seed%2 == 0: // a codec makes it smaller
		copy(page, bytes.Repeat(fmt.Appendf(nil, "page %d of memory. ", seed), addr.PageSize/16))
	default:
		rng := rand.New(rand.NewPCG(seed, uint64(gpa)))
		for i := range page {
			page[i] = byte(rng.Uint32())
		}
	}
	m.pages[gpa] = page
}

// over returns what an increment m makes of what was there before.
func (m *fakeImage) over(before *fakeImage) *fakeImage {
	sum := newFakeImage(m.regions...)
	maps.Copy(sum.pages, before.pages)
	maps.Copy(sum.pages, m.pages)
	return sum
}

// flateCodec is the standard library's codec.
type flateCodec struct{ number uint32 }

func (c flateCodec) ID() uint32   { return c.number }
func (c flateCodec) Name() string { return "flate" }

func (c flateCodec) Encode(dst, src []byte) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	w, err := flate.NewWriter(out, flate.BestSpeed)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(src); err != nil {
		return nil, err
	}
	err = w.Close()
	return out.Bytes(), err
}

func (c flateCodec) Decode(dst, src []byte) ([]byte, error) {
	r := flate.NewReader(bytes.NewReader(src))
	n, err := io.ReadFull(r, dst[len(dst):cap(dst)])
	return dst[:len(dst)+n], err
}

var testCodec Codec = flateCodec{77}

var testRegions = []Region{
	{Name: "low", Base: 0, Size: 48 * addr.PageSize, PageSize: addr.PageSize},
	{Name: "rom", Base: 0x100000, Size: 2 * addr.PageSize, PageSize: addr.PageSize, ReadOnly: true},
	{Name: "high", Base: 0x40000000, Size: 96 * addr.PageSize, PageSize: 1 << 21},
}

func mustWrite(t reporter, path string, img Image, o Options) Info {
	t.Helper()
	info, err := Write(context.Background(), path, img, o)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func mustOpen(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// memory is what is restored to. It refuses a page that is written twice.
type memory struct {
	mu    sync.Mutex
	pages map[addr.GPA][]byte
}

func (m *memory) WriteAt(p []byte, gpa addr.GPA) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pages == nil {
		m.pages = map[addr.GPA][]byte{}
	}
	for off := 0; off < len(p); off += addr.PageSize {
		at := gpa + addr.GPA(off)
		if m.pages[at] != nil {
			return off, fmt.Errorf("page %v comes twice", at)
		}
		m.pages[at] = slices.Clone(p[off : off+addr.PageSize])
	}
	return len(p), nil
}

// checkSame holds every way to read a file against the image.
func checkSame(t reporter, f *File, want *fakeImage) {
	t.Helper()
	ctx := context.Background()
	if err := f.Verify(ctx, nil); err != nil {
		t.Fatal(err)
	}
	var restored memory
	if err := f.Restore(ctx, &restored, RestoreOptions{}); err != nil {
		t.Fatal(err)
	}
	for gpa, page := range restored.pages {
		if isZero(page) {
			t.Fatalf("zeroes were restored at %v", gpa)
		}
	}
	for _, r := range f.Regions() {
		all := make([]byte, r.Size)
		rand.NewChaCha8([32]byte{}).Read(all[:addr.PageSize])
		if err := f.ReadPages(ctx, all, r.Base); err != nil {
			t.Fatal(err)
		}
		known := make([]bool, r.nPages())
		end := uint64(0)
		if err := f.ZeroRanges(r.Base, func(start addr.GPA, n uint64) bool {
			first := uint64(start-r.Base) / addr.PageSize
			if n == 0 || first < end || end > 0 && first == end {
				t.Fatalf("range of zeroes of %d pages at %v behind page %d", n, start, end)
			}
			for end = first; end < first+n; end++ {
				known[end] = true
			}
			return true
		}); err != nil {
			t.Fatal(err)
		}
		src, err := f.Source(r.Base)
		if err != nil {
			t.Fatal(err)
		}
		one := make([]byte, addr.PageSize)
		for page := range r.nPages() {
			gpa := r.gpaOf(page)
			expect := want.pages[gpa]
			if expect == nil {
				expect = zeroPage[:]
			}
			if got := all[page*addr.PageSize:][:addr.PageSize]; !bytes.Equal(got, expect) {
				t.Fatalf("page %v was read wrong", gpa)
			}
			if isZero(expect) != known[page] {
				t.Fatalf("page %v: zero %v, known to be zero %v", gpa, isZero(expect), known[page])
			}
			if got := restored.pages[gpa]; !isZero(expect) && !bytes.Equal(got, expect) || isZero(expect) && got != nil {
				t.Fatalf("page %v was restored wrong", gpa)
			}
			if err := src.ReadPages(ctx, one, page*addr.PageSize); err != nil || !bytes.Equal(one, expect) {
				t.Fatalf("page %v of the source: %v", gpa, err)
			}
			if err := src.TryReadPages(one, page*addr.PageSize); err == nil && !bytes.Equal(one, expect) {
				t.Fatalf("page %v was tried wrong", gpa)
			}
		}
	}
}

// filesIn returns the names in a directory.
func filesIn(t testing.TB, dir string) (names []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	slices.Sort(names)
	return names
}

// reporter is what testing.TB and *rapid.T have in common.
type reporter interface {
	Helper()
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}
