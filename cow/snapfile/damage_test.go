package snapfile

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
	"github.com/guestmm/guestmm/internal/invariants"
)

var soak = flag.Bool("soak", false, "run the long versions of the tests")

// small writes a small file of each kind, and returns the paths with what each
// holds. An increment's parent is "full".
func small(t testing.TB, dir string) map[string]*fakeImage {
	t.Helper()
	regions := []Region{
		{Name: "a", Base: 0, Size: 4 * addr.PageSize, PageSize: addr.PageSize},
		{Name: "b", Base: 1 << 30, Size: 6 * addr.PageSize, PageSize: addr.PageSize},
	}
	img := newFakeImage(regions...)
	img.put(addr.PageSize, 2)
	img.put(1<<30+3*addr.PageSize, 4)
	out := map[string]*fakeImage{"full": img, "packed": img, "codec": img}
	state := []byte("the state of a vCPU")
	mustWrite(t, filepath.Join(dir, "full"), img, Options{State: state, Sync: SyncNone})
	mustWrite(t, filepath.Join(dir, "packed"), img, Options{State: state, Layout: LayoutPacked, Sync: SyncNone})
	mustWrite(t, filepath.Join(dir, "codec"), img, Options{State: state, Codec: testCodec, Sync: SyncNone})
	change := newFakeImage(regions...)
	change.put(1<<30+4*addr.PageSize, 6)
	change.put(addr.PageSize, 0)
	parent := mustOpen(t, filepath.Join(dir, "full"))
	mustWrite(t, filepath.Join(dir, "increment"), change, Options{State: state, Parent: parent, Codec: testCodec, Sync: SyncNone})
	out["increment"] = change.over(img)
	return out
}

var smallKinds = []string{"full", "packed", "codec", "increment"}

// served reads all of a file by pages, and reports whether anything came that is
// not in the image.
func served(f *File, want *fakeImage) (wrong bool, err error) {
	p := make([]byte, addr.PageSize)
	for _, r := range f.Regions() {
		for page := range r.nPages() {
			gpa := r.gpaOf(page)
			switch readErr := f.ReadPages(context.Background(), p, gpa); {
			case readErr == nil && !bytes.Equal(p, pageOf(want, gpa)):
				return true, err
			case readErr != nil && !isZero(p):
				return true, err
			case readErr != nil:
				err = readErr
			}
		}
	}
	return false, err
}

// TestEveryFlippedBitIsRefused flips each bit of a file, padding, holes and those
// of its parent included: Open or Verify names the damage, Restore fails, and no
// page that is read is anything but right.
func TestEveryFlippedBitIsRefused(t *testing.T) {
	dir := t.TempDir()
	images := small(t, dir)
	for _, kind := range append(smallKinds, "increment of full") {
		t.Run(kind, func(t *testing.T) {
			path, opened := filepath.Join(dir, kind), filepath.Join(dir, kind)
			if kind == "increment of full" {
				path, opened = filepath.Join(dir, "full"), filepath.Join(dir, "increment")
			}
			want := images[filepath.Base(opened)]
			bits := everyBit(t, path)
			file, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			var b [1]byte
			for _, bit := range bits {
				at := int64(bit / 8)
				flip := func() {
					if _, err := file.ReadAt(b[:], at); err != nil {
						t.Fatal(err)
					}
					b[0] ^= 1 << (bit % 8)
					if _, err := file.WriteAt(b[:], at); err != nil {
						t.Fatal(err)
					}
				}
				flip()
				checkRefused(t, opened, filepath.Base(path), want, bit)
				flip()
			}
			f := mustOpen(t, opened)
			if err := f.Verify(t.Context(), nil); err != nil {
				t.Fatalf("with every bit as it was: %v", err)
			}
		})
	}
}

// everyBit lists the bits to flip: every one of the fields, tables and state; of
// the pages of data and of the padding one in each byte, or all with -soak; and some
// in holes. It is a sample where checking is slow.
func everyBit(t *testing.T, path string) (bits []uint64) {
	f := mustOpen(t, path)
	add := func(from, to, one uint64) {
		for bit := from * 8; bit < to*8; bit += one {
			at := bit + rand.Uint64N(one)
			if *soak || !invariants.Enabled || rand.IntN(20) == 0 {
				bits = append(bits, at)
			}
		}
	}
	one := uint64(8)
	if *soak {
		one = 1
	}
	add(0, 256, 1)
	add(256, headerChecksum, one)
	add(headerChecksum, headerSize, 1)
	for _, c := range f.chunks {
		add(c.off, c.off+uint64(c.stored), one)
	}
	add(f.h.stateOff, f.h.fileSize, 1)
	if f.h.raw() {
		add(headerSize, f.h.stateOff, 1<<12)
	}
	return bits
}

// checkRefused opens a file after a bit of it, or of its parent, was flipped. Header,
// state and tables are refused by Open: a guest begins to run by them.
func checkRefused(t *testing.T, path, kind string, want *fakeImage, bit uint64) {
	t.Helper()
	f, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}})
	if err != nil {
		if !isNamed(err) {
			t.Fatalf("bit %d: %v has no name", bit, err)
		}
		return
	}
	defer f.Close()
	if at := bit / 8; filepath.Base(path) == kind && (at < headerSize || at >= f.h.stateOff) {
		t.Fatalf("bit %d of byte %#x, of the header, state or tables: Open took it", bit%8, at)
	}
	if err := f.Verify(context.Background(), nil); !errors.Is(err, ErrDamaged) {
		t.Fatalf("bit %d of byte %#x: Verify = %v", bit%8, bit/8, err)
	}
	if bit%17 == 0 { // the same pass
		if err := f.Restore(context.Background(), new(memory), RestoreOptions{Workers: 1}); !errors.Is(err, ErrDamaged) {
			t.Fatalf("bit %d of byte %#x: Restore = %v", bit%8, bit/8, err)
		}
	}
	if wrong, _ := served(f, want); wrong {
		t.Fatalf("bit %d of byte %#x reaches a reader", bit%8, bit/8)
	}
}

func isNamed(err error) bool {
	return slices.ContainsFunc([]error{ErrDamaged, ErrTruncated, ErrForeign, ErrNewer, ErrParent}, func(name error) bool { return errors.Is(err, name) })
}

// TestEveryTruncationIsRefused cuts a file at every length, and adds to it.
func TestEveryTruncationIsRefused(t *testing.T) {
	dir := t.TempDir()
	small(t, dir)
	for _, kind := range smallKinds {
		b, err := os.ReadFile(filepath.Join(dir, kind))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "cut")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		step := 1
		if invariants.Enabled && !*soak {
			step = 31
		}
		for n := len(b) - 1; n >= 0; n -= step {
			if err := os.Truncate(path, int64(n)); err != nil {
				t.Fatal(err)
			}
			f, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}})
			if err == nil {
				f.Close()
			}
			if !errors.Is(err, ErrTruncated) {
				t.Fatalf("%s cut to %d of %d bytes: %v", kind, n, len(b), err)
			}
		}
		for _, more := range []int{1, addr.PageSize} {
			if err := os.WriteFile(path, append(slices.Clone(b), make([]byte, more)...), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(path, OpenOptions{Codecs: []Codec{testCodec}}); !errors.Is(err, ErrDamaged) {
				t.Fatalf("%s with %d bytes more: %v", kind, more, err)
			}
		}
	}
}

// TestTruncatedWhileOpen cuts a file that is being read.
func TestTruncatedWhileOpen(t *testing.T) {
	dir := t.TempDir()
	small(t, dir)
	path := filepath.Join(dir, "packed")
	f := mustOpen(t, path)
	if err := os.Truncate(path, headerSize+100); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, addr.PageSize)
	if err := f.ReadPages(t.Context(), p, addr.PageSize); !errors.Is(err, ErrTruncated) {
		t.Errorf("ReadPages = %v", err)
	}
	if err := f.Verify(t.Context(), nil); !errors.Is(err, ErrTruncated) {
		t.Errorf("Verify = %v", err)
	}
}

func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	for name, content := range map[string][]byte{
		"text":  []byte("#!/bin/sh\nexit 0\n"),
		"zero":  make([]byte, 1<<16),
		"elf":   append([]byte("\x7fELF"), make([]byte, 9000)...),
		"short": []byte("\x89gmx"),
	} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrTruncated) {
		t.Errorf("an empty file: %v", err)
	}
	if _, err := Open(dir, OpenOptions{}); !errors.Is(err, ErrForeign) {
		t.Errorf("a directory: %v", err)
	}
	if _, err := Open(filepath.Join(dir, "nothing"), OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if _, err := Open("/dev/null", OpenOptions{}); !errors.Is(err, ErrForeign) && !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a device: %v", err)
	}
}

// reseal changes a field of the header and makes its checksum right again.
func reseal(t testing.TB, path string, change func(page []byte)) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	change(b)
	binary.LittleEndian.PutUint32(b[headerChecksum:], checksum(b[:headerChecksum]))
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestNewerFiles(t *testing.T) {
	dir := t.TempDir()
	small(t, dir)
	path := filepath.Join(dir, "packed")
	version := func(b []byte) { binary.LittleEndian.PutUint32(b[8:], Version+1) }
	reseal(t, path, version)
	if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrNewer) || errors.Is(err, ErrDamaged) {
		t.Errorf("a newer version: %v", err)
	}
	small(t, dir)
	b, _ := os.ReadFile(path)
	version(b)
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrNewer) || !errors.Is(err, ErrDamaged) {
		t.Errorf("a newer version, or damage: %v", err)
	}
	small(t, dir)
	reseal(t, path, func(b []byte) { b[15] |= 0x80 })
	if _, err := Open(path, OpenOptions{}); !errors.Is(err, ErrNewer) {
		t.Errorf("a flag that nobody knows: %v", err)
	}
}

// TestFieldsAreChecked spoils every field of a header in a way that its checksum
// does not show.
func TestFieldsAreChecked(t *testing.T) {
	dir := t.TempDir()
	small(t, dir)
	for _, kind := range smallKinds {
		path := filepath.Join(dir, kind)
		good, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 8; at < 256; at++ {
			if at >= 16 && at < 40 { // the nonce and the time may be anything
				continue
			}
			for _, value := range []byte{0, 1, 0x7f, 0xff} {
				if good[at] == value {
					continue
				}
				b := slices.Clone(good)
				b[at] = value
				binary.LittleEndian.PutUint32(b[headerChecksum:], checksum(b[:headerChecksum]))
				f, err := openSource(newBytesSource(b), "x", OpenOptions{Codecs: []Codec{testCodec}}, newCache(0), nil)
				switch {
				case err != nil && !isNamed(err) && !errors.Is(err, ErrCodec) && !errors.Is(err, ErrLimit):
					t.Errorf("%s, byte %d = %#x: %v has no name", kind, at, value, err)
				case err == nil && !isFree(at):
					t.Errorf("%s, byte %d = %#x is taken", kind, at, value)
				case err == nil:
					f.Close()
				}
			}
		}
	}
}

// isFree reports whether a byte of the header may be another one as far as the
// rest of the file tells: names of codecs and parents, a larger size of chunks.
func isFree(at int) bool {
	return at >= 44 && at < 96 || at >= 190
}

// bytesSource is a file in memory.
type bytesSource struct {
	*bytes.Reader
	n uint64
}

func newBytesSource(b []byte) *bytesSource { return &bytesSource{bytes.NewReader(b), uint64(len(b))} }

func (s *bytesSource) length() (uint64, error)                                    { return s.n, nil }
func (s *bytesSource) file() *os.File                                             { return nil }
func (s *bytesSource) isFile(os.FileInfo) bool                                    { return false }
func (s *bytesSource) close() error                                               { return nil }
func (s *bytesSource) eachData(off, n uint64, fn func(off, n uint64) error) error { return fn(off, n) }
