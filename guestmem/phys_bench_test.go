package guestmem

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/guestmm/guestmm/guestmem/addr"
)

// newRegions returns a memory without a pool and n regions of it, with a hole
// after each.
func benchRegions(b *testing.B, n int) *Memory {
	b.Helper()
	m, err := NewMemory(MemoryOptions{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := m.Close(); err != nil {
			b.Error(err)
		}
	})
	for i := range n {
		if _, err := m.AddRegion(RegionOptions{Base: addr.GPA(i) * 2 << 20, Size: 1 << 20, Populate: PopulateNow}); err != nil {
			b.Fatal(err)
		}
	}
	return m
}

// BenchmarkMemoryRead reads 8 bytes by guest-physical address: with a handle of
// one's own, and with one borrowed for each call; each reader in pages of its own.
func BenchmarkMemoryRead(b *testing.B) {
	for _, regions := range []int{1, 4, 64} {
		for _, readers := range []int{1, 2} {
			name := fmt.Sprintf("regions=%d/readers=%d", regions, readers)
			b.Run("handle=owned/"+name, func(b *testing.B) {
				m := benchRegions(b, regions)
				benchReaders(b, readers, regions, func(gpas *[1024]addr.GPA, n int) error {
					h := m.NewHandle()
					defer h.Close()
					a, p := m.With(h), ownLine()
					for i := range n {
						if _, err := a.ReadAt(p, gpas[i%1024]); err != nil {
							return err
						}
					}
					return nil
				})
			})
			b.Run("handle=pooled/"+name, func(b *testing.B) {
				m := benchRegions(b, regions)
				benchReaders(b, readers, regions, func(gpas *[1024]addr.GPA, n int) error {
					p := ownLine()
					for i := range n {
						if _, err := m.ReadAt(p, gpas[i%1024]); err != nil {
							return err
						}
					}
					return nil
				})
			})
		}
	}
}

// BenchmarkMemoryWrite is BenchmarkMemoryRead for stores, which also look at the
// page's dirty mark.
func BenchmarkMemoryWrite(b *testing.B) {
	m := benchRegions(b, 1)
	benchReaders(b, 1, 1, func(gpas *[1024]addr.GPA, n int) error {
		h := m.NewHandle()
		defer h.Close()
		a, p := m.With(h), ownLine()
		for i := range n {
			if _, err := a.WriteAt(p, gpas[i%1024]); err != nil {
				return err
			}
		}
		return nil
	})
}

// benchReaders runs b.N accesses in each of several goroutines, each at places
// of its own over all regions.
func benchReaders(b *testing.B, readers, regions int, access func(gpas *[1024]addr.GPA, n int) error) {
	b.Helper()
	if readers > runtime.GOMAXPROCS(0) {
		b.Skip("needs a processor for each reader")
	}
	b.ReportAllocs()
	done := make(chan error, readers)
	b.ResetTimer()
	for k := range readers {
		go func() {
			gpas := new([1024]addr.GPA)
			for i := range gpas {
				gpas[i] = addr.GPA(i%regions)<<21 + addr.GPA(k)<<16 + addr.GPA(i*8)
			}
			done <- access(gpas, b.N)
		}()
	}
	for range readers {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

// ownLine returns 8 bytes on cache lines of their own: the allocator puts two
// buffers of that size side by side, and each read stores into its buffer.
func ownLine() []byte { return make([]byte, 128)[:8] }
