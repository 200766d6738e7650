package snapfile

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// flatImage is memory in one piece.
type flatImage struct {
	region Region
	b      []byte
}

func newFlatImage(size uint64) *flatImage {
	b := make([]byte, size)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(b[:1<<20])
	for n := 1 << 20; n < len(b); n *= 2 {
		copy(b[n:], b[:n])
	}
	return &flatImage{Region{Name: "ram", Size: size, PageSize: addr.PageSize}, b}
}

func (m *flatImage) Regions() []Region { return []Region{m.region} }

func (m *flatImage) Data(_ addr.GPA, yield func(addr.GPA, uint64) bool) error {
	yield(0, m.region.Size/addr.PageSize)
	return nil
}

func (m *flatImage) ReadAt(p []byte, gpa addr.GPA) (int, error) { return copy(p, m.b[gpa:]), nil }

// BenchmarkWrite writes 512 MiB, every second time the same bytes to a plain file
// in pieces of 1 MiB with an fsync, and reports how the rates relate. The two take
// turns since the disk has its moods.
func BenchmarkWrite(b *testing.B) {
	const size = 512 << 20
	img := newFlatImage(size)
	for _, layout := range []Layout{LayoutRaw, LayoutPacked} {
		b.Run(fmt.Sprintf("layout=%v", layout), func(b *testing.B) {
			dir := b.TempDir()
			var plain, ours []time.Duration
			for b.Loop() {
				plain = append(plain, timed(b, func() error { return plainWrite(filepath.Join(dir, "plain"), img.b) }))
				ours = append(ours, timed(b, func() error {
					_, err := Write(context.Background(), filepath.Join(dir, "ours"), img, Options{Layout: layout})
					return err
				}))
				removeAll(b, filepath.Join(dir, "plain"), filepath.Join(dir, "ours"))
			}
			b.SetBytes(2 * size)
			b.ReportMetric(total(plain).Seconds()/total(ours).Seconds(), "×plain-rate")
			b.ReportMetric(float64(size)*float64(len(ours))/1e6/total(ours).Seconds(), "ours-MB/s")
			b.ReportMetric(float64(size)*float64(len(plain))/1e6/total(plain).Seconds(), "plain-MB/s")
		})
	}
}

func timed(b *testing.B, fn func() error) time.Duration {
	start := time.Now()
	if err := fn(); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

func total(list []time.Duration) (sum time.Duration) {
	for _, d := range list {
		sum += d
	}
	return sum
}

func plainWrite(path string, data []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for len(data) > 0 {
		n, err := f.Write(data[:min(len(data), 1<<20)])
		if err != nil {
			return err
		}
		data = data[n:]
	}
	return f.Sync()
}

// BenchmarkOpen opens a file of 1 GiB of data.
func BenchmarkOpen(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x")
	img := newFlatImage(1 << 30)
	if _, err := Write(context.Background(), path, img, Options{Sync: SyncNone}); err != nil {
		b.Fatal(err)
	}
	img = nil
	runtime.GC()
	b.ReportAllocs()
	for b.Loop() {
		f, err := Open(path, OpenOptions{})
		if err != nil {
			b.Fatal(err)
		}
		f.Close()
	}
}

// BenchmarkReadPages reads random pages, and aligned pieces, of a file that is in
// the page cache: what a fault of a lazy restore costs.
func BenchmarkReadPages(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x")
	if _, err := Write(context.Background(), path, newFlatImage(256<<20), Options{Sync: SyncNone}); err != nil {
		b.Fatal(err)
	}
	for _, size := range []uint64{addr.PageSize, DefaultChunk} {
		b.Run(fmt.Sprintf("bytes=%d", size), func(b *testing.B) {
			f := mustOpen(b, path)
			p := make([]byte, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if err := f.ReadPages(context.Background(), p, addr.GPA(rand.Uint64N(256<<20/size)*size)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// countingWriter takes everything.
type countingWriter struct{}

func (countingWriter) WriteAt(p []byte, _ addr.GPA) (int, error) { return len(p), nil }

// BenchmarkRestore reads and checks 256 MiB that are in the page cache.
func BenchmarkRestore(b *testing.B) {
	path := filepath.Join(b.TempDir(), "x")
	if _, err := Write(context.Background(), path, newFlatImage(256<<20), Options{Sync: SyncNone}); err != nil {
		b.Fatal(err)
	}
	f := mustOpen(b, path)
	b.SetBytes(256 << 20)
	for b.Loop() {
		if err := f.Restore(context.Background(), countingWriter{}, RestoreOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

// TestReadPagesMakesNoGarbage: what is in the cache is read without allocating.
func TestReadPagesMakesNoGarbage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	img := newFlatImage(1 << 20)
	mustWrite(t, path, img, Options{Sync: SyncNone})
	f := mustOpen(t, path)
	p := make([]byte, addr.PageSize)
	if n := testing.AllocsPerRun(100, func() {
		if err := f.ReadPages(context.Background(), p, 5*addr.PageSize); err != nil {
			t.Fatal(err)
		}
	}); n > 4 { // closures, and no buffers
		t.Errorf("%v allocations for a page", n)
	}
	if !bytes.Equal(p, img.b[5*addr.PageSize:][:addr.PageSize]) {
		t.Error("the page is wrong")
	}
}
