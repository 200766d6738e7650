package snapfile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// oddImage yields what an Image must not.
type oddImage struct {
	*fakeImage
	runs [][2]uint64 // address, pages
	err  error
	less int // bytes that ReadAt leaves out
}

func (m *oddImage) Data(_ addr.GPA, yield func(addr.GPA, uint64) bool) error {
	for _, r := range m.runs {
		if !yield(addr.GPA(r[0]), r[1]) {
			break
		}
	}
	return m.err
}

func (m *oddImage) ReadAt(p []byte, gpa addr.GPA) (int, error) {
	n, err := m.fakeImage.ReadAt(p, gpa)
	return n - m.less, err
}

// TestBadImages: what an image gives is checked before it is used, and nothing is
// left of a file that it spoils.
func TestBadImages(t *testing.T) {
	ram := newFakeImage(Region{Name: "ram", Base: 1 << 20, Size: 1 << 20, PageSize: addr.PageSize})
	broken := errors.New("broken")
	failing := newFakeImage(ram.regions...)
	failing.readErr = func(gpa addr.GPA) error {
		if gpa == 1<<20+7*addr.PageSize {
			return broken
		}
		return nil
	}
	for name, img := range map[string]*oddImage{
		"below":     {fakeImage: ram, runs: [][2]uint64{{1<<20 - addr.PageSize, 1}}},
		"above":     {fakeImage: ram, runs: [][2]uint64{{2 << 20, 1}}},
		"over":      {fakeImage: ram, runs: [][2]uint64{{2<<20 - addr.PageSize, 2}}},
		"overflow":  {fakeImage: ram, runs: [][2]uint64{{1<<20 + addr.PageSize, 1 << 63}}},
		"unaligned": {fakeImage: ram, runs: [][2]uint64{{1<<20 + 8, 1}}},
		"order":     {fakeImage: ram, runs: [][2]uint64{{1<<20 + 4*addr.PageSize, 1}, {1 << 20, 1}}},
		"overlap":   {fakeImage: ram, runs: [][2]uint64{{1 << 20, 4}, {1<<20 + 3*addr.PageSize, 1}}},
		"failing":   {fakeImage: ram, err: broken},
		"read":      {fakeImage: failing, runs: [][2]uint64{{1 << 20, 256}}},
		"short":     {fakeImage: ram, runs: [][2]uint64{{1 << 20, 4}}, less: 1},
	} {
		dir := t.TempDir()
		_, err := Write(t.Context(), filepath.Join(dir, "x"), img, Options{})
		if !errors.Is(err, ErrImage) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "failing" || name == "read" {
			if !errors.Is(err, broken) {
				t.Errorf("%s: %v does not lead to the cause", name, err)
			}
		}
		if left := filesIn(t, dir); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestBadRegions(t *testing.T) {
	good := Region{Name: "ram", Base: 1 << 20, Size: 1 << 20, PageSize: addr.PageSize}
	many := make([]Region, MaxRegions+1)
	for i := range many {
		many[i] = Region{Base: addr.GPA(i) << 20, Size: 1 << 20, PageSize: addr.PageSize}
	}
	with := func(change func(*Region)) []Region {
		r := good
		change(&r)
		return []Region{r}
	}
	for name, tc := range map[string]struct {
		regions []Region
		want    error
	}{
		"overlap":  {[]Region{good, {Base: 2<<20 - addr.PageSize, Size: addr.PageSize, PageSize: addr.PageSize}}, ErrRegions},
		"empty":    {with(func(r *Region) { r.Size = 0 }), ErrRegions},
		"size":     {with(func(r *Region) { r.Size++ }), ErrRegions},
		"base":     {with(func(r *Region) { r.Base++ }), ErrRegions},
		"pages":    {with(func(r *Region) { r.PageSize = 3 * addr.PageSize }), ErrRegions},
		"zero":     {with(func(r *Region) { r.Name = "a\x00b" }), ErrRegions},
		"name":     {with(func(r *Region) { r.Name = strings.Repeat("x", MaxName+1) }), ErrLimit},
		"end":      {with(func(r *Region) { r.Base = ^addr.GPA(0) &^ 0xfff }), ErrLimit},
		"too much": {with(func(r *Region) { r.Size = MaxGuest }), ErrLimit},
		"many":     {many, ErrLimit},
	} {
		dir := t.TempDir()
		if _, err := Write(t.Context(), filepath.Join(dir, "x"), newFakeImage(tc.regions...), Options{}); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
		if left := filesIn(t, dir); len(left) > 0 {
			t.Errorf("%s: left %q", name, left)
		}
	}
}

func TestBadOptions(t *testing.T) {
	dir := t.TempDir()
	img := newFakeImage(testRegions...)
	mustWrite(t, filepath.Join(dir, "x"), img, Options{})
	f := mustOpen(t, filepath.Join(dir, "x"))
	for name, tc := range map[string]struct {
		o    Options
		want error
	}{
		"chunk":        {Options{ChunkSize: 5000}, ErrInvalid},
		"large chunk":  {Options{ChunkSize: 2 * MaxChunk}, ErrInvalid},
		"raw, codec":   {Options{Layout: LayoutRaw, Codec: testCodec}, ErrInvalid},
		"raw, parent":  {Options{Layout: LayoutRaw, Parent: f}, ErrInvalid},
		"layout":       {Options{Layout: 9}, ErrInvalid},
		"workers":      {Options{Workers: -1}, ErrInvalid},
		"state":        {Options{State: make([]byte, MaxState+1)}, ErrLimit},
		"codec number": {Options{Codec: flateCodec{0}}, ErrCodec},
	} {
		if _, err := Write(t.Context(), filepath.Join(dir, "y"), img, tc.o); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var e *Error
	if _, err := Write(t.Context(), filepath.Join(dir, "none", "y"), img, Options{}); !errors.As(err, &e) || !errors.Is(err, os.ErrNotExist) || e.Op != "write" {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Write(t.Context(), dir, img, Options{}); err == nil {
		t.Error("a directory was replaced")
	}
	if left := filesIn(t, dir); len(left) != 1 {
		t.Errorf("left: %q", left)
	}
}

// TestCancel ends a write, a verify and a restore from within.
func TestCancel(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	img := newFakeImage(Region{Name: "ram", Base: 0, Size: 8 << 20, PageSize: addr.PageSize})
	for page := range uint64(2048) {
		img.put(addr.GPA(page*addr.PageSize), 2*page+2)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var reads atomic.Int64
	img.readErr = func(addr.GPA) error {
		if reads.Add(1) == 700 {
			cancel()
		}
		return nil
	}
	if _, err := Write(ctx, path, img, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v", err)
	}
	if left := filesIn(t, dir); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	img.readErr = nil
	if _, err := Write(ctx, path, img, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Write = %v", err)
	}
	mustWrite(t, path, img, Options{Sync: SyncNone})
	f := mustOpen(t, path)
	if err := f.Verify(ctx, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Verify = %v", err)
	}
	if err := f.ReadPages(ctx, make([]byte, addr.PageSize), 0); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadPages = %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	if err := f.Restore(ctx, new(memory), RestoreOptions{Progress: func(done, total uint64) { cancel() }}); !errors.Is(err, context.Canceled) {
		t.Errorf("Restore = %v", err)
	}
	full := errors.New("full")
	if err := f.Restore(t.Context(), failingWriter{full}, RestoreOptions{}); !errors.Is(err, full) {
		t.Errorf("Restore = %v", err)
	}
}

type failingWriter struct{ err error }

func (w failingWriter) WriteAt(p []byte, _ addr.GPA) (int, error) { return 0, w.err }

func TestBadReads(t *testing.T) {
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, "x"), newFakeImage(testRegions...), Options{})
	f := mustOpen(t, filepath.Join(dir, "x"))
	page := make([]byte, 2*addr.PageSize)
	for name, tc := range map[string]struct {
		p    []byte
		gpa  addr.GPA
		want error
	}{
		"outside":    {page, 0x200000, ErrRegions},
		"over":       {page, 47 * addr.PageSize, ErrRegions},
		"unaligned":  {page, 8, ErrInvalid},
		"not a page": {page[:100], 0, ErrInvalid},
		"top":        {page, ^addr.GPA(0) &^ 0xfff, ErrRegions},
	} {
		if err := f.ReadPages(t.Context(), tc.p, tc.gpa); !errors.Is(err, tc.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := f.Source(addr.PageSize); !errors.Is(err, ErrRegions) {
		t.Errorf("Source = %v", err)
	}
	src, err := f.Source(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := src.ReadPages(t.Context(), page, src.Size()-addr.PageSize); !errors.Is(err, ErrRegions) {
		t.Errorf("over the end: %v", err)
	}
	if err := src.ReadPages(t.Context(), page, ^uint64(0)&^0xfff); !errors.Is(err, ErrRegions) {
		t.Errorf("overflow: %v", err)
	}
	f.Close()
	if err := f.ReadPages(t.Context(), page, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := f.Verify(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Errorf("closed again: %v", err)
	}
}

// spoiledCodec fails, or gives something else than it was given.
type spoiledCodec struct {
	flateCodec
	encode, decode func(dst []byte) ([]byte, error)
}

func (c spoiledCodec) Encode(dst, src []byte) ([]byte, error) {
	if c.encode != nil {
		return c.encode(dst)
	}
	return c.flateCodec.Encode(dst, src)
}

func (c spoiledCodec) Decode(dst, src []byte) ([]byte, error) {
	if c.decode != nil {
		return c.decode(dst)
	}
	return c.flateCodec.Decode(dst, src)
}

func TestBadCodecs(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	img := newFakeImage(testRegions...)
	img.put(0, 2)
	broken := errors.New("broken")
	for name, c := range map[string]spoiledCodec{
		"fails":   {flateCodec: flateCodec{77}, encode: func(dst []byte) ([]byte, error) { return nil, broken }},
		"nothing": {flateCodec: flateCodec{77}, encode: func(dst []byte) ([]byte, error) { return dst, nil }},
		"less":    {flateCodec: flateCodec{77}, encode: func(dst []byte) ([]byte, error) { return nil, nil }},
	} {
		if _, err := Write(t.Context(), path, img, Options{Codec: c}); !errors.Is(err, ErrCodec) {
			t.Errorf("%s: %v", name, err)
		}
	}
	mustWrite(t, path, img, Options{Codec: testCodec})
	for _, codecs := range [][]Codec{nil, {flateCodec{78}}} {
		if err := openErr(path, OpenOptions{Codecs: codecs}); !errors.Is(err, ErrCodec) || !strings.Contains(err.Error(), "flate") {
			t.Errorf("no such codec: %v", err)
		}
	}
	for name, decode := range map[string]func(dst []byte) ([]byte, error){
		"fails":  func(dst []byte) ([]byte, error) { return nil, broken },
		"less":   func(dst []byte) ([]byte, error) { return dst, nil },
		"more":   func(dst []byte) ([]byte, error) { return append(dst, make([]byte, 2*cap(dst))...), nil },
		"others": func(dst []byte) ([]byte, error) { return append(dst, bytes.Repeat([]byte{1}, cap(dst))...), nil },
	} {
		f, err := Open(path, OpenOptions{Codecs: []Codec{spoiledCodec{flateCodec: flateCodec{77}, decode: decode}}})
		if err != nil {
			t.Fatal(err)
		}
		p := bytes.Repeat([]byte{7}, addr.PageSize)
		if err := f.ReadPages(t.Context(), p, 0); !errors.Is(err, ErrCodec) || !isZero(p) {
			t.Errorf("%s: ReadPages = %v", name, err)
		}
		if err := f.Verify(t.Context(), nil); !errors.Is(err, ErrCodec) {
			t.Errorf("%s: Verify = %v", name, err)
		}
		f.Close()
	}
	// One that has memory of its own.
	f, err := Open(path, OpenOptions{Codecs: []Codec{spoiledCodec{flateCodec: flateCodec{77}, decode: func(dst []byte) ([]byte, error) {
		return bytes.Clone(img.pages[0]), nil
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	checkSame(t, f, img)
	_ = fmt.Sprint(f.Info())
}
