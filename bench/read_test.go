package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/guestmm/guestmm/guestmem"
	"github.com/guestmm/guestmm/guestmem/addr"
)

// BenchmarkCopy asks what a copy from a page that is there costs.
func BenchmarkCopy(b *testing.B) {
	mem, as := newSpace(b)
	at := mapTouched(b, as, 64<<10)
	h := mem.NewHandle()
	b.Cleanup(func() { h.Close() })
	acc := as.With(h)
	ctx := context.Background()
	for _, size := range []int{8, 64, 4096, 64 << 10} {
		buf := make([]byte, size)
		b.Run(fmt.Sprintf("size=%d/handle", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := acc.ReadAt(ctx, buf, at); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("size=%d/pooled", size), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(size))
			for b.Loop() {
				if _, err := as.ReadAt(ctx, buf, at); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRead asks what a random read of 8 bytes costs, over how many
// areas, and with how many readers: the figure is one reader's, and the same
// with more readers if they do not get into each other's way.
func BenchmarkRead(b *testing.B) {
	for _, areas := range []int{1, 1000} {
		for _, readers := range []int{1, 2} {
			b.Run(fmt.Sprintf("areas=%d/readers=%d", areas, readers), func(b *testing.B) {
				benchmarkReaders(b, areas, readers)
			})
		}
	}
}

func benchmarkReaders(b *testing.B, areas, readers int) {
	const areaSize = 16 << 10
	mem, as := newSpace(b)
	base := mapMany(b, as, areas, areaSize)
	span := uint64(areas) * areaSize
	reader := func(seed uint64) (read func() error, done func()) {
		h := mem.NewHandle()
		acc := as.With(h)
		// What a reader writes to is on cache lines of its own.
		own := new(struct {
			_   [128]byte
			pcg rand.PCG
			buf [8]byte
			_   [128]byte
		})
		own.pcg.Seed(seed, 1)
		rng := rand.New(&own.pcg)
		return func() error {
			_, err := acc.ReadAt(context.Background(), own.buf[:], base+addr.GVA(rng.Uint64N(span/8)*8))
			return err
		}, func() { h.Close() }
	}
	for r := 1; r < readers; r++ {
		read, done := reader(uint64(r))
		stop := besideWriter(b, read)
		defer func() {
			stop()
			done()
		}()
	}
	read, done := reader(0)
	defer done()
	b.ReportAllocs()
	for b.Loop() {
		if err := read(); err != nil {
			b.Fatal(err)
		}
	}
}

// newSpace returns an address space in a memory of its own, both closed and
// checked when the benchmark ends.
func newSpace(tb testing.TB) (*guestmem.Memory, *guestmem.AddressSpace) {
	tb.Helper()
	mem, err := guestmem.NewMemory(guestmem.MemoryOptions{Size: 1 << 30})
	if err != nil {
		tb.Fatal(err)
	}
	as, err := mem.NewAddressSpace(guestmem.SpaceOptions{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := as.Close(); err != nil {
			tb.Error(err)
		}
		if err := mem.Check(); err != nil {
			tb.Error(err)
		}
		if err := mem.Close(); err != nil {
			tb.Error(err)
		}
	})
	return mem, as
}

// mapTouched maps length bytes and writes to each page.
func mapTouched(tb testing.TB, as *guestmem.AddressSpace, length uint64) addr.GVA {
	tb.Helper()
	ctx := context.Background()
	at, err := as.Map(ctx, guestmem.MapOptions{
		Length: length,
		Prot:   guestmem.ProtRead | guestmem.ProtWrite,
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	})
	if err != nil {
		tb.Fatal(err)
	}
	for off := uint64(0); off < length; off += addr.PageSize {
		if _, err := as.WriteAt(ctx, []byte{1}, at+addr.GVA(off)); err != nil {
			tb.Fatal(err)
		}
	}
	return at
}

// mapMany maps adjacent areas that cannot merge and reads each page once.
func mapMany(tb testing.TB, as *guestmem.AddressSpace, areas int, areaSize uint64) addr.GVA {
	tb.Helper()
	ctx := context.Background()
	base, err := as.Map(ctx, guestmem.MapOptions{
		Length: uint64(areas) * areaSize,
		Flags:  guestmem.MapPrivate | guestmem.MapAnonymous,
	})
	if err != nil {
		tb.Fatal(err)
	}
	for i := range areas {
		prot := guestmem.ProtRead
		if i%2 == 0 {
			prot |= guestmem.ProtWrite
		}
		at := base + addr.GVA(uint64(i)*areaSize)
		if err := as.Protect(at, areaSize, prot); err != nil {
			tb.Fatal(err)
		}
		if _, err := as.ReadAt(ctx, make([]byte, areaSize), at); err != nil {
			tb.Fatal(err)
		}
	}
	return base
}
